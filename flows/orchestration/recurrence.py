"""When a contract's schedule has its times."""

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from prefect.server.schemas.schedules import CronSchedule
from prefect.utilities.asyncutils import run_coro_as_sync

from registry import data
from registry.context import ModelContext
from registry.looks import looked_until

GRACE = timedelta(minutes=15)  # after a scheduled time, in which its own run may still begin


def next_time(when: str | timedelta, after: datetime, time_zone: str) -> datetime:
    """The first time of a cron text or an interval after a moment, on the clocks of a zone, without it."""
    if isinstance(when, timedelta):
        return after + when
    zone = ZoneInfo(time_zone)
    schedule = CronSchedule(cron=when, timezone=time_zone)
    from_then: Any = (after + timedelta(seconds=1)).replace(tzinfo=zone)
    dates: Any = run_coro_as_sync(schedule.get_dates(1, from_then))
    return datetime.fromisoformat(dates[0].isoformat()).astimezone(zone).replace(tzinfo=None)


def next_look(context: ModelContext, after: datetime | None = None) -> datetime | None:
    """When data is looked for next after a moment, by default now; None if it never is by itself."""
    contract = context.contract
    if contract.source is None or contract.schedule.data is None:
        return None
    return next_time(contract.schedule.data, after or context.now(), contract.schedule.time_zone)


def is_look_overdue(context: ModelContext) -> bool:
    """Whether a scheduled look for data has passed without one. Of a model without any, nothing tells when
    it was deployed: its first look is overdue but for the time in which the schedule may begin it."""
    contract, now, looked = context.contract, context.now(), last_look(context)
    if looked is None:
        due = next_look(context, now - GRACE)
        return contract.schedule.since is not None and due is not None and due > now
    due = next_look(context, looked + contract.label.matures)
    return due is not None and due + GRACE < now


def last_look(context: ModelContext) -> datetime | None:
    """The event time up to which rows were looked for; None if they never were."""
    known = data.versions(context.store, context.name)
    reached = [looked_until(context.store, context.name),
               datetime.fromisoformat(known[-1].end) if known else None]
    return max(filter(None, reached), default=None)
