"""The log of answered predictions, with their ids, as files that are safe from a crash."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from contracts.core.classification import PROBABILITY
from contracts.core.contract import Contract
from contracts.core.features import Columns
from service.files import write_atomically

SUFFIX = ".rows"
WAITING = 128 * 2**20  # bytes that may wait in memory while a disk fails; the oldest file is lost first
# Multiples of the golden ratio fill the numbers from 0 to 1 evenly: a sample without a seed.
SPREAD = (5 ** 0.5 - 1) / 2
NOT_A_LOG = (msgspec.DecodeError, ValueError, KeyError, TypeError)  # what `unpacked` raises of other bytes

_ENCODE = msgspec.msgpack.encode

log = logging.getLogger("perennial.predictions")


class PredictionLog:
    """The share `Contract.logged` of a replica's predictions, a file for each window and turn."""

    def __init__(self, contract: Contract, folder: Path, replica: str):
        self._classes, self._share = contract.label.classes, contract.logged
        self._folder, self._replica, self._turn = folder, replica, 0
        self._waiting: dict[Path, bytes] = {}

    def add(self, window: str, numbers: np.ndarray, columns: Columns, probabilities: np.ndarray,
            steps: Callable[[Iterable[str]], Iterator[str]] = iter) -> None:
        """Take note of n predictions of one window, whose ids end in `numbers`, int64 (n,)."""
        chosen = numbers * SPREAD % 1 < self._share
        if chosen.any():
            seen = {**columns,
                    **{PROBABILITY + name: values for name, values in zip(self._classes, probabilities.T)}}
            path = self._folder / window / f"{self._replica}-{self._turn}{SUFFIX}"
            part = slice(None) if chosen.all() else chosen  # without a copy where it is all of them
            packed = {name: msgspec.Raw(_ENCODE(_plain(seen[name][part]))) for name in steps(seen)}
            self._waiting[path] = _ENCODE({"replica": self._replica, "numbers": _plain(numbers[part]),
                                           "columns": packed})
            self._turn += 1

    def save(self) -> None:
        """Write what waits; what can't be written waits for the next turn."""
        while sum(map(len, self._waiting.values())) > WAITING:
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


def unpack_log(content: bytes) -> dict[str, np.ndarray]:
    """The columns of such a file, the predictions' `id` first; raises one of NOT_A_LOG."""
    held = msgspec.msgpack.decode(content)
    ids = [prediction_id(held["replica"], number) for number in _array(held["numbers"]).tolist()]
    return {"id": np.array(ids, object)} | {name: _array(values) for name, values in held["columns"].items()}


def _plain(values: np.ndarray) -> dict[str, Any]:
    if values.dtype == object:
        return {"texts": values.tolist()}
    return {"type": values.dtype.str, "numbers": np.ascontiguousarray(values).tobytes()}


def _array(stored: dict[str, Any]) -> np.ndarray:
    if "texts" in stored:
        return np.array(stored["texts"], object)
    return np.frombuffer(stored["numbers"], stored["type"])
