"""The contract check and the features on a million flights, and
Pandera's own lazy validation of the same frame, in turn."""

import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pandera.errors import SchemaErrors

from contracts.core.validation import check_batch
from contracts.flights import contract
from flows.training.dataset import read_training_set
from tests.bench import figure, write
from tests.bench.flights_like import flights_like

ROWS, ROUNDS = 1_000_000, 7


def main() -> None:
    rows = pd.concat(flights_like(ROWS), ignore_index=True)
    sides = {"check": lambda: check_batch(contract, rows), "pandera": lambda: _validated(rows),
             "features": lambda: _prepared(rows)}
    assert check_batch(contract, rows).verdict.figures.bad == 0
    rounds = [{name: seconds(run) for name, run in sides.items()} for _ in range(ROUNDS)]
    speeds = {name: [ROWS / one[name] for one in rounds] for name in sides}
    some = rows.assign(temp=rows["temp"].mask(rows.index % 100 == 0, 500.0))
    faulty = [seconds(lambda: _validated(some)) / seconds(lambda: check_batch(contract, some))
              for _ in range(3)]
    worse = rows.assign(temp=500.0, carrier="x", dest=pd.Series(None, rows.index, "str"), distance=3.0)
    write("check",
          {"figures": [figure("contract check of 1,000,000 flights", 1_500_000, "at least", "rows/s",
                              speeds["check"]),
                       figure("the same, times Pandera's lazy validation", 1, "at least", "times",
                              [one["pandera"] / one["check"] for one in rounds]), figure("the same where 1 % "
                                                                                         "of the rows are "
                                                                                         "bad", 1, "at least",
                                                                                         "times", faulty)],
           "rows": ROWS, "rounds": ROUNDS,
           "rows_per_s": {name: statistics.median(found) for name, found in speeds.items()},
           "all_rows_bad_s": [seconds(lambda: check_batch(contract, worse)) for _ in range(3)]})


def _prepared(rows: pd.DataFrame) -> None:
    """All features of all rows, as a training has them."""
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as folder:
        read_training_set(contract, [rows], len(rows), datetime(2001, 1, 1), Path(folder)).close()


def _validated(rows: pd.DataFrame) -> bool:
    try:
        contract.schema.to_schema().validate(rows, lazy=True)
    except SchemaErrors:
        return False
    return True


def seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
