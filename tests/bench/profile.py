"""Profiles of 1,000,000 flights, all features and answers: Perennial's
own against `whylogs.log` with its defaults on the same columns.

whylogs' defaults need numpy 1, so they run in the peers' environment
(tests/bench/peers/whylogs_log.py), on the same rows as Parquet; both sides in turn.
`whylogs.log` gets a data frame that is in memory already, as Perennial gets its columns.
"""

import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from contracts.core.binning import Bins, monitored_columns
from contracts.core.features import Columns
from contracts.core.loading import load_contract
from service import profiles
from tests.bench import PEERS, figure, peers, write

ROWS, ROUNDS = 1_000_000, 3
REPLICA = 20_000  # rows that a replica writes at a time


def main() -> None:
    contract, columns, probabilities = load_contract("flights"), *flights(ROWS)
    classes = probabilities.argmax(axis=1)
    seen = monitored_columns(contract, columns, probabilities, classes)
    bins = {name: Bins.of(*one) for name, one in seen.items()}

    def ours(rows: int = ROWS) -> float:
        some = {name: values[:rows] for name, values in columns.items()}
        begun = time.perf_counter()
        profiles.profile_rows(contract, bins, some, probabilities[:rows], classes[:rows])
        return time.perf_counter() - begun

    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as folder:
        table = Path(folder) / "rows.parquet"
        pd.DataFrame({name: one.values for name, one in seen.items()}).to_parquet(table)
        command = [peers("drift"), PEERS / "whylogs_log.py", table]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
            def theirs(rows: int = ROWS) -> float:
                peer.stdin.write(f"{rows}\n")
                peer.stdin.flush()
                return float(peer.stdout.readline())

            ours(), theirs(REPLICA)  # imports, caches
            took = [(ours(), theirs()) for _ in range(ROUNDS)]
            batches = [(ours(REPLICA), theirs(REPLICA)) for _ in range(ROUNDS)]
            peer.stdin.close()
    write("profile", {"figures": [figure("profile of 1,000,000 flights, all features: rows/s, times "
                                         "whylogs.log's with its defaults", 4, "at least", "×",
                                         [their / our for our, their in took])], "rows": ROWS,
                      "columns": len(seen), "perennial_s": [our for our, _ in took],
                      "whylogs_s": [their for _, their in took],
                      "of_a_replicas_batch": {"rows": REPLICA, "perennial_s": [our for our, _ in batches],
                                              "whylogs_s": [their for _, their in batches]}})


def flights(rows: int) -> tuple[Columns, np.ndarray]:
    """Columns of so many flights, those of 2013 over and over, and
    probabilities as a model answers them: made up, all different."""
    contract = load_contract("flights")
    year = contract.columns_of(contract.source(datetime(2013, 1, 1), datetime(2014, 1, 1)),
                               contract.request_columns)
    repeated = np.arange(rows) % len(year[contract.event_time])
    probabilities = np.random.default_rng(0).dirichlet((4, 1, 1), rows).astype(np.float32)
    return {name: values[repeated] for name, values in year.items()}, probabilities


if __name__ == "__main__":
    main()
