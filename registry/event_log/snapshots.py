"""Snapshots in the store: what the events of each segment amount to, so that nobody has to fold them again.

A snapshot names the fold that made it (by its key), the events that it is of, and the digest of the last of
them. One that is missing, cut off, changed, of another chain or behind is made anew from the events.
"""

import logging
from collections.abc import Sequence
from functools import reduce

from msgspec import Struct

from contracts.core.errors import NotFound
from registry import layout
from registry.event_log.entries import Encoded, Snapshot
from registry.event_log.log import EventLog, UntrustedHead
from registry.event_log.sealed import seal, unsealed
from registry.event_log.segments import Segment, read_head
from registry.events import Event
from registry.state import State, after, changed, earlier, fold, fold_version, forget_changes
from registry.store import Store

FORMAT = 1
OPENINGS = 3  # after which a head that other writers are always ahead of is done without
log = logging.getLogger(__name__)


class HeadIsBehind(Exception):
    """The newest snapshot is of events that the head, as it was read, has in no segment yet."""


class Extent(Struct, frozen=True, kw_only=True):
    """Which events a snapshot is of, without its entries."""

    end: int
    digest: str


class SegmentSnapshots:
    """The snapshots of a log's segments, read when they are asked for. `made`: the places
    of those that the store lacks and that were made here, of the events."""

    def __init__(self, log: EventLog):
        self._log, self._segments = log, log.segments
        self._known: dict[int, Snapshot] = {}
        self._growing: Snapshot | None = None
        self.made: set[int] = set()

    def __len__(self) -> int:
        return len(self._segments)

    def __getitem__(self, place: int) -> Snapshot:
        if place not in self._known:
            self._known[place] = self._right(place, self._read(place))
        return self._known[place]

    @property
    def end(self) -> int:
        return self._segments[-1].end if self._segments else 0

    def read_newest(self, is_head_new: bool) -> None:
        """Read the one that is still growing, while it is of no more events than are known; raises
        HeadIsBehind if it is of more, unless `is_head_new`: then it is made here."""
        if not self._segments:
            return
        place = len(self) - 1
        stored = self._read(place)
        if stored and stored.end > self.end and not is_head_new:
            raise HeadIsBehind
        self._known[place] = self._growing = self._right(place, stored)

    def before(self, length: int) -> "SegmentSnapshots":
        """Those of the first `length` events alone."""
        first = SegmentSnapshots(self._log)
        first._segments = tuple(segment for segment in self._segments if segment.end <= length)
        first._known = self._known
        return first

    def save(self, longer: Sequence[Segment], state: State) -> None:
        """Write the snapshots of segments that have grown, and those that were made because they were not
        there. `state`: the newest one. Raises Conflict if another writer was first."""
        while self.made:
            write(self._log.store, self._log.model, self[self.made.pop()])
        for segment in longer:
            known = self._growing if self._growing and self._growing.first == segment.first else None
            self._growing = grown(known, segment, earlier(state, segment.end))
            write(self._log.store, self._log.model, self._growing)
            forget_changes(state, segment.end)

    def _read(self, place: int) -> Snapshot | None:
        key = layout.snapshot(self._log.model, fold_version(), self._segments[place].first)
        try:
            return unsealed(self._log.store.get(key), Snapshot, FORMAT)
        except NotFound:
            return None

    def _right(self, place: int, stored: Snapshot | None) -> Snapshot:
        """What the segment's events amount to: the stored snapshot if it is of these events, else made of
        them, from the stored one on if that is of the first of them."""
        segment = self._segments[place]
        if stored and (stored.first, stored.end, stored.digest) == (segment.first, segment.end,
                                                                    segment.digest):
            return stored
        behind = stored if stored and self._is_of_first_events(stored, segment) else None
        first = behind.end if behind else segment.first
        older = [self[each] for each in range(place)] + ([behind] if behind else [])
        state = reduce(fold, self._log.events(first, segment.end), after(older, first))
        self.made.add(place)
        return grown(behind, segment, state)

    def _is_of_first_events(self, stored: Snapshot, segment: Segment) -> bool:
        if stored.first != segment.first or not stored.first < stored.end < segment.end:
            return False
        [last] = self._log.events(stored.end - 1, stored.end)
        return last.digest == stored.digest


def grown(snapshot: Snapshot | None, segment: Segment, state: State) -> Snapshot:
    """The snapshot of a segment; `state`: after its last event, folded from the end of `snapshot` on."""
    entries: Encoded = snapshot.entries if snapshot else {}
    more = changed(state, snapshot.end if snapshot else segment.first)
    merged = {name: entries.get(name, {}) | more.get(name, {}) for name in (entries | more)}
    return Snapshot(first=segment.first, end=segment.end, digest=segment.digest, entries=merged)


def write(store: Store, model: str, snapshot: Snapshot) -> None:
    """Write a snapshot in place of an older one of its segment; a newer one stays."""
    key = layout.snapshot(model, fold_version(), snapshot.first)
    try:
        stored, tag = store.read(key)
    except NotFound:
        return store.create(key, seal(snapshot, FORMAT))
    known = unsealed(stored, Extent, FORMAT)
    if known is None or known.end < snapshot.end or (known.end == snapshot.end
                                                     and known.digest != snapshot.digest):
        store.swap(key, seal(snapshot, FORMAT), tag)


def opened(store: Store, model: str) -> tuple[EventLog, SegmentSnapshots, State]:
    """The events of a model and the state after them, from copies where these are right; raises Corrupt."""
    for attempt in range(OPENINGS):
        events, recent = _read(store, model)
        snapshots = SegmentSnapshots(events)
        try:
            snapshots.read_newest(is_head_new=attempt == OPENINGS - 1)
        except HeadIsBehind:
            continue
        break
    return events, snapshots, reduce(fold, recent, after(snapshots, snapshots.end))


def _read(store: Store, model: str) -> tuple[EventLog, list[Event]]:
    """The log, and its events that are in no segment."""
    head, _ = read_head(store, model)
    events = EventLog(store, model, head)
    try:
        return events, [*events.kept_events(), *(events.prove() if head else events.all_events())]
    except UntrustedHead:
        log.warning("%s: %s is not of the events in %s, which are read one by one", model, layout.head(model),
                    store.address)
    events = EventLog(store, model)
    return events, events.all_events()
