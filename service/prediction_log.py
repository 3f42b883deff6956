"""The log of answered predictions, with their ids, as files that are safe from a crash."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from contracts.core.contract import Contract
from contracts.core.digests import JsonObject
from contracts.core.features import Columns
from service.atomic_files import write_atomically

SUFFIX = ".rows"
MAX_WAITING_BYTES = 128 * 2**20  # kept in memory while the disk fails; the oldest file is lost first
# Its multiples, less their whole part, fill 0 to 1 evenly: a sample without random numbers.
GOLDEN_RATIO = (5 ** 0.5 - 1) / 2
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
            values = {**columns, **self._label.probability_columns(probabilities)}
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


def unpack_log(content: bytes) -> dict[str, np.ndarray]:
    """The columns of a log file, the predictions' `id` first; raises one of NOT_A_LOG."""
    stored = msgspec.msgpack.decode(content)
    ids = [prediction_id(stored["replica"], number) for number in _array(stored["numbers"]).tolist()]
    columns = {name: _array(values) for name, values in stored["columns"].items()}
    return {"id": np.array(ids, object)} | columns


def _packed(values: np.ndarray) -> JsonObject:
    if values.dtype == object:
        return {"texts": values.tolist()}
    return {"type": values.dtype.str, "numbers": np.ascontiguousarray(values).tobytes()}


def _array(stored: JsonObject) -> np.ndarray:
    if "texts" in stored:
        return np.array(stored["texts"], object)
    return np.frombuffer(stored["numbers"], stored["type"])
