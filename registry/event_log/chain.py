"""A stored event: written, and read with its digest and its link to the event before checked."""

import json
from datetime import datetime

from msgspec import ValidationError

from contracts.core.digests import JsonObject, canonical_json, digest_of
from contracts.core.errors import Corrupt
from registry import layout
from registry.events import FORMAT, Data, Event, decode_data, encode_data, kind_of


def link(seq: int, prev: str, at: datetime, by: str, data: Data) -> bytes:
    """The stored form of an event that follows the one with the digest `prev`. `at`: UTC."""
    hashed = {"seq": seq, "prev": prev, "at": at.isoformat(timespec="microseconds"), "by": by,
              "kind": kind_of(data), "data": encode_data(data)}
    return canonical_json({"format": FORMAT, "digest": digest_of(hashed), **hashed})


def read_event(content: bytes, seq: int, prev: str | None, model: str, address: str) -> Event:
    """The event of number `seq` in its stored form; raises Corrupt if it is not that one, does not follow the
    one with the digest `prev` (None: unknown), or is of a later release. `address`: the store's."""
    try:
        stored = json.loads(content)
        stored_format, digest = stored.pop("format"), stored.pop("digest")
        is_linked = (type(stored["seq"]) is int and (stored["seq"], digest_of(stored)) == (seq, digest)
                     and prev in (None, stored["prev"]))
    except (ValueError, KeyError, TypeError, AttributeError):  # cut off, or not an event's JSON
        is_linked = False
    if not is_linked:
        raise Corrupt(f"{model}: event {seq} is not the one that was appended; restore "
                      f"{layout.event(model, seq)} in {address} from a backup")
    return _typed(stored, digest, stored_format, model)


def _typed(stored: JsonObject, digest: str, stored_format: int, model: str) -> Event:
    try:
        data = decode_data(stored["kind"], stored["data"], stored_format)
    except (ValidationError, LookupError, TypeError) as error:
        raise Corrupt(f"{model}: event {stored['seq']} is of format {stored_format} and kind "
                      f"{stored['kind']!r}, which this release can't read ({error}); it reads up to "
                      f"format {FORMAT}: upgrade perennial") from error
    return Event(seq=stored["seq"], prev=stored["prev"], at=stored["at"], by=stored["by"], digest=digest,
                 data=data)


def as_line(content: bytes) -> bytes:
    """A stored event on one line: as it is, unless somebody has restored it with line breaks."""
    if b"\n" not in content:
        return content
    try:
        return canonical_json(json.loads(content))
    except ValueError:  # no event, which whoever reads it is told
        return content.replace(b"\n", b" ")
