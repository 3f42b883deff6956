"""source → contract → data version."""

import logging
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import flow, task

from contracts.contract import PerennialError, Refused
from contracts.quality import cells, check
from flows.artifacts import show_data_check, tag_run
from flows.files import read_file
from flows.memory import Memory, remember
from registry import data

MOST_ROWS = 1_000_000  # of a file that are one batch

log = logging.getLogger("perennial.ingest")


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
    """Check what happened in [start, end) and append its good rows; the data version and the Verdict. Raises Refused, storing nothing.

    Of a .parquet file with more than MOST_ROWS rows some whole days are one batch, checked and stored before the next is read.
    """
    start, end = _span(memory, start, end)
    spans = batches(memory, start, end, Path(file)) if file and Path(file).suffix == ".parquet" else [(start, end)]
    for first, last in spans:
        version, verdict = _take_in(memory, first, last, file, *([first == start] if len(spans) > 1 else []))
        if len(spans) > 1:
            log.info("%s: %s rows are held, up to %s", memory.name, f"{version.rows:,}", last)
    return version, verdict


def batches(memory: Memory, start: datetime, end: datetime, file: Path) -> list[tuple[datetime, datetime]]:
    """[start, end) cut at midnights, so that the file has about MOST_ROWS rows or a day's in each."""
    event_time, rows = memory.contract.event_time, Counter()
    try:
        parts = pq.ParquetFile(file)
        if not pa.types.is_timestamp(parts.schema_arrow.field(event_time).type) or parts.metadata.num_rows <= MOST_ROWS:
            return [(start, end)]
        for part in parts.iter_batches(columns=[event_time]):
            days = part.column(0).drop_null().to_numpy(zero_copy_only=False).astype("datetime64[D]")
            rows.update(dict(zip(*(values.tolist() for values in np.unique(days, return_counts=True)))))
    except (OSError, KeyError, pa.ArrowException):  # what is wrong with the file is told where it is read
        return [(start, end)]
    cuts, held = [start], 0
    for day in sorted(rows):
        midnight = datetime(day.year, day.month, day.day)
        if held and held + rows[day] > MOST_ROWS and start < midnight < end:
            cuts, held = [*cuts, midnight], 0
        held += rows[day] if start < midnight + timedelta(days=1) and midnight < end else 0
    return list(pairwise([*cuts, end]))


def _take_in(memory: Memory, start: datetime, end: datetime, file: str | None, *first: bool):
    known = data.versions(memory.store, memory.name)
    batch = read_batch(memory, start, end, file, *first)
    checked = check(memory.contract, batch)
    span = {"start": start.isoformat(), "end": end.isoformat()}
    if not checked.verdict.passed:
        memory.ledger.record("ingest_refused", span | {"verdict": checked.verdict.as_json()}, once=("start", "end", "verdict"))
        raise Refused(checked.verdict, f"nothing of [{start}, {end}) was stored; mend {file or 'the source'} and ingest it again")
    if len(checked.bad):
        data.set_aside(memory.store, memory.contract, checked.bad, start, end)
    version = data.append(memory.store, memory.contract, checked.good, start, end)
    memory.ledger.record("ingested", span | {"data": version.digest, "rows": version.rows, "bad": len(checked.bad)},
                         once=("data",))
    return version, replace(checked.verdict, reasons=(*checked.verdict.reasons, *_gap(memory, known, start)))


def _gap(memory: Memory, known: list[data.DataVersion], start: datetime) -> list[str]:
    """What is said of the events between the newest ones held and this batch, if there are such."""
    if not known or start <= (held := datetime.fromisoformat(known[-1].end)):
        return []
    return [f"nothing is held of [{held}, {start}); to fill the gap run: perennial ingest {memory.name} "
            f"--start {held.isoformat()} --end {start.isoformat()}"]


def _span(memory: Memory, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
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


def read_batch(memory: Memory, start: datetime, end: datetime, file: str | None = None, first: bool | None = None) -> pd.DataFrame:
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
    rows = read_file(Path(file), here)
    if contract.event_time not in rows:
        return rows
    times = cells(rows[contract.event_time], datetime)
    return rows[~((times < start) | (times >= end))]
