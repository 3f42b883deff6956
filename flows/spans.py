"""The span of event time that an ingestion reads, and the gap that it may leave before it."""

from datetime import datetime

import pandas as pd

from contracts.core.errors import NotFound, PerennialError
from registry import data
from registry.context import ModelContext
from registry.data import DataVersion


def gap_before(context: ModelContext, earlier: list[DataVersion], start: datetime,
               rows: pd.DataFrame) -> list[str]:
    """A reason that names a gap before this batch: a span that nobody looked for, or one without rows that
    is longer than the contract's `stale_after`."""
    if not earlier:
        return []
    first = rows[context.contract.event_time].min().to_pydatetime()
    end, newest = (datetime.fromisoformat(time) for time in (earlier[0].end, earlier[0].newest))
    if start <= end and first - newest <= context.contract.schedule.stale_after:
        return []
    since, until = (end, start) if start > end else (newest, first)
    return [f"nothing is stored of [{since}, {until}), {until - since}; to fill the gap run: perennial "
            f"ingest {context.name} --start {since.isoformat()} --end {until.isoformat()}"]


def span_to_read(context: ModelContext, start: datetime | None,
                 end: datetime | None) -> tuple[datetime, datetime]:
    """The batch's window; by default from the newest row, less the contract's lateness, to the last moment
    whose labels have matured."""
    for given in (start, end):
        if given and given.tzinfo:
            raise PerennialError(f"{context.name}: {given} has a zone, event times have none; name it as "
                                 f"{given.replace(tzinfo=None)}")
    matured = (context.now() - context.contract.label.matures).replace(microsecond=0)
    is_look = start is None and end is None
    start, end = start or next_start(context), end or matured
    if end > matured:
        raise PerennialError(f"{context.name}: labels of events before {end} are not all known: they mature "
                             f"after {context.contract.label.matures}; name --end {matured.isoformat()} or "
                             f"earlier")
    if end <= start and not is_look:
        raise PerennialError(f"{context.name}: nothing to ingest: [{start}, {end}) is empty; name --start "
                             f"and --end")
    return start, end


def next_start(context: ModelContext) -> datetime:
    """Just after the newest row, less the contract's lateness; of the first batch, where history begins."""
    schedule, known = context.contract.schedule, data.versions(context.store, context.name)
    if known:
        newest = datetime.fromisoformat(known[-1].newest)
        return newest - schedule.lateness if schedule.lateness else newest + data.RESOLUTION
    if schedule.since is None:
        raise NotFound(f"{context.name}: nothing ingested in {context.store.address}, and the contract does "
                       f"not say since when there are rows; state Schedule(since=…), or run: perennial "
                       f"ingest {context.name} --start … --end …")
    return schedule.since
