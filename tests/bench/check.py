"""The contract check and the features on a million flights, and Pandera's own lazy validation of the same frame, in turn."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
from pandera.errors import SchemaErrors

from contracts.flights import contract
from contracts.quality import check
from service.model import _as_codes, _matrix, _vocabularies
from tests.bench import write
from tests.bench.flights_like import flights_like

ROWS, ROUNDS = 1_000_000, 7


def main() -> None:
    rows = pd.concat(flights_like(ROWS), ignore_index=True)
    columns = contract.columns_of(rows)
    codes = _as_codes(_vocabularies(contract, columns))
    sides = {
        "check": lambda: check(contract, rows), "pandera": lambda: _validated(rows),
        "matrix": lambda: _matrix(contract, codes, columns), "vocabularies": lambda: _vocabularies(contract, columns),
        "columns": lambda: contract.columns_of(rows)}
    assert check(contract, rows).verdict.figures["bad"] == 0
    rounds = [{name: seconds(run) for name, run in sides.items()} for _ in range(ROUNDS)]
    speeds = {name: [ROWS / one[name] for one in rounds] for name in sides}
    some = rows.assign(temp=rows["temp"].mask(rows.index % 100 == 0, 500.0))
    faulty = [seconds(lambda: _validated(some)) / seconds(lambda: check(contract, some)) for _ in range(3)]
    worse = rows.assign(temp=500.0, carrier="x", dest=pd.Series(None, rows.index, "str"), distance=3.0)
    write("check", {
        "figures": [
            figure("contract check of 1,000,000 flights", speeds["check"], "rows/s", 1_500_000),
            figure("the same, times Pandera's lazy validation", [one["pandera"] / one["check"] for one in rounds], "times", 1),
            figure("the same where 1 % of the rows are bad", faulty, "times", 1)],
        "rows": ROWS, "rounds": ROUNDS, "rows_per_s": {name: statistics.median(found) for name, found in speeds.items()},
        "all_rows_bad_s": [seconds(lambda: check(contract, worse)) for _ in range(3)]})


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


def figure(what: str, measured: list[float], unit: str, asked: float) -> dict[str, Any]:
    return {"what": what, "asked": asked, "sense": "at least", "unit": unit,
            "measured": statistics.median(measured), "low": min(measured), "high": max(measured)}


if __name__ == "__main__":
    main()
