"""Canonical JSON and the sha256 digests taken over it."""

import hashlib
import inspect
import json
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object, as it is read from a file or a request, or about to be written."""


def digest_of(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False,
                      allow_nan=False).encode()


def plain_json(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def source_of(thing: Any) -> str | None:
    return inspect.getsource(thing).strip() if thing is not None else None
