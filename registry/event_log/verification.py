"""Verify a ledger from its first event: each event, its link to the one before, and every copy of it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from contracts.core.errors import Conflict, Corrupt, NotFound
from registry import layout
from registry.event_log.chain import as_line, read_event
from registry.event_log.entries import Snapshot
from registry.event_log.log import READERS
from registry.event_log.sealed import seal, unsealed
from registry.event_log.segments import Head, Segment, read_head
from registry.event_log.snapshots import FORMAT, grown
from registry.events import Event
from registry.state import State, after, earlier, fold, fold_version
from registry.store import Store

PORTION = 1_000  # events that are read at once
REPAIR = "the events are right: perennial verify --repair writes it anew from them"
Progress = Callable[[int, int], None]
"""Told the number of events verified so far, and of all."""


class Fault(Struct, frozen=True, kw_only=True):
    """What is wrong with an object of the store, and what to do. `repair`: its right content, where the
    events give it, and the tag of what is there."""

    key: str
    what: str
    remedy: str
    repair: tuple[bytes, str | None] | None = None


class Verification(Struct, kw_only=True):
    """What was verified: so many `events`, and so many `segments` and `snapshots` that were there."""

    model: str
    events: int = 0
    segments: int = 0
    snapshots: int = 0
    faults: list[Fault] = []

    def add(self, key: str, what: str, remedy: str, repair: tuple[bytes, str | None] | None = None) -> None:
        self.faults.append(Fault(key=key, what=what, remedy=remedy, repair=repair))


def verify(store: Store, model: str, progress: Progress = lambda done, of: None) -> Verification:
    """Read every event of a model by itself, and every copy, and compare."""
    found, (head, tag) = Verification(model=model), read_head(store, model)
    if head is None and tag is not None:
        found.add(layout.head(model), "is cut off, changed, or of a later release",
                  "nothing: it is not believed, and written anew with one of the next events")
    numbers = {number for key in store.list(layout.events(model))
               if (number := layout.event_number(key)) is not None}
    walk = _Walk(store, found, head, max(numbers, default=-1) + 1)
    for first in range(0, walk.length, PORTION):
        portion = range(first, min(first + PORTION, walk.length))
        for seq, content in zip(portion, _contents(store, model, portion)):
            walk.take(seq, content)
        progress(found.events, walk.length)
    walk.finish()
    return found


def repair(store: Store, found: Verification) -> list[Fault]:
    """Write the copies anew that the events give; returns the faults that are left."""
    left = []
    for fault in found.faults:
        if fault.repair is None:
            left.append(fault)
            continue
        content, tag = fault.repair
        try:
            store.create(fault.key, content) if tag is None else store.swap(fault.key, content, tag)
        except Conflict:
            left.append(Fault(key=fault.key, what="was changed meanwhile", remedy="verify once more"))
    return left


def _contents(store: Store, model: str, numbers: Sequence[int]) -> Iterator[bytes | None]:
    """Stored events; None for one that is missing."""
    def content(seq: int) -> bytes | None:
        try:
            return store.get(layout.event(model, seq))
        except NotFound:
            return None

    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(content, numbers)


class _Walk:
    """Over the events from the first on, with the copies of each beside it, and the state as far as no event
    is wrong."""

    def __init__(self, store: Store, found: Verification, head: Head | None, length: int):
        self.store, self.model, self.found, self.head = store, found.model, found, head
        self.length = max(length, head.end if head else 0)
        self._prev: str | None = ""
        self._is_head_right = True
        self._segments = list(head.segments) if head else []
        self._expected: list[Snapshot] = []
        self._state: State | None = State()
        self._originals: list[bytes | None] = []  # of the present segment, or after the last one
        self._copies = self._lines_of_next()

    def take(self, seq: int, content: bytes | None) -> None:
        """Verify the event of this number."""
        event = self._verified(seq, content)
        self._prev = event.digest if event else None
        self._originals.append(as_line(content) if content is not None and event else None)
        self._state = fold(self._state, event) if event and self._state else None
        self.found.events += 1
        if self.head and seq + 1 == self.head.end:
            self._is_head_right &= self._prev in (None, self.head.digest)
        if self._segments and seq + 1 == self._segments[0].end:
            self._finish_segment(self._segments.pop(0))

    def _verified(self, seq: int, content: bytes | None) -> Event | None:
        key = layout.event(self.model, seq)
        if content is None:
            self.found.add(key, f"event {seq} is missing", f"restore it from a backup{self._copy_of(seq)}")
            return None
        try:
            event = read_event(content, seq, None, self.model, self.store.address)
        except Corrupt as error:
            self.found.add(key, str(error), f"restore it from a backup{self._copy_of(seq)}")
            return None
        if self._prev not in (None, event.prev):
            self.found.add(key, f"event {seq} names {event.prev[:12]} as the digest of the event before it, "
                                f"which has {str(self._prev)[:12]}: one of the two was changed",
                           f"restore both from a backup{self._copy_of(seq - 1)}")
        return event

    def _copy_of(self, seq: int) -> str:
        """Where a copy of an event is, if one is right."""
        place = len(self._originals) - (self.found.events - seq)
        if self._copies is None or not 0 <= place < len(self._copies):
            return ""
        try:
            read_event(self._copies[place], seq, None, self.model, self.store.address)
        except Corrupt:
            return ""
        if self._segments:
            where = f"line {place + 1} of {layout.segment(self.model, self._segments[0].first)}"
        else:
            where = f"among the events of {layout.head(self.model)}"
        return f"; a copy of event {seq} with its digest is {where}"

    def _lines_of_next(self) -> list[bytes] | None:
        """The copies of the events that come next; None if there are none."""
        if not self._segments:
            return [bytes(line) for line in self.head.events] if self.head else None
        try:
            return self.store.get(layout.segment(self.model, self._segments[0].first)).split(b"\n")
        except NotFound:
            return None

    def _finish_segment(self, segment: Segment) -> None:
        self._is_head_right &= self._prev in (None, segment.digest)
        self._compare_segment(segment)
        if self._state:
            expected = grown(None, segment, self._state)
            self._compare_snapshot(segment, self._state)
            self._expected.append(expected)
            self._state = after([*self._expected], segment.end) if self._segments else self._state
        self._originals, self._copies = [], self._lines_of_next()

    def _compare_segment(self, segment: Segment) -> None:
        key, lines = layout.segment(self.model, segment.first), (self._copies or [])[:len(self._originals)]
        self.found.segments += self._copies is not None
        wrong = next((segment.first + place for place, original in enumerate(self._originals)
                      if original is not None and lines[place:place + 1] != [original]), None)
        if wrong is None:
            return
        originals = [line for line in self._originals if line is not None]
        is_whole = len(originals) == len(self._originals)
        tag = self.store.read(key)[1] if self._copies is not None else None
        self.found.add(key, "is missing" if tag is None else f"does not hold event {wrong} as appended",
                       REPAIR if is_whole else "restore the events first, then verify once more",
                       (b"".join(line + b"\n" for line in originals), tag) if is_whole else None)

    def _compare_snapshot(self, segment: Segment, state: State) -> None:
        """The snapshot of this code's fold, if there is one: it may be behind, and then counts as far as it
        goes."""
        key = layout.snapshot(self.model, fold_version(), segment.first)
        try:
            content, tag = self.store.read(key)
        except NotFound:
            return
        self.found.snapshots += 1
        stored = unsealed(content, Snapshot, FORMAT)
        until = min(stored.end, segment.end) if stored and stored.end > segment.first else segment.end
        expected = grown(None, segment, earlier(state, until))
        if stored is None or (stored.end <= segment.end and _values(stored) != _values(expected)):
            self.found.add(key, "is cut off or changed" if stored is None else
                           "is not what the events amount to", REPAIR,
                           (seal(grown(None, segment, state), FORMAT), tag))

    def finish(self) -> None:
        """Verify the head, whose events come after the last segment's."""
        if self.head is None:
            return
        copies = [bytes(line) for line in self.head.events]
        originals = self._originals[:len(copies)]
        is_same = all(original in (None, copy) for original, copy in zip(originals, copies))
        if not (is_same and self._is_head_right):
            self.found.add(layout.head(self.model), "does not list the events as they were appended",
                           "nothing: it is not believed, and written anew with one of the next events")


def _values(snapshot: Snapshot) -> dict[str, dict[str, bytes]]:
    return {collection: {key: bytes(value) for key, value in values.items()}
            for collection, values in snapshot.entries.items()}
