"""Which windows are closed, and which are due to be judged, or judged again."""

import json
from datetime import datetime

from contracts.core.errors import PerennialError
from contracts.core.retraining import is_provisional
from contracts.core.verdict import Outcome, WindowFigures, WindowKind, WindowVerdict
from registry import data, layout
from registry.context import ModelContext
from registry.events import LabelsStored
from service.model import SERVED, is_of

MAX_WINDOWS = 4  # that are judged together where one has too few rows


def closed(context: ModelContext, window: str) -> datetime:
    """The start of a closed window; raises PerennialError if `window`
    is not a window's start, or its labels are not all in yet."""
    contract, name = context.contract, context.name
    try:
        start, end = contract.window_of(datetime.fromisoformat(window))
    except (ValueError, TypeError, OverflowError):  # not a time, one with a zone, or too late a year
        raise PerennialError(f"{window!r} is not a window of {name}; name its start without a zone, as "
                             f"2013-07-01T00:00:00") from None
    if start.isoformat() != window:
        raise PerennialError(f"{window} is not a window of {name}; the one around it starts at "
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
    """Closed windows to judge, from the first with a champion's traffic on: those without a verdict,
    with or without traffic, and of the newest the provisional ones, if more labels are in."""
    started = first_traffic(context)
    if started is None:
        return []
    policy, newest, judged = context.contract.drift, labelled_until(context), context.ledger.state().windows
    labels, oldest = known_labels(context), newest - (MAX_WINDOWS + 1) * policy.window

    def to_judge(start: datetime) -> bool:
        earlier = judged.get(start.isoformat())
        return (earlier is None
                or (start >= oldest and earlier.labels != labels and is_provisional(earlier.verdict, policy)))

    return [start
            for start in (started + policy.window * index
                          for index in range((newest - started) // policy.window)) if to_judge(start)]


def known_labels(context: ModelContext) -> str:
    """A text that names all labels that are in, and changes whenever more come."""
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
    """A verdict that labels are missing though there is newer traffic; None if they are not."""
    newest, window = max(windows_of_traffic(context), default=None), context.contract.drift.window
    if newest is None or newest - (labels := labelled_until(context)) < 2 * window:
        return None
    reason = (f"labels are in up to {labels}, traffic is of the window that starts at {newest}: nothing "
              f"after can be judged; look why `perennial ingest {context.name}` finds none")
    return WindowVerdict(outcome=Outcome.FAILED, kind=WindowKind.STALE, reasons=(reason,),
                         figures=WindowFigures(since=labels.isoformat()))


def champions(context: ModelContext) -> list[str]:
    """The champion and earlier ones; without those whose features or classes
    the contract has changed since, as their traffic can't be judged."""
    state = context.ledger.state()

    def is_current(version: str) -> bool:
        return is_of(context.contract,
                     json.loads(context.store.get(layout.version_file(context.name, version,
                                                                      f"{SERVED}.json"))))
    return [version for version in state.promoted if version == state.champion or is_current(version)]
