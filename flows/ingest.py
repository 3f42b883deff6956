"""The flow that checks a batch of labelled events and appends it as a data version."""

import logging
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec.structs import replace
from prefect import flow, task
from prefect.task_engine import TaskRunTimeoutError

from contracts.core.cells import read_cells
from contracts.core.digests import JsonObject
from contracts.core.errors import CheckFailed, NotFound, SourceFailed, Stale
from contracts.core.validation import check_batch
from contracts.core.verdict import BrokenRule, DataFigures, DataVerdict, Outcome
from flows.monitoring.alerts import update_stale_alert
from flows.monitoring.faults import RunFault, tell_of_failure, tell_of_success
from flows.orchestration.events import INGESTED, begin_run, emit, run_name
from flows.orchestration.steps import RETRIED
from flows.reporting.artifacts import show_data_check
from flows.spans import gap_before, span_to_read
from flows.tables import read_table
from registry import bad_rows, data
from registry.context import ModelContext, open_model
from registry.data import DataVersion
from registry.events import Ingested, IngestRefused
from registry.looks import record_look
from registry.sources import read_source
from registry.state import State

MAX_ROWS = 1_000_000  # of a file in one batch
MAX_SOURCE_ROWS = 300_000  # of a source in one batch, but for a single day's
DAY = timedelta(days=1)
NOTHING_NEW = DataVerdict(outcome=Outcome.PASSED, reasons=("no new row was found",),
                          figures=DataFigures(rows=0, bad=0))

log = logging.getLogger("perennial.ingest")


class IngestResult(TypedDict):
    """`outcome`: "ingested", or "nothing new"; the data version that holds now, and how many rows were set
    aside and corrected."""

    outcome: str
    data: JsonObject
    set_aside: int


@flow(name="ingest", flow_run_name=run_name)
def ingest(model: str, start: datetime | None = None, end: datetime | None = None, file: str | None = None,
           cause: str | None = None) -> IngestResult:
    """Check and store the labelled events of [start, end), by default all that have matured since the newest
    known one, less the contract's lateness. `cause`: what started this run, for its page in Prefect."""
    begin_run(model, cause)
    context, is_look = open_model(model), (start, end, file) == (None, None, None)
    before = context.ledger.state().of_kind(Ingested)
    limit = context.contract.schedule.time_limit.total_seconds() if is_look else None
    try:
        version, verdict = ingest_task.with_options(timeout_seconds=limit)(model, start, end, file)
    except NotFound:
        if is_look:
            raise_if_stale(model)
        raise
    except TaskRunTimeoutError as error:
        raise SourceFailed(
            f"{model}: the look for data was ended after {context.contract.schedule.time_limit}, the "
            f"schedule.time_limit of the contract; what was stored by then stays, and the next look goes on "
            f"behind it: look why the source is slow, or raise the limit") from error
    is_new = context.ledger.state().of_kind(Ingested) != before
    if is_new:
        show_data_check(model, version, verdict)
        announce_data(model, version)
    if is_look:
        raise_if_stale(model)
    return {"outcome": "ingested" if is_new else "nothing new", "data": version.as_json(),
            "set_aside": verdict.figures.bad if is_new else 0}


ingest.on_failure(tell_of_failure(RunFault.INGEST))
ingest.on_completion(tell_of_success(RunFault.INGEST))


@task(task_run_name="ingest {model}", **RETRIED)
def ingest_task(model: str, start: datetime | None, end: datetime | None,
                file: str | None) -> tuple[DataVersion, DataVerdict]:
    return ingest_batch(open_model(model), start, end, file)


def announce_data(model: str, version: DataVersion) -> None:
    """Emit the event that has windows judged."""
    emit(model, INGESTED, version.digest, {
        "data": version.digest, "rows": version.rows, "newest": version.newest, "end": version.end})


def raise_if_stale(model: str) -> None:
    """Alert a person, and raise Stale, if the newest row is older than the contract allows."""
    reason = update_stale_alert(open_model(model))
    if reason:
        raise Stale(f"{model}: {reason}")


