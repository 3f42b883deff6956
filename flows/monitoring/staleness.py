"""Data that does not come: whether it is late, and the alert about it."""

from dataclasses import dataclass
from datetime import datetime

from registry import data
from registry.context import ModelContext
from registry.events import AlertOver, AlertRaised
from registry.state import State

STALE_DATA = "stale data"  # the alert's kind


@dataclass(frozen=True)
class Staleness:
    """The event time since which no row was found, and why that is too long, in words."""

    since: datetime
    reason: str


def staleness(context: ModelContext) -> Staleness | None:
    """How old the newest row is, or the start of a history without any, if the contract allows less."""
    schedule, known = context.contract.schedule, data.versions(context.store, context.name)
    newest = datetime.fromisoformat(known[-1].newest) if known else schedule.since
    allowed = context.contract.label.matures + schedule.stale_after
    now = context.now().replace(microsecond=0)
    if newest is None or now - newest <= allowed:
        return None
    what = "no newer row than that of" if known else "not one row since"
    return Staleness(newest, f"{what} {newest} was found, {now - newest} ago; {allowed} is allowed until "
                             f"labels mature and by schedule.stale_after; look why the source gives none")


def record_stale_alert(context: ModelContext) -> Staleness | None:
    """Record the alert about data that does not come, or its end; returns what is so now."""
    found = staleness(context)
    context.ledger.decide(lambda state: _new_alert(state, found) if found else _ended_alert(context, state))
    return found


def _new_alert(state: State, found: Staleness) -> AlertRaised | None:
    since = found.since.isoformat()
    if any(alert.kind == STALE_DATA for alert in state.open_alerts):
        return None
    return AlertRaised(key=f"{STALE_DATA} {since}", kind=STALE_DATA, window=since, since=since,
                       message=found.reason, drift_scores={}, version=state.champion or "",
                       response="nothing is judged or trained until rows come; it is looked for as scheduled")


def _ended_alert(context: ModelContext, state: State) -> AlertOver | None:
    for alert in state.open_alerts:
        if alert.kind == STALE_DATA:
            newest = data.newest(context.store, context.name).newest
            return AlertOver(key=alert.key, ended_by=newest, ended=f"rows are in up to {newest}")
    return None
