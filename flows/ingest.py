"""The flow that checks a batch of labelled events and appends it as a data version."""

import logging
from collections import Counter
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import flow, task

from contracts.core.cells import read_cells
from contracts.core.errors import CheckFailed, PerennialError
from contracts.core.validation import check_batch
from contracts.core.verdict import Verdict
from flows.reporting.artifacts import show_data_check, tag_run
from flows.tables import read_table
from registry import data
from registry.context import ModelContext, open_model

MOST_ROWS = 1_000_000  # of a file that are one batch

log = logging.getLogger("perennial.ingest")


@flow(name="ingest", flow_run_name="{model} {start}")
def ingest(model: str, start: datetime | None = None, end: datetime | None = None, file: str | None = None) -> dict[str, Any]:
    """Take in the labelled events of [start, end): by default all that have matured since the newest version."""
    tag_run(model)
    version, verdict = ingest_task(model, start, end, file)
    show_data_check(model, version, verdict)
    return version | {"set_aside": verdict["figures"]["bad"]}


@task(task_run_name="take in {model}")
def ingest_task(model: str, start: datetime | None, end: datetime | None, file: str | None) -> tuple[dict, dict]:
    version, verdict = ingest_batch(open_model(model), start, end, file)
    return version.as_json(), verdict.as_json()


def ingest_batch(memory: ModelContext, start: datetime | None = None, end: datetime | None = None, file: str | None = None):
    """Check what happened in [start, end) and append its good rows; the data version and the Verdict. Raises Refused, storing nothing.

    Of a large .parquet file some whole days are one batch, checked and stored before the next is read: what is refused then
    comes after what is stored, and to ingest the mended file again adds the rest.
    """
    start, end = _span(memory, start, end)
    spans = batches(memory, start, end, Path(file)) if file and Path(file).suffix == ".parquet" else None
    if spans is None:
        return _ingest_batch(memory, start, end, file)
    verdicts = []
    for first, last in spans:
        version, verdict = _ingest_batch(memory, first, last, file, first == start)
        verdicts.append(verdict)
        log.info("%s: %s rows are held, up to %s", memory.name, f"{version.rows:,}", last)
    return version, of_all(verdicts)


def batches(memory: ModelContext, start: datetime, end: datetime, file: Path) -> list[tuple[datetime, datetime]] | None:
    """[start, end) cut at midnights, so that of a large file about MOST_ROWS rows or a day's lie in each; None for one that is
    read whole: it is small, or rows of different days may share a key."""
    event_time, rows = memory.contract.event_time, Counter()
    if memory.contract.key and event_time not in memory.contract.key:
        return None
    low, high = (np.datetime64(limit, "us") for limit in (start, end))
    try:
        parts = pq.ParquetFile(file)
        kind = parts.schema_arrow.field(event_time).type
        if parts.metadata.num_rows <= MOST_ROWS or not pa.types.is_timestamp(kind) or kind.tz:
            return None
        for part in parts.iter_batches(columns=[event_time]):
            times = part.column(0).drop_null().to_numpy(zero_copy_only=False)
            days = times[(times >= low) & (times < high)].astype("datetime64[D]")
            rows.update(dict(zip(*(values.tolist() for values in np.unique(days, return_counts=True)))))
    except (OSError, KeyError, pa.ArrowException):  # what is wrong with the file is told where it is read
        return None
    cuts, held = [start], 0
    for day in sorted(rows):
        if held and held + rows[day] > MOST_ROWS:
            cuts, held = [*cuts, datetime(day.year, day.month, day.day)], 0
        held += rows[day]
    return list(pairwise([*cuts, end]))


def of_all(verdicts: list[Verdict]) -> Verdict:
    """One Verdict on several batches that passed."""
    rules: dict[tuple[str, str], dict[str, Any]] = {}
    for rule in (rule for one in verdicts for rule in one.figures["by_rule"]):
        first = rules.setdefault((rule["column"], rule["rule"]), rule | {"count": 0})
        first["count"] += rule["count"]
    sums = {name: sum(one.figures[name] for one in verdicts) for name in ("rows", "bad")}
    return replace(verdicts[0], reasons=tuple(reason for one in verdicts for reason in one.reasons),
                   figures={**verdicts[0].figures, **sums, "by_rule": list(rules.values())})


def _ingest_batch(memory: ModelContext, start: datetime, end: datetime, file: str | None, *first: bool):
    known = data.versions(memory.store, memory.name)
    batch = read_batch(memory, start, end, file, *first)
    checked = check_batch(memory.contract, batch)
    span = {"start": start.isoformat(), "end": end.isoformat()}
    if not checked.verdict.passed:
        memory.ledger.record("ingest_refused", span | {"verdict": checked.verdict.as_json()}, once=("start", "end", "verdict"))
        raise CheckFailed(checked.verdict, f"nothing of [{start}, {end}) was stored; mend {file or 'the source'} and ingest it again")
    if len(checked.bad):
        data.set_aside(memory.store, memory.contract, checked.bad, start, end)
    version = data.append(memory.store, memory.contract, checked.good, start, end)
    memory.ledger.record("ingested", span | {"data": version.digest, "rows": version.rows, "bad": len(checked.bad)},
                         once=("data",))
    return version, replace(checked.verdict, reasons=(*checked.verdict.reasons, *_gap(memory, known, start)))


def _gap(memory: ModelContext, known: list[data.DataVersion], start: datetime) -> list[str]:
    """What is said of the events between the newest ones held and this batch, if there are such."""
    if not known or start <= (held := datetime.fromisoformat(known[-1].end)):
        return []
    return [f"nothing is held of [{held}, {start}); to fill the gap run: perennial ingest {memory.name} "
            f"--start {held.isoformat()} --end {start.isoformat()}"]


def _span(memory: ModelContext, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
    """The batch's window: from the newest version's end to the last midnight whose labels have matured."""
    for given in (start, end):
        if given and given.tzinfo:
            raise PerennialError(f"{memory.name}: {given} has a zone, event times have none; name it as {given.replace(tzinfo=None)}")
    matured = datetime.now() - memory.contract.label.matures
    midnight = matured.replace(hour=0, minute=0, second=0, microsecond=0)
    if start is None:
        start = datetime.fromisoformat(data.newest(memory.store, memory.name).end)
    if end is None:
        end = midnight
    if end > matured:
        raise PerennialError(f"{memory.name}: labels of events before {end} are not all known: they mature after "
                             f"{memory.contract.label.matures}; name --end {midnight.isoformat()} or earlier")
    if end <= start:
        raise PerennialError(f"{memory.name}: nothing to ingest: [{start}, {end}) is empty; name --start and --end")
    return start, end


def read_batch(memory: ModelContext, start: datetime, end: datetime, file: str | None = None, first: bool | None = None) -> pd.DataFrame:
    """The source's rows of [start, end): the contract's own source, or a .parquet or .csv file. Those of a file without a
    readable event time are there too, for the check to count; of a large file (`first` is given) in the first batch alone."""
    contract = memory.contract
    if file is None:
        if contract.source is None:
            raise PerennialError(f"contract {contract.name} has no source; name a file: --file rows.parquet")
        return contract.source(start, end)
    here = None
    if first is not None:
        time = pc.field(contract.event_time)
        here = (time >= pa.scalar(start)) & (time < pa.scalar(end))
        here = here | time.is_null() if first else here
    rows = read_table(Path(file), here)
    if contract.event_time not in rows:
        return rows
    times = read_cells(rows[contract.event_time], datetime)
    return rows[~((times < start) | (times >= end))]
