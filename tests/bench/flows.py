"""What the flows add: ingest and train on the year of flights, as
`perennial` runs them on a real Prefect server and as plain functions."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from deployments import stack
from tests.bench import figure, fresh_addresses, write

YEAR, MONTH = (datetime(2013, 1, 1), datetime(2014, 1, 1)), (datetime(2013, 1, 1), datetime(2013, 2, 1))
ROUNDS = {"year": 2, "month": 3}  # of which the month shows what is added however few the rows


def main() -> None:
    with fresh_addresses() as home:
        os.environ |= stack.environment(home) | {"PREFECT_LOGGING_LEVEL": "CRITICAL"}
        stack.up(home)
        both(*MONTH)  # imports, caches
        took = {name: [both(*span, turn) for turn in range(ROUNDS[name])]
                for name, span in (("month", MONTH), ("year", YEAR))}
    write("flows", {"figures": [figure("ingest and train flow on 336,776 flights, of the plain functions' "
                                       "time", 1.10, "at most", "×",
                                       [flow / plain for flow, plain in took["year"]])],
                    **{name: {"flows_s": [flow for flow, _ in rounds],
                              "functions_s": [plain for _, plain in rounds]}
                       for name, rounds in took.items()}})


def both(start: datetime, end: datetime, turn: int = 0) -> tuple[float, float]:
    """Seconds of the flows and of the functions, which must come
    to the same; in every other turn the functions go first."""
    took = {way: way(start, end)
            for way in ((as_flows, as_functions) if turn % 2 == 0 else (as_functions, as_flows))}
    (flow, of_flow), (plain, of_plain) = took[as_flows], took[as_functions]
    if of_flow != of_plain:
        raise RuntimeError(f"the flows say {of_flow}, the functions {of_plain}")
    return flow, plain


def as_flows(start: datetime, end: datetime) -> tuple[float, str]:
    from flows.commands.running import run_flow
    from flows.ingest import ingest
    from flows.train import train

    with emptied():
        begun = time.perf_counter()
        run_flow(ingest, "flights", start, end)
        done = run_flow(train, "flights", release=False)
        return time.perf_counter() - begun, done["outcome"]


def as_functions(start: datetime, end: datetime) -> tuple[float, str]:
    from flows.ingest import ingest_batch
    from flows.training.judging import judge
    from flows.training.version import fit_version
    from registry.context import open_model

    with emptied():
        begun = time.perf_counter()
        ingest_batch(open_model("flights"), start, end)
        verdict = judge(open_model("flights"), fit_version(open_model("flights")))
        return time.perf_counter() - begun, verdict.outcome


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
