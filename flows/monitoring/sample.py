"""A sample of predictions of bounded size: those with the least hash of their id, so that it is the same
however the rows are divided into files, and in whatever order they come."""

from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pyarrow as pa

from flows.sampling import split_mix

SAMPLE_ROWS = 200_000
HASH = "hash"  # the column of a prediction's hash


def replica_seed(replica: str) -> np.uint64:
    """What the hashes of a replica's predictions begin with."""
    return np.uint64(int.from_bytes(sha256(replica.encode()).digest()[:8], "little"))


def prediction_hashes(seeds: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The hash of each prediction, uint64 (n,), by its replica's seed and its number."""
    return split_mix(seeds ^ split_mix(numbers.astype(np.uint64)))


class Sample:
    """The rows with the least hashes of all that were added."""

    def __init__(self, size: int = SAMPLE_ROWS):
        self._size, self._parts, self._rows = size, list[pa.Table](), 0
        self.limit = np.uint64(2**64 - 1)  # rows with a larger hash are not in the sample

    def add(self, hashes: np.ndarray, rows: Callable[[np.ndarray], pa.Table]) -> None:
        """Add n rows with these hashes, uint64 (n,); `rows` gives those of some indices."""
        chosen = np.flatnonzero(hashes <= self.limit)
        if len(chosen):
            self._parts.append(rows(chosen).append_column(HASH, pa.array(hashes[chosen])))
            self._rows += len(chosen)
        if self._rows > 2 * self._size:
            self._parts = [self.table()]

    def table(self) -> pa.Table | None:
        """The rows with their hashes, the least first; None if none was added."""
        if not self._parts:
            return None
        together = pa.concat_tables(self._parts, promote_options="permissive")
        least = together.take(np.argsort(together[HASH].to_numpy(), kind="stable")[:self._size])
        self._rows = len(least)
        if self._rows == self._size:
            self.limit = least[HASH][-1].as_py()
        return least
