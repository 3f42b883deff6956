"""What the flows add: ingest and train on two months, as `perennial` runs them on a real Prefect server and as plain functions."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from deployments import stack
from tests.bench import fresh_addresses, write

START, END, ROUNDS = datetime(2013, 1, 1), datetime(2013, 3, 1), 5


def main() -> None:
    with fresh_addresses() as home:
        os.environ |= stack.environment(home) | {"PREFECT_LOGGING_LEVEL": "CRITICAL"}
        stack.up(home)
        as_flows(), as_functions()  # imports, caches
        measured = [(as_flows(), as_functions()) for _ in range(ROUNDS)]
    ratios = [flow / plain for flow, plain in measured]
    write("flows", {"asked_ratio": 1.15, "ratio": statistics.median(ratios), "ratios": ratios,
                    "flows_s": [flow for flow, _ in measured], "functions_s": [plain for _, plain in measured]})


def as_flows() -> float:
    from flows.cli import directly
    from flows.ingest import ingest
    from flows.train import train

    with emptied():
        begun = time.perf_counter()
        directly(ingest, "flights", START, END)
        assert directly(train, "flights", release=False)["outcome"] == "passed"
        return time.perf_counter() - begun


def as_functions() -> float:
    from flows.ingest import take_in
    from flows.memory import remember
    from flows.train import fit_version, judge

    with emptied():
        begun = time.perf_counter()
        take_in(remember("flights"), START, END)
        assert judge(remember("flights"), fit_version(remember("flights"))).passed
        return time.perf_counter() - begun


@contextmanager
def emptied() -> Iterator[None]:
    """A store of its own for each run, so that nothing is there already."""
    kept = {name: os.environ[name] for name in ("PERENNIAL_STORE", "PERENNIAL_RUN")}
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as home:
        os.environ |= {"PERENNIAL_STORE": f"{home}/store", "PERENNIAL_RUN": f"{home}/run"}
        try:
            yield
        finally:
            os.environ |= kept


if __name__ == "__main__":
    main()
