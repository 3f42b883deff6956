"""The log of answered predictions, with their ids, as files that are safe from a crash."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from contracts.core.contract import Contract
from contracts.core.digests import JsonObject
from contracts.core.features import Columns
from service.atomic_files import write_atomically

SUFFIX = ".rows"
EXACT = ".exact"  # behind a column's name: its values as they were sent, which the log takes instead
MAX_WAITING_BYTES = 128 * 2**20  # kept in memory while the disk fails; the oldest file is lost first
# Its multiples, less their whole part, fill 0 to 1 evenly: a sample without random numbers.
GOLDEN_RATIO = (5 ** 0.5 - 1) / 2
ID = re.compile("(.*)-(0|[1-9a-f][0-9a-f]{0,14})", re.DOTALL)
NO_NUMBER = -1
UNREADABLE = (msgspec.DecodeError, ValueError, KeyError, TypeError)  # what `unpack_log` raises

_ENCODE = msgspec.msgpack.encode

log = logging.getLogger("perennial.predictions")


class PredictionLog:
    """The share `Contract.logged` of a replica's predictions; each `add` makes a file for its window."""

    def __init__(self, contract: Contract, folder: Path, replica: str):
        self._label, self._share = contract.label, contract.logged
        self._folder, self._replica, self._turn = folder, replica, 0
        self._waiting: dict[Path, bytes] = {}

    def add(self, window: str, numbers: np.ndarray, columns: Columns, probabilities: np.ndarray,
            steps: Callable[[Iterable[str]], Iterator[str]] = iter) -> None:
        """Queue n predictions of one window, whose ids end in `numbers`, int64 (n,)."""
        logged = numbers * GOLDEN_RATIO % 1 < self._share
        if logged.any():
            values = {name: values for name, values in columns.items() if not name.endswith(EXACT)}
            values |= {name: columns[f"{name}{EXACT}"] for name in values if f"{name}{EXACT}" in columns}
            values |= self._label.probability_columns(probabilities)
            path = self._folder / window / f"{self._replica}-{self._turn}{SUFFIX}"
            index = slice(None) if logged.all() else logged  # without a copy where it is all of them
            packed = {name: msgspec.Raw(_ENCODE(_packed(values[name][index]))) for name in steps(values)}
            self._waiting[path] = _ENCODE({"replica": self._replica, "numbers": _packed(numbers[index]),
                                           "columns": packed})
            self._turn += 1

    def save(self) -> None:
        """Write the queued files; one that can't be written stays queued."""
        while sum(map(len, self._waiting.values())) > MAX_WAITING_BYTES:
            path = next(iter(self._waiting))
            log.error("%s: %d bytes of predictions are lost to the log", path, len(self._waiting.pop(path)))
        for path, content in list(self._waiting.items()):
            try:
                write_atomically(path, content)
            except OSError as error:
                log.error("%s: not written, kept for the next try: %s", path, error)
                return
            del self._waiting[path]


def prediction_id(replica: str, number: int) -> str:
    return f"{replica}-{number:x}"


def parse_id(text: str) -> tuple[str, int]:
    """The replica and the number of a prediction's id; a text that is none is a replica with NO_NUMBER, so
    that two texts give the same pair only if they are the same.

    >>> [parse_id(text) for text in ("4f1c-1a", "a-b-0", "4f1c-01", "order 7")]
    [('4f1c', 26), ('a-b', 0), ('4f1c-01', -1), ('order 7', -1)]
    """
    found = ID.fullmatch(text)
    return (found[1], int(found[2], 16)) if found else (text, NO_NUMBER)


class LogFile(NamedTuple):
    """The predictions of a log file: ids end in `numbers`, int64 (n,); a column's missing numbers are NaN,
    of integers, texts and times None or NaT."""

    replica: str
    numbers: np.ndarray
    columns: Columns


def unpack_log(content: bytes) -> LogFile:
    """Read a log file; raises one of UNREADABLE."""
    stored = msgspec.msgpack.decode(content)
    return LogFile(stored["replica"], _array(stored["numbers"]),
                   {name: _array(values) for name, values in stored["columns"].items()})


def _packed(values: np.ndarray) -> JsonObject:
    if values.dtype == object:
        return {"texts": values.tolist()}  # also integers of which some are missing
    return {"type": values.dtype.str, "numbers": np.ascontiguousarray(values).tobytes()}


def _array(stored: JsonObject) -> np.ndarray:
    if "texts" in stored:
        return np.array(stored["texts"], object)
    return np.frombuffer(stored["numbers"], stored["type"])
