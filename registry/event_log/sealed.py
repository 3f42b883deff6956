"""Objects that are derived and may be cut off, changed or of another release: each carries its own sha256."""

from hashlib import sha256
from typing import TypeVar

import msgspec
from msgspec import DecodeError, Struct, ValidationError

Content = TypeVar("Content", bound=Struct)


class Seal(Struct, frozen=True, kw_only=True):
    """The first line of a sealed object; the second one is the content."""

    format: int
    sha256: str


def seal(content: Struct, stored_format: int) -> bytes:
    body = msgspec.json.encode(content)
    return msgspec.json.encode(Seal(format=stored_format, sha256=sha256(body).hexdigest())) + b"\n" + body


def unsealed(stored: bytes, type_: type[Content], stored_format: int) -> Content | None:
    """The content; None for what is not whole, or is of another format."""
    first, _, body = stored.partition(b"\n")
    try:
        mark = msgspec.json.decode(first, type=Seal)
        if (mark.format, mark.sha256) != (stored_format, sha256(body).hexdigest()):
            return None
        return msgspec.json.decode(body, type=type_)
    except (DecodeError, ValidationError):
        return None
