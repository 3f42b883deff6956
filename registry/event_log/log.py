"""The chain of a model's events in a store: read from copies where these are whole, appended to, copied."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import msgspec

from contracts.core.errors import Corrupt, NotFound
from registry import layout
from registry.event_log import segments
from registry.event_log.chain import as_line, read_event
from registry.event_log.segments import Head, Marks, Segment
from registry.events import Event
from registry.store import Store

ONE_BY_ONE = 8  # new events that are asked for by their numbers; more are listed, and read by
READERS = 10  # threads, as many as boto3 keeps connections
log = logging.getLogger(__name__)


class UntrustedHead(Exception):
    """The head does not end with an event of the chain, or its own events are not linked."""


class EventLog:
    """The events of one model as far as they are known: `length` of them, the last one with `digest`."""

    def __init__(self, store: Store, model: str, head: Head | None = None):
        """`head`: as it was read; it is believed once `new_events` has met an event that it ends with or
        precedes."""
        self.store, self.model = store, model
        self.segments = head.segments if head else ()
        self._first_kept = head.covered if head else 0
        self._kept = [bytes(line) for line in head.events] if head else []
        self.length, self.digest = (head.end, head.digest) if head else (0, "")
        self._head_end = self.length  # of the head that is known last

    @property
    def covered(self) -> int:
        """How many events are in segments, as far as is known."""
        return self.segments[-1].end if self.segments else 0

    def kept_events(self) -> list[Event]:
        """The events that the head held; raises UntrustedHead if they do not lead to its end."""
        prev = self.segments[-1].digest if self.segments else ""
        events: list[Event] = []
        try:
            for seq, line in enumerate(self._kept, start=self._first_kept):
                events.append(self._read(line, seq, prev))
                prev = events[-1].digest
        except Corrupt as error:
            raise UntrustedHead from error
        if (self._first_kept + len(events), prev) != (self.length, self.digest):
            raise UntrustedHead
        return events

    def prove(self) -> list[Event]:
        """The events after the head's, which prove that it ends with an event of the chain; if there are
        none, that event itself does. Raises UntrustedHead, or Corrupt if an event is missing."""
        try:
            events = self.new_events()
        except Corrupt as error:
            raise UntrustedHead from error
        if not events and self.length:
            try:
                stored = self._read(self._get(self.length - 1), self.length - 1, None)
            except NotFound:
                raise self._missing(self.length - 1) from None
            except Corrupt as error:
                raise UntrustedHead from error
            if stored.digest != self.digest:
                raise UntrustedHead
        if self._holds(self.length + 1):
            raise self._missing(self.length)
        return events

    def all_events(self) -> list[Event]:
        """Of a chain without a head: all of them, each read by itself."""
        return self._append_listed()

    def new_events(self) -> list[Event]:
        """The events that were appended since; raises Corrupt."""
        events: list[Event] = []
        while len(events) < ONE_BY_ONE:
            try:
                content = self._get(self.length)
            except NotFound:
                return events
            events.append(self._keep(content))
        return events + self._append_listed()

    def _append_listed(self) -> list[Event]:
        after = layout.event(self.model, self.length - 1) if self.length else ""
        listed = (layout.event_number(key) for key in self.store.list(layout.events(self.model), after))
        numbers = sorted(number for number in listed if number is not None and number >= self.length)
        if gap := next((due for due, number in enumerate(numbers, self.length) if due != number), None):
            raise self._missing(gap)
        return [self._keep(content) for content in self._get_many(numbers)]

    def append(self, content: bytes) -> Event:
        """Append a stored event that follows the last one; raises Conflict if another writer was first."""
        self.store.create(layout.event(self.model, self.length), content)
        return self._keep(content)

    def _keep(self, content: bytes) -> Event:
        event = self._read(content, self.length, self.digest)
        self._kept.append(as_line(content))
        self.length, self.digest = self.length + 1, event.digest
        return event

    def _read(self, content: bytes, seq: int, prev: str | None) -> Event:
        return read_event(content, seq, prev, self.model, self.store.address)

    def _get(self, seq: int) -> bytes:
        return self.store.get(layout.event(self.model, seq))

    def _get_many(self, numbers: Sequence[int]) -> Iterator[bytes]:
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(numbers), 1_000):
                yield from pool.map(self._get, numbers[start:start + 1_000])

    def _holds(self, seq: int) -> bool:
        try:
            self._get(seq)
        except NotFound:
            return False
        return True

    def _missing(self, seq: int) -> Corrupt:
        return Corrupt(f"{self.model}: event {seq} is missing in {self.store.address}, and events after it "
                       f"were appended; restore {layout.event(self.model, seq)} from a backup")

    def events(self, first: int, end: int) -> list[Event]:
        """The known events [first, end), each and the links between them checked; raises Corrupt."""
        found: list[Event] = []
        for start, lines, is_copy in self._parts(first, end):
            for seq, line in enumerate(lines, start):
                prev = found[-1].digest if found else "" if seq == 0 else None
                found.append(self._read_part(line, seq, prev, is_copy))
        return found

    def events_with(self, texts: Sequence[str]) -> list[Event]:
        """The known events that hold one of the texts in a value, each checked; raises Corrupt."""
        wanted = [msgspec.json.encode(text)[1:-1] for text in texts]
        return [self._read_part(line, seq, None, is_copy)
                for start, lines, is_copy in self._parts(0, self.length)
                for seq, line in enumerate(lines, start) if any(text in line for text in wanted)]

    def _read_part(self, line: bytes, seq: int, prev: str | None, is_copy: bool) -> Event:
        """An event of a part; in the place of a copy that is not right, the event as it was appended."""
        try:
            return self._read(line, seq, prev)
        except Corrupt:
            if not is_copy:
                raise
            return self._read(self.originals(seq, seq + 1)[0], seq, prev)

    def last_until(self, time: datetime) -> int:
        """The number of events up to the last one of this time or an earlier one."""
        for start, end, earliest in reversed([*self._spans()]):
            if earliest is None or datetime.fromisoformat(earliest) <= time:
                [(_, lines, _)] = self._parts(start, end)
                for seq in range(end - 1, start - 1, -1):
                    at = msgspec.json.decode(lines[seq - start], type=Marks).at
                    if datetime.fromisoformat(at) <= time:
                        return seq + 1
        return 0

    def _spans(self) -> Iterator[tuple[int, int, str | None]]:
        """First, end and earliest time of each part that is read at once."""
        yield from ((segment.first, segment.end, segment.earliest) for segment in self.segments)
        if self.length > self.covered:
            yield self.covered, self.length, None

    def _parts(self, first: int, end: int) -> Iterator[tuple[int, Sequence[bytes], bool]]:
        """The stored events [first, end) in parts, each with its first number and whether it is a copy that
        may be doubted."""
        for segment in self.segments:
            if segment.first < end and first < segment.end:
                lines = segments.read_segment(self.store, self.model, segment)
                if lines is None:
                    log.warning("%s: the segment %s is not whole; its events are read one by one", self.model,
                                layout.segment(self.model, segment.first))
                start, stop = max(first, segment.first), min(end, segment.end)
                yield (start, self.originals(start, stop), False) if lines is None else (
                    start, lines[start - segment.first:stop - segment.first], True)
        if end > self.covered and first < end:
            start = max(first, self.covered)
            yield start, self._kept[start - self._first_kept:end - self._first_kept], False

    def originals(self, first: int, end: int) -> list[bytes]:
        """The events [first, end) as they were appended, each read by itself."""
        try:
            return [as_line(content) for content in self._get_many(range(first, end))]
        except NotFound as error:
            raise Corrupt(f"{self.model}: an event is missing: {error}; restore it from a backup") from error

    def save(self) -> tuple[Segment, ...]:
        """Write the head anew if it is behind, and move its events to segments if they are many; returns the
        segments that have grown. What another writer does at the same time is left to that one."""
        if self._is_head_new():
            return ()
        head, tag = segments.read_head(self.store, self.model)
        known = head if head and head.covered >= self._first_kept else None
        if known is None and self._first_kept:
            return ()  # it was removed or changed meanwhile: the next process writes it from the events
        self._head_end = known.end if known else 0
        if self._is_head_new():
            return ()
        listed = known.segments if known else ()
        self._forget(listed)
        lines = self._kept
        grown: list[Segment] = []
        is_large = sum(map(len, lines)) >= segments.HEAD_BYTES
        while len(lines) >= segments.HEAD_EVENTS or (is_large and lines):
            segment = self._grow(listed[-1] if listed and not listed[-1].is_full else None, lines)
            listed = (*listed[:-1], segment) if listed and listed[-1].first == segment.first else (
                *listed, segment)
            grown.append(segment)
            lines = self._kept[segment.end - self._first_kept:]
        segments.write_head(self.store, self.model,
                            Head(end=self.length, digest=self.digest, segments=listed,
                                 events=tuple(msgspec.Raw(line) for line in lines)), tag)
        self._head_end = self.length
        self._forget(listed)
        return tuple(grown)

    def _is_head_new(self) -> bool:
        """Whether so few events came after the head that they are read one by one."""
        return self.length - self._head_end < (segments.EVERY if self._head_end else segments.WITHOUT_HEAD)

    def _grow(self, segment: Segment | None, lines: Sequence[bytes]) -> Segment:
        """Write the next events to a segment, or to a new one."""
        longer = segments.extended(segment, self._first_kept + len(self._kept) - len(lines), lines)
        before: Sequence[bytes] = ()
        if segment:
            before = (segments.read_segment(self.store, self.model, segment)
                      or self.originals(segment.first, segment.end))
        taken = longer.end - (segment.end if segment else longer.first)
        segments.write_segment(self.store, self.model, longer, [*before, *lines[:taken]])
        return longer

    def _forget(self, listed: tuple[Segment, ...]) -> None:
        """Keep what no segment holds."""
        self.segments = listed
        self._kept = self._kept[self.covered - self._first_kept:]
        self._first_kept = self.covered
