"""The profiles of a model's traffic, in the spool of this machine and in the store; and which windows had
traffic."""

import logging
import signal
from contextlib import suppress
from datetime import datetime
from threading import Event
from typing import TYPE_CHECKING

from contracts.core.errors import Conflict, Corrupt, NotFound, Unavailable
from registry import layout
from registry.context import ModelContext
from registry.layout import PROFILES
from registry.predictions import ship_predictions

if TYPE_CHECKING:
    from service.profiles import WindowCounts

log = logging.getLogger("perennial.traffic")


def ship(context: ModelContext, wait_for_batch: bool = False) -> int:
    """Copy the replicas' profiles and predictions from this machine's
    spool to the store, newer over older; returns how many were new.

    A file that can't be read is renamed to `.junk`, for a person to look at.
    """
    shipped, junk = ship_predictions(context, wait_for_batch), []
    for path in sorted(context.spool.glob(f"{context.name}/*/*/*.bin")):
        try:
            key = layout.from_spool(PROFILES, context.spool, path)
            shipped += _put_profile(context, key, path.read_bytes())
        except Corrupt:
            junk.append(str(path.replace(path.with_suffix(".junk"))))
    if junk:
        log.warning("%d files are not profiles and were renamed; look at them: %s", len(junk),
                    ", ".join(junk))
    return shipped


def ship_periodically(context: ModelContext, seconds: float) -> int:
    """Ship every so many seconds, and have the replicas that share the folder answer as the champion if it is
    recalibrated; SIGTERM and SIGINT end it after a last time, when the replica in the same pod has written
    its traffic."""
    stopping, shipped = Event(), 0
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stopping.set())
    _publish(context)
    while not stopping.wait(seconds):
        shipped += ship(context, wait_for_batch=True)
        _publish(context)
    return shipped + ship(context)


def _publish(context: ModelContext) -> None:
    """Tell the replicas the champion's layer; a store that does not answer is asked again the next time."""
    from registry.layers import publish_champion  # imported here: scipy is slow, and `status` does without

    try:
        publish_champion(context)
    except (Unavailable, OSError) as error:
        log.warning("%s: the champion's layer could not be read: %s", context.name, error)


def _put_profile(context: ModelContext, key: str, content: bytes) -> bool:
    """Put a profile in the store, unless one that counts as much is there; tries again after a conflict."""
    while True:
        try:
            stored, tag = context.store.read(key)
        except NotFound:
            stored, tag = None, ""
        # A replica's profile only grows.
        if stored == content or _records(content) <= (_records(stored) if stored else -1):
            return False
        with suppress(Conflict):
            context.store.swap(key, content, tag) if tag else context.store.create(key, content)
            return True


def _records(content: bytes) -> int:
    """The number of records that a profile counts; raises Corrupt."""
    from service import profiles  # whylogs is slow to import

    try:
        counts = profiles.read_counts(content)
        return counts.rows + counts.bad + counts.unprofiled
    except Exception as error:  # whylogs raises errors of all kinds on other bytes
        raise Corrupt(f"{len(content)} bytes are not a profile: {error}; remove them") from error


def window_counts(context: ModelContext, version: str, start: datetime) -> "WindowCounts":
    """The counts of all replicas of a version in a window."""
    from service.profiles import NO_TRAFFIC, read_counts  # whylogs is slow to import

    keys = layout.traffic_keys(context.store.list(layout.traffic(PROFILES, context.name, version, start)))
    return sum((read_counts(context.store.get(key)) for key in keys), NO_TRAFFIC)


def windows_of(context: ModelContext, kind: str, version: str,
               since: datetime | None = None) -> list[datetime]:
    """The windows for which a version has PROFILES or PREDICTIONS, oldest first; by the names of folders
    alone, however many files these hold. `since`: those that start then or later."""
    versions_folder = layout.traffic(kind, context.name, version)
    after = layout.traffic(kind, context.name, version, since) if since else ""
    names = context.store.folders(versions_folder, after)
    return [start for name in names if (start := layout.parse_window(name))]


def newest_window(context: ModelContext) -> datetime | None:
    """The newest window with traffic of any version, champion or not. Windows before the last judged one are
    not looked through, unless there is none after."""
    judged = max(context.ledger.state().windows, default=None)
    versions = context.store.folders(layout.traffic(PROFILES, context.name))
    for since in (datetime.fromisoformat(judged), None) if judged else (None,):
        found = [start for version in versions
                 for start in windows_of(context, PROFILES, version, since)[-1:]]
        if found:
            return max(found)
    return None
