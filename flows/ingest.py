"""source → contract → data version."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, task

from contracts.contract import PerennialError, Refused
from contracts.quality import check
from flows.artifacts import show_data_check, tag_run
from flows.memory import Memory, remember
from registry import data


@flow(name="ingest", flow_run_name="{model} {start}")
def ingest(model: str, start: datetime | None = None, end: datetime | None = None, file: str | None = None) -> dict[str, Any]:
    """Take in the labelled events of [start, end): by default all that have matured since the newest version."""
    tag_run(model)
    version, verdict = take_in_batch(model, start, end, file)
    show_data_check(model, version, verdict)
    return version


@task(task_run_name="take in {model}")
def take_in_batch(model: str, start: datetime | None, end: datetime | None, file: str | None) -> tuple[dict, dict]:
    version, verdict = take_in(remember(model), start, end, file)
    return version.as_json(), verdict.as_json()


def take_in(memory: Memory, start: datetime | None = None, end: datetime | None = None, file: str | None = None):
    """Check one batch and append its good rows; the data version and the Verdict. Raises Refused, storing nothing."""
    start, end = _span(memory, start, end)
    batch = read_batch(memory, start, end, file)
    checked = check(memory.contract, batch)
    span = {"start": start.isoformat(), "end": end.isoformat()}
    if not checked.verdict.passed:
        memory.ledger.record("ingest_refused", span | {"verdict": checked.verdict.as_json()}, once=("start", "end"))
        raise Refused(checked.verdict, f"nothing of [{start}, {end}) was stored; mend the source and ingest it again")
    if len(checked.bad):
        data.set_aside(memory.store, memory.contract, checked.bad, start, end)
    version = data.append(memory.store, memory.contract, checked.good, start, end)
    memory.ledger.record("ingested", span | {"data": version.digest, "rows": version.rows, "bad": len(checked.bad)},
                         once=("data",))
    return version, checked.verdict


def _span(memory: Memory, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
    """The batch's window: from the newest version's end to the last midnight whose labels have matured."""
    if start is None:
        start = datetime.fromisoformat(data.newest(memory.store, memory.name).end)
    if end is None:
        matured = datetime.now() - memory.contract.label.matures
        end = matured.replace(hour=0, minute=0, second=0, microsecond=0)
    if end <= start:
        raise PerennialError(f"{memory.name}: nothing to ingest: [{start}, {end}) is empty; name --start and --end")
    return start, end


def read_batch(memory: Memory, start: datetime, end: datetime, file: str | None = None) -> pd.DataFrame:
    """The source's rows of [start, end): the contract's own source, or a .parquet or .csv file."""
    contract = memory.contract
    if file is None:
        if contract.source is None:
            raise PerennialError(f"contract {contract.name} has no source; name a file: --file rows.parquet")
        return contract.source(start, end)
    path = Path(file)
    if not path.is_file():
        raise PerennialError(f"no file {file}; name a .parquet or .csv file")
    times = [name for name in contract.columns if contract.python_type(name) is datetime]
    rows = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, parse_dates=times)
    if contract.event_time not in rows:
        return rows
    return rows[(rows[contract.event_time] >= start) & (rows[contract.event_time] < end)]
