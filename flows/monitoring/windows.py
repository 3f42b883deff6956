"""Which windows are closed, and which are due to be judged, or judged again."""

import json
from collections.abc import Mapping
from datetime import datetime

from contracts.core.errors import PerennialError
from contracts.core.retraining import is_provisional
from contracts.core.verdict import Outcome, WindowFigures, WindowKind, WindowVerdict
from registry import data, layout
from registry.context import ModelContext
from registry.events import Ingested, LabelsStored, WindowJudged
from registry.traffic import windows_of

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
    """The event time before which labelled rows are all in."""
    newest = data.newest(context.store, context.name)
    return newest.complete_until(context.contract.schedule.stale_after)


def due(context: ModelContext) -> list[datetime]:
    """Closed windows to judge, from the first with a champion's traffic on: those without a verdict; of the
    newest the provisional ones, if more labels are in; and those whose rows have changed since.

    Of windows in a row without any traffic only the first is judged: its verdict is about the whole gap.
    """
    with_traffic = windows_of_traffic(context)
    if not with_traffic:
        return []
    policy, until, judged = context.contract.drift, labelled_until(context), context.ledger.state().windows
    labels, oldest = known_labels(context), until - (MAX_WINDOWS + 1) * policy.window
    changes = _oldest_changes(context)

    def to_judge(start: datetime) -> bool:
        earlier = judged.get(start.isoformat())
        if earlier is None or _is_outdated(context, earlier, changes):
            return True
        return start >= oldest and earlier.labels != labels and is_provisional(earlier.verdict, policy)

    starts = sorted({*with_traffic, *(gap for gap in _gaps(context, with_traffic, until))})
    return [start for start in starts if start + policy.window <= until and to_judge(start)]


def _gaps(context: ModelContext, with_traffic: set[datetime], until: datetime) -> list[datetime]:
    """The first window of each stretch without traffic."""
    length = context.contract.drift.window
    return [start + length for start in with_traffic
            if start + length not in with_traffic and start + 2 * length <= until]


def traffic_gap(context: ModelContext, start: datetime) -> tuple[datetime, datetime] | None:
    """The stretch of several windows without traffic that begins with the window at `start`, until the next
    traffic or the last closed window; None if there is none."""
    length, with_traffic = context.contract.drift.window, windows_of_traffic(context, start)
    last_closed = context.contract.window_of(labelled_until(context))[0]
    end = min((later for later in with_traffic if later > start), default=last_closed)
    return (start, end) if start not in with_traffic and end - start > length else None


def is_outdated(context: ModelContext, judged: WindowJudged) -> bool:
    """Whether rows of a judged window came late or were corrected after its verdict."""
    return _is_outdated(context, judged, _oldest_changes(context))


def _is_outdated(context: ModelContext, judged: WindowJudged, changes: Mapping[str, str]) -> bool:
    end = (datetime.fromisoformat(judged.key) + context.contract.drift.window).isoformat()
    changed_from = changes.get((judged.labels or "").partition(" ")[0])
    return bool(changed_from and changed_from < end)


def _oldest_changes(context: ModelContext) -> dict[str, str]:
    """By the digest of a data version, the event time of the oldest row that later ones added or replaced;
    empty where they changed none."""
    changes, oldest = {}, ""
    for batch in reversed(context.ledger.state().of_kind(Ingested)):
        changes[batch.data] = oldest
        if batch.changed_from:
            oldest = min(oldest or batch.changed_from, batch.changed_from)
    return changes


def known_labels(context: ModelContext) -> str:
    """A text that names all labels that are in, and changes whenever more come."""
    by_id = context.ledger.state().of_kind(LabelsStored)
    return " ".join([data.newest(context.store, context.name).digest,
                     *(stored.labels[:12] for stored in by_id[-1:])])


def first_traffic(context: ModelContext) -> datetime | None:
    """The start of the first window in which a champion answered; None before there was one."""
    return min(windows_of_traffic(context), default=None)


def windows_of_traffic(context: ModelContext, since: datetime | None = None) -> set[datetime]:
    """The starts of the windows in which a champion answered, by default all, else those from `since` on."""
    return {start for version in champions(context)
            for start in windows_of(context, layout.PROFILES, version, since)}


def stale_labels(context: ModelContext) -> WindowVerdict | None:
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
    from service.model import SERVED, is_of  # imported here: an ingestion does without XGBoost, which is slow

    state = context.ledger.state()

    def is_current(version: str) -> bool:
        return is_of(context.contract,
                     json.loads(context.store.get(layout.version_file(context.name, version,
                                                                      f"{SERVED}.json"))))
    return [version for version in state.promoted if version == state.champion or is_current(version)]
