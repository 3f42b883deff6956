"""The flow that checks a batch of labelled events and appends it as a data version."""

import logging
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec.structs import replace
from prefect import flow, task

from contracts.core.cells import read_cells
from contracts.core.errors import CheckFailed, PerennialError
from contracts.core.validation import check_batch
from contracts.core.verdict import BrokenRule, DataVerdict
from flows.reporting.artifacts import show_data_check, tag_run
from flows.tables import read_table
from registry import data
from registry.context import ModelContext, open_model
from registry.data import DataVersion
from registry.events import Ingested, IngestRefused

MOST_ROWS = 1_000_000  # of a file that are one batch

log = logging.getLogger("perennial.ingest")


@flow(name="ingest", flow_run_name="{model} {start}")
def ingest(model: str, start: datetime | None = None, end: datetime | None = None,
           file: str | None = None) -> dict[str, Any]:
    """Take in the labelled events of [start, end): by default
    all that have matured since the newest version."""
    tag_run(model)
    version, verdict = ingest_task(model, start, end, file)
    show_data_check(model, version, verdict)
    return version.as_json() | {"set_aside": verdict.figures.bad}


@task(task_run_name="take in {model}")
def ingest_task(model: str, start: datetime | None, end: datetime | None,
                file: str | None) -> tuple[DataVersion, DataVerdict]:
    return ingest_batch(open_model(model), start, end, file)


def ingest_batch(context: ModelContext, start: datetime | None = None, end: datetime | None = None,
                 file: str | None = None) -> tuple[DataVersion, DataVerdict]:
    """Check what happened in [start, end) and append its good rows. Raises CheckFailed, storing nothing.

    Of a large .parquet file some whole days are one batch, checked and stored before the next is read:
    what is refused then comes after what is stored, and to ingest the mended file again adds the rest.
    """
    start, end = _span(context, start, end)
    spans = batches(context, start, end, Path(file)) if file and Path(file).suffix == ".parquet" else None
    if spans is None:
        return _ingest_batch(context, start, end, file)
    verdicts = []
    for first, last in spans:
        version, verdict = _ingest_batch(context, first, last, file, first == start)
        verdicts.append(verdict)
        log.info("%s: %s rows are held, up to %s", context.name, f"{version.rows:,}", last)
    return version, combined(verdicts)


def batches(context: ModelContext, start: datetime, end: datetime,
            file: Path) -> list[tuple[datetime, datetime]] | None:
    """[start, end) cut at midnights, so that of a large file about MOST_ROWS rows or a day's lie in
    each; None for one that is read whole: it is small, or rows of different days may share a key."""
    event_time = context.contract.event_time
    rows: Counter[datetime] = Counter()
    if context.contract.key and event_time not in context.contract.key:
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


def combined(verdicts: list[DataVerdict]) -> DataVerdict:
    """One verdict on several batches that passed; a rule keeps its first examples."""
    rules: dict[tuple[str, str], BrokenRule] = {}
    for rule in (rule for verdict in verdicts for rule in verdict.figures.by_rule):
        known = rules.get((rule.column, rule.rule))
        rules[rule.column, rule.rule] = replace(known, count=known.count + rule.count) if known else rule
    figures = replace(verdicts[0].figures, by_rule=list(rules.values()),
                      rows=sum(verdict.figures.rows for verdict in verdicts),
                      bad=sum(verdict.figures.bad for verdict in verdicts))
    return replace(verdicts[0], reasons=tuple(reason for verdict in verdicts for reason in verdict.reasons),
                   figures=figures)


def _ingest_batch(
    context: ModelContext, start: datetime, end: datetime, file: str | None, first_part: bool | None = None,
) -> tuple[DataVersion, DataVerdict]:
    known = data.versions(context.store, context.name)
    checked = check_batch(context.contract, read_batch(context, start, end, file, first_part))
    first, last = start.isoformat(), end.isoformat()
    if not checked.verdict.passed:
        context.ledger.record(
            IngestRefused(start=first, end=last, verdict=checked.verdict), once=("start", "end", "verdict"))
        raise CheckFailed(checked.verdict,
                          f"nothing of [{start}, {end}) was stored; mend {file or 'the source'} and ingest "
                          f"it again")
    if len(checked.bad):
        data.set_aside(context.store, context.contract, checked.bad, start, end)
    version = data.append(context.store, context.contract, checked.good, start, end)
    context.ledger.record(Ingested(start=first, end=last, data=version.digest, rows=version.rows,
                                   bad=len(checked.bad)), once=("data",))
    return version, replace(checked.verdict, reasons=(*checked.verdict.reasons, *_gap(context, known, start)))


def _gap(context: ModelContext, known: list[DataVersion], start: datetime) -> list[str]:
    """What is said of the events between the newest ones held and this batch, if there are such."""
    if not known or start <= (held := datetime.fromisoformat(known[-1].end)):
        return []
    return [f"nothing is held of [{held}, {start}); to fill the gap run: perennial ingest {context.name} "
            f"--start {held.isoformat()} --end {start.isoformat()}"]


def _span(context: ModelContext, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
    """The batch's window: from the newest version's end to the last midnight whose labels have matured."""
    for given in (start, end):
        if given and given.tzinfo:
            raise PerennialError(f"{context.name}: {given} has a zone, event times have none; name it as "
                                 f"{given.replace(tzinfo=None)}")
    matured = datetime.now() - context.contract.label.matures
    midnight = matured.replace(hour=0, minute=0, second=0, microsecond=0)
    if start is None:
        start = datetime.fromisoformat(data.newest(context.store, context.name).end)
    if end is None:
        end = midnight
    if end > matured:
        raise PerennialError(f"{context.name}: labels of events before {end} are not all known: they mature "
                             f"after {context.contract.label.matures}; name --end {midnight.isoformat()} or "
                             f"earlier")
    if end <= start:
        raise PerennialError(f"{context.name}: nothing to ingest: [{start}, {end}) is empty; name --start "
                             f"and --end")
    return start, end


def read_batch(context: ModelContext, start: datetime, end: datetime, file: str | None = None,
               first: bool | None = None) -> pd.DataFrame:
    """The source's rows of [start, end): the contract's own source, or a .parquet or
    .csv file. Those of a file without a readable event time are there too, for the
    check to count; of a large file (`first` is given) in the first batch alone."""
    contract = context.contract
    if file is None:
        return contract.source_rows(start, end)
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