def ingest_batch(context: ModelContext, start: datetime | None = None, end: datetime | None = None,
                 file: str | None = None) -> tuple[DataVersion, DataVerdict]:
    """Check the events of [start, end) and take the good rows. Raises CheckFailed, storing nothing.

    A large .parquet file is taken in batches of whole days, each checked and stored before the next is read.
    If one is refused, those before it are stored; ingesting the corrected file again adds the rest.
    Without dates and file, and with nothing new to find, the newest version is returned.
    """
    record_missing_versions(context)
    is_look = (start, end, file) == (None, None, None)
    start, end = span_to_read(context, start, end)
    if is_look and end <= start:
        record_look(context.store, context.name, end)
        return data.newest(context.store, context.name), NOTHING_NEW
    if file is None:
        return _ingest_source(context, start, end, is_look)
    spans = batches(context, start, end, Path(file)) if Path(file).suffix == ".parquet" else None
    if spans is None:
        return _ingest_batch(context, start, end, file)
    verdicts = []
    for first, last in spans:
        version, verdict = _ingest_batch(context, first, last, file, first == start)
        verdicts.append(verdict)
        log.info("%s: %s rows are stored, up to %s", context.name, f"{version.rows:,}", last)
    return version, combined(verdicts)


def batches(context: ModelContext, start: datetime, end: datetime,
            file: Path) -> list[tuple[datetime, datetime]] | None:
    """[start, end) cut at midnights into spans of about MAX_ROWS rows of a large file, or of a day's;
    None for a file that is read at once: it is small, or rows of different days may share a key."""
    event_time = context.contract.event_time
    rows: Counter[datetime] = Counter()
    if context.contract.key and event_time not in context.contract.key:
        return None
    low, high = (np.datetime64(limit, "us") for limit in (start, end))
    try:
        parts = pq.ParquetFile(file)
        kind = parts.schema_arrow.field(event_time).type
        if parts.metadata.num_rows <= MAX_ROWS or not pa.types.is_timestamp(kind) or kind.tz:
            return None
        for part in parts.iter_batches(columns=[event_time]):
            times = part.column(0).drop_null().to_numpy(zero_copy_only=False)
            days = times[(times >= low) & (times < high)].astype("datetime64[D]")
            rows.update(dict(zip(*(values.tolist() for values in np.unique(days, return_counts=True)))))
    except (OSError, KeyError, pa.ArrowException):  # reported where the file is read
        return None
    cuts, batch_rows = [start], 0
    for day in sorted(rows):
        if batch_rows and batch_rows + rows[day] > MAX_ROWS:
            cuts, batch_rows = [*cuts, datetime(day.year, day.month, day.day)], 0
        batch_rows += rows[day]
    return list(pairwise([*cuts, end]))


def combined(verdicts: list[DataVerdict]) -> DataVerdict:
    """One verdict on several batches that passed; of a rule the first examples are kept."""
    rules: dict[tuple[str, str], BrokenRule] = {}
    for rule in (rule for verdict in verdicts for rule in verdict.figures.by_rule):
        known = rules.get((rule.column, rule.rule))
        rules[rule.column, rule.rule] = replace(known, count=known.count + rule.count) if known else rule
    figures = replace(verdicts[0].figures, by_rule=list(rules.values()),
                      rows=sum(verdict.figures.rows for verdict in verdicts),
                      bad=sum(verdict.figures.bad for verdict in verdicts))
    return replace(verdicts[0], reasons=tuple(reason for verdict in verdicts for reason in verdict.reasons),
                   figures=figures)


def _ingest_source(context: ModelContext, start: datetime, end: datetime,
                   is_look: bool) -> tuple[DataVersion, DataVerdict]:
    """Take the source's rows of [start, end), of a large source in batches of whole days; a look that has
    asked for all of them is recorded, whatever it found."""
    taken, at, length = [], start, end - start
    while at < end:
        last = min(end, max(at + DAY, at + length).replace(hour=0, minute=0, second=0, microsecond=0))
        last = end if at + length >= end or last <= at else last
        rows = read_source(context.contract, at, last, secret, MAX_SOURCE_ROWS if last - at > DAY else None)
        if rows is None:
            length = (last - at) / 8
            continue
        if len(rows):
            taken.append(_take(context, rows, at, last, None))
            log.info("%s: %s rows are stored, up to %s", context.name, f"{taken[-1][0].rows:,}", last)
        # The next span has about as many rows as a batch may have.
        at, length = last, min(8.0, 0.8 * MAX_SOURCE_ROWS / max(len(rows), 1)) * (last - at)
    if is_look:
        record_look(context.store, context.name, end)
    if taken:
        return taken[-1][0], combined([verdict for _, verdict in taken])
    if not is_look or not data.versions(context.store, context.name):
        raise NotFound(f"{context.name}: the source gives no row of [{start}, {end}); name a window that has "
                       f"some{', or a Schedule(since=…) from which there are some' if is_look else ''}")
    return data.newest(context.store, context.name), NOTHING_NEW


