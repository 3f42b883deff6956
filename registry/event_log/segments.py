"""Where a ledger's events are read from: copies in segments, the newest ones in a head, the rest one by one.

A segment holds the events from a number on, one a line. It grows at its end until it is full and then never
changes, so that a reader finds at least what the head that it read says. The head lists the segments and has
the events after them. Both are copies: what holds are the events' own objects.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from contracts.core.errors import NotFound
from registry import layout
from registry.event_log.sealed import seal, unsealed
from registry.store import Store

FORMAT = 1
# A segment is full with either; so many that 100,000 events are read at once by few requests.
SEGMENT_EVENTS, SEGMENT_BYTES = 32_768, 16 * 2**20
# A head with either moves its events to the segments.
HEAD_EVENTS, HEAD_BYTES = 512, 512 * 2**10
# The events of a ledger that is read without a head, and those after which a head is written anew: a cold
# reader reads fewer than so many one by one.
WITHOUT_HEAD, EVERY = 16, 3


class Segment(Struct, frozen=True, kw_only=True):
    """The events [`first`, `end`), in `size` bytes. `digest`: of the last one; `earliest`: of their times."""

    first: int
    end: int
    digest: str
    size: int
    earliest: str

    @property
    def is_full(self) -> bool:
        return self.end - self.first >= SEGMENT_EVENTS or self.size >= SEGMENT_BYTES


class Head(Struct, frozen=True, kw_only=True):
    """All segments, and the events up to `end` after them as they are stored; `digest`: of the last one."""

    end: int
    digest: str
    segments: tuple[Segment, ...] = ()
    events: tuple[Raw, ...] = ()

    @property
    def covered(self) -> int:
        """How many events are in segments."""
        return self.segments[-1].end if self.segments else 0


class Marks(Struct, frozen=True):
    """What of a stored event is needed to list it in a segment."""

    digest: str
    at: str


def read_head(store: Store, model: str) -> tuple[Head | None, str | None]:
    """The head, None where there is none that is whole, and the tag of what is there."""
    try:
        stored, tag = store.read(layout.head(model))
    except NotFound:
        return None, None
    return unsealed(stored, Head, FORMAT), tag


def write_head(store: Store, model: str, head: Head, tag: str | None) -> None:
    """Raises Conflict if another writer has changed it since it was read."""
    if tag is None:
        store.create(layout.head(model), seal(head, FORMAT))
    else:
        store.swap(layout.head(model), seal(head, FORMAT), tag)


def read_segment(store: Store, model: str, segment: Segment) -> list[bytes] | None:
    """The stored events of a segment; None where it is missing or does not hold these."""
    try:
        stored = store.get(layout.segment(model, segment.first))
    except NotFound:
        return None
    lines = stored.split(b"\n")[:segment.end - segment.first]
    try:
        is_whole = (len(lines) == segment.end - segment.first
                    and msgspec.json.decode(lines[-1], type=Marks).digest == segment.digest)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    return lines if is_whole else None


def extended(segment: Segment | None, first: int, lines: Sequence[bytes]) -> Segment:
    """A segment, or a new one that begins with event `first`, with the next events: as many as it takes."""
    size, taken = segment.size if segment else 0, 0
    begin, end = (segment.first, segment.end) if segment else (first, first)
    while taken < len(lines) and end + taken - begin < SEGMENT_EVENTS and size < SEGMENT_BYTES:
        size += len(lines[taken]) + 1
        taken += 1
    marks = [msgspec.json.decode(line, type=Marks) for line in lines[:taken]]
    earliest = min([mark.at for mark in marks] + ([segment.earliest] if segment else []))
    return Segment(first=begin, end=end + taken, digest=marks[-1].digest, size=size, earliest=earliest)


def write_segment(store: Store, model: str, segment: Segment, lines: Sequence[bytes]) -> None:
    """Write a segment of these events. One that is longer and begins with them stays, so that no segment
    gets shorter. Raises Conflict if another writer was first."""
    content = b"".join(line + b"\n" for line in lines)
    try:
        stored, tag = store.read(layout.segment(model, segment.first))
    except NotFound:
        return store.create(layout.segment(model, segment.first), content)
    if not stored.startswith(content):
        store.swap(layout.segment(model, segment.first), content, tag)
