"""The values that a fold of events has put under keys: a log with versions, and snapshots of what is older.

A value is kept with the number of the event that put it and is never overwritten, so that the state after an
earlier event stays what it was. What snapshots hold is decoded when it is asked for, and not before.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from msgspec import Raw, Struct

Value = TypeVar("Value")
Encoded = dict[str, dict[str, Raw]]
"""Values as JSON, by collection and key, in the order in which the keys were put first."""


class Snapshot(Struct, frozen=True, kw_only=True):
    """What the events [`first`, `end`) changed: of each key the value after the last of them, whose digest
    is `digest`."""

    first: int
    end: int
    digest: str
    entries: Encoded


class Snapshots(Protocol):
    """Snapshots that follow each other, the oldest first; one is read when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Snapshot: ...


class Entries:
    """Values by collection and key after `length` events, of which those before `since` are in snapshots."""

    def __init__(self, types: Mapping[str, object], older: Snapshots = (), since: int = 0):
        self.length = since
        self._types, self._older = types, older
        self._versions: dict[str, dict[str, list[tuple[int, object]]]] = {}
        self._changes: list[tuple[int, str, str]] = []
        self._older_keys: dict[str, dict[str, int]] = {}
        self._decoded: dict[str, dict[str, object]] = {}
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}

    def put(self, collection: str, key: str, value: object) -> None:
        """Put a value by the event that is folded now, whose number is `length`."""
        self._versions.setdefault(collection, {}).setdefault(key, []).append((self.length, value))
        self._changes.append((self.length, collection, key))

    def get(self, collection: str, key: str, length: int) -> object | None:
        """The value after `length` events; None if there was none."""
        for number, value in reversed(self._versions.get(collection, {}).get(key, ())):
            if number < length:
                return value
        return self._older_value(collection, key)

    def keys(self, collection: str, length: int) -> list[str]:
        """The keys after `length` events, in the order in which they were put first."""
        older = self._keys_of_older(collection)
        versions = list(self._versions.get(collection, {}).items())
        return [*older, *(key for key, [first, *_] in versions if first[0] < length and key not in older)]

    def changed(self, first: int, end: int) -> Encoded:
        """The keys that the events [first, end) have put, none of which is in a snapshot,
        with their values after these, as JSON."""
        between = self._changes[bisect_left(self._changes, (first,)):bisect_left(self._changes, (end,))]
        values: Encoded = {}
        for _, collection, key in between:
            values.setdefault(collection, {})[key] = encoded(self.get(collection, key, end))
        return values

    def forget_changes(self, end: int) -> None:
        """Keep the values, but not which of the events before `end` put them."""
        del self._changes[:bisect_left(self._changes, (end,))]

    def _older_value(self, collection: str, key: str) -> object | None:
        decoded = self._decoded.setdefault(collection, {})
        if key not in decoded:
            places = self._older_keys.get(collection)
            place = self._newest_place(collection, key) if places is None else places.get(key)
            if place is None:
                return None
            decoder = self._decoders.get(collection)
            if decoder is None:
                decoder = self._decoders[collection] = msgspec.json.Decoder(self._types[collection])
            decoded[key] = decoder.decode(self._older[place].entries[collection][key])
        return decoded[key]

    def _newest_place(self, collection: str, key: str) -> int | None:
        """Of the newest snapshot that has the key; snapshots before that one are not read."""
        return next((place for place in reversed(range(len(self._older)))
                     if key in self._older[place].entries.get(collection, ())), None)

    def _keys_of_older(self, collection: str) -> dict[str, int]:
        """The keys in all snapshots, each with the place of the newest that has it."""
        if collection not in self._older_keys:
            self._older_keys[collection] = {key: place for place in range(len(self._older))
                                            for key in self._older[place].entries.get(collection, ())}
        return self._older_keys[collection]


def encoded(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))


class View(Mapping[str, Value], Generic[Value]):
    """A collection after some events: a mapping that can't be changed."""

    def __init__(self, entries: Entries, collection: str, length: int):
        self._entries, self._collection, self._length = entries, collection, length

    def __getitem__(self, key: str) -> Value:
        value = self._entries.get(self._collection, key, self._length)
        if value is None:
            raise KeyError(key)
        return value  # type: ignore[return-value]  # of the collection's type

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries.keys(self._collection, self._length))

    def __len__(self) -> int:
        return len(self._entries.keys(self._collection, self._length))

    def __repr__(self) -> str:
        return repr(dict(self))