def secret(name: str) -> str:
    """The value of one of Prefect's secret blocks."""
    from prefect.blocks.system import Secret

    block: Any = Secret.load(name)
    return str(block.get())


def _ingest_batch(context: ModelContext, start: datetime, end: datetime, file: str,
                  first_part: bool | None = None) -> tuple[DataVersion, DataVerdict]:
    return _take(context, read_batch(context, start, end, file, first_part), start, end, file)


def _take(context: ModelContext, rows: pd.DataFrame, start: datetime, end: datetime,
          file: str | None) -> tuple[DataVersion, DataVerdict]:
    """Check one batch and take its good rows."""
    earlier = data.versions(context.store, context.name)[-1:]
    checked = check_batch(context.contract, rows)
    if not checked.verdict.passed:
        record_refusal(context, start, end, checked.verdict)
        raise CheckFailed(checked.verdict,
                          f"nothing of [{start}, {end}) was stored; correct {file or 'the source'} and "
                          f"ingest it again")
    if len(checked.bad):
        bad_rows.set_aside(context.store, context.contract, checked.bad, start, end)
    version = data.append(context.store, context.contract, checked.good, start, end, len(checked.bad))
    record_version(context, version)
    reasons = (*checked.verdict.reasons, *gap_before(context, earlier, start, checked.good))
    return version, replace(checked.verdict, reasons=reasons)


def record_missing_versions(context: ModelContext) -> None:
    """Record the data versions that the ledger lacks: a run may be killed after it has made one."""
    recorded = {known.data for known in context.ledger.state().of_kind(Ingested)}
    for version in data.versions(context.store, context.name):
        if version.digest not in recorded:
            record_version(context, version)


def record_version(context: ModelContext, version: DataVersion) -> None:
    context.ledger.record(
        Ingested(start=version.batch_start, end=version.batch_end, data=version.digest, rows=version.rows,
                 bad=version.bad, newest=version.newest, corrected=version.corrected,
                 changed_from=version.changed_from), once=("data",))


def record_refusal(context: ModelContext, start: datetime, end: datetime, verdict: DataVerdict) -> None:
    """Record a refused batch, but not again at each look from the same
    time on that meets the same broken rules in a few rows more."""
    def decision(state: State) -> IngestRefused | None:
        is_known = any(earlier.start == start.isoformat() and _broken(earlier.verdict) == _broken(verdict)
                       for earlier in state.of_kind(IngestRefused))
        return None if is_known else IngestRefused(start=start.isoformat(), end=end.isoformat(),
                                                   verdict=verdict)

    context.ledger.decide(decision)


def _broken(verdict: DataVerdict) -> set[tuple[str, str]] | set[str]:
    """The rules that cells or rows break; where the batch is refused for something else, the reasons."""
    return {(rule.column, rule.rule) for rule in verdict.figures.by_rule} or {*verdict.reasons}


def read_batch(context: ModelContext, start: datetime, end: datetime, file: str,
               first: bool | None = None) -> pd.DataFrame:
    """The rows of [start, end) of a .parquet or .csv file. Rows without a readable event time are included,
    for the check to count. `first`: whether this is the first batch of a large file, which alone includes
    those; None for a file that is read at once."""
    contract = context.contract
    condition = None
    if first is not None:
        time = pc.field(contract.event_time)
        condition = (time >= pa.scalar(start)) & (time < pa.scalar(end))
        condition = condition | time.is_null() if first else condition
    rows = read_table(Path(file), condition)
    if contract.event_time not in rows:
        return rows
    times = read_cells(rows[contract.event_time], datetime)
    return rows[~((times < start) | (times >= end))]
