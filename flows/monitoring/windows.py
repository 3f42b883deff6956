"""Which windows are closed, due, or to be judged again."""

import json
from datetime import datetime

from contracts.core.errors import PerennialError
from contracts.core.retraining import is_provisional
from contracts.core.verdict import Outcome, WindowFigures, WindowKind, WindowVerdict
from registry import data, layout
from registry.context import ModelContext
from registry.events import LabelsStored
from service.model import SERVED, is_of

WIDEST = 4  # windows that are judged together where one has too few rows


def closed(context: ModelContext, window: str) -> datetime:
    """The window's start; refuses what starts no window, and a window whose labels are not all in."""
    contract, name = context.contract, context.name
    try:
        start, end = contract.window_of(datetime.fromisoformat(window))
    except (ValueError, TypeError, OverflowError):  # no time, one with a zone, or one at the end of all times
        raise PerennialError(f"{window!r} starts no window of {name}; name its start without a zone, as "
                             f"2013-07-01T00:00:00") from None
    if start.isoformat() != window:
        raise PerennialError(f"{window} starts no window of {name}; the one around it starts at "
                             f"{start.isoformat()}: name that")
    if end > (labelled := labelled_until(context)):
        last = contract.window_of(labelled)[0] - contract.drift.window
        raise PerennialError(f"the window {window} of {name} is open: it ends at {end}, labels are in up to "
                             f"{labelled}; name {last.isoformat()} or an earlier one, or first run: "
                             f"perennial ingest {name}")
    return start


def labelled_until(context: ModelContext) -> datetime:
    return datetime.fromisoformat(data.newest(context.store, context.name).end)


def due(context: ModelContext) -> list[datetime]:
    """Closed windows to judge, from the first one with a champion's traffic on: those that nobody
    judged, without traffic too, and the newest ones that wait for labels, where some came."""
    started = first_traffic(context)
    if started is None:
        return []
    policy, newest, judged = context.contract.drift, labelled_until(context), context.ledger.state().windows
    labels, oldest = known_labels(context), newest - (WIDEST + 1) * policy.window

    def to_judge(start: datetime) -> bool:
        known = judged.get(start.isoformat())
        return (known is None
                or (start >= oldest and known.labels != labels and is_provisional(known.verdict, policy)))

    return [start
            for start in (started + policy.window * index
                          for index in range((newest - started) // policy.window)) if to_judge(start)]


def known_labels(context: ModelContext) -> str:
    """A name for all labels that are in, with events or for ids: another one whenever more came."""
    by_id = context.ledger.state().of_kind(LabelsStored)
    return " ".join([data.newest(context.store, context.name).digest,
                     *(stored.labels[:12] for stored in by_id[-1:])])


def first_traffic(context: ModelContext) -> datetime | None:
    """The start of the first window in which a champion answered; None before there was one."""
    return min(windows_of_traffic(context), default=None)


def windows_of_traffic(context: ModelContext) -> set[datetime]:
    versions, keys = champions(context), context.store.list(layout.traffic(layout.PROFILES, context.name))
    return {start for version, start in map(layout.parse_traffic, keys) if version in versions}


def stale(context: ModelContext) -> WindowVerdict | None:
    """A verdict where labels stay away though traffic goes on; None where they don't."""
    newest, window = max(windows_of_traffic(context), default=None), context.contract.drift.window
    if newest is None or newest - (labels := labelled_until(context)) < 2 * window:
        return None
    reason = (f"labels are in up to {labels}, traffic is of the window that starts at {newest}: nothing "
              f"after can be judged; look why `perennial ingest {context.name}` finds none")
    return WindowVerdict(outcome=Outcome.FAILED, kind=WindowKind.STALE, reasons=(reason,),
                         figures=WindowFigures(since=labels.isoformat()))


def champions(context: ModelContext) -> list[str]:
    """The champion and those before it, but for those that the
    contract has outgrown: their traffic can't be judged."""
    state = context.ledger.state()

    def is_current(version: str) -> bool:
        return is_of(context.contract,
                     json.loads(context.store.get(layout.version_file(context.name, version,
                                                                      f"{SERVED}.json"))))
    return [version for version in state.promoted if version == state.champion or is_current(version)]
