"""Blocks of the training matrix, kept in files."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from contracts.core.contract import Contract
from flows.training.vocabulary import CategoryVocabulary


@dataclass(frozen=True)
class Block:
    """Rows in the order of their event time: features, float32 (n, features), categories
    numbered as `CategoryVocabulary` does; class indices, float32 (n,); event times."""

    matrix: np.ndarray
    labels: np.ndarray
    times: np.ndarray

    def rows(self, chosen: slice | np.ndarray) -> "Block":
        return Block(self.matrix[chosen], self.labels[chosen], self.times[chosen])

    def copy(self) -> "Block":
        """Rows that do not hold on to those they were among."""
        return Block(self.matrix.copy(), self.labels.copy(), self.times.copy())

    def first_from(self, time: datetime) -> int:
        """The index of the first row that happened at `time` or later."""
        return int(np.searchsorted(self.times, np.datetime64(time)))


class BlockFile:
    """One block's rows on disk, in files without a name: they are gone with the process, however it ends."""

    # Of a block's matrix, labels and times.
    KINDS: tuple[Any, ...] = (np.float32, np.float32, "datetime64[s]")

    def __init__(self, folder: Path, features: int):
        self._features = features
        self._files = [TemporaryFile(dir=folder) for _ in self.KINDS]  # noqa: SIM115, each is closed when nobody holds it

    def add(self, matrix: np.ndarray, labels: np.ndarray, times: np.ndarray) -> None:
        for file, kind, part in zip(self._files, self.KINDS, (matrix, labels, times)):
            file.write(np.ascontiguousarray(part, kind))  # type: ignore[arg-type]  # an array is a buffer

    def close(self) -> None:
        for file in self._files:
            file.close()

    def read(self) -> Block:
        for file in self._files:
            file.seek(0)
        matrix, labels, times = (np.fromfile(file, kind) for file, kind in zip(self._files, self.KINDS))
        block = Block(matrix.reshape(-1, self._features), labels, times)
        if (np.diff(block.times) >= np.timedelta64(0)).all():
            return block
        order = np.argsort(block.times, kind="stable")
        return Block(block.matrix[order], block.labels[order], block.times[order])


def _joined(parts: list[Block]) -> Block:
    whole = Block(*(np.concatenate([getattr(part, name) for part in parts])
                    for name in ("matrix", "labels", "times")))
    return whole.rows(np.argsort(whole.times, kind="stable"))


def encode_categories(contract: Contract, block: Block, category_counts: Mapping[str, CategoryVocabulary],
                      vocabularies: Mapping[str, tuple[str, ...]]) -> Block:
    """The block, in which categories now have the codes of a model
    with these vocabularies in place of their texts' numbers."""
    for position, feature in enumerate(contract.features):
        if feature.kind == "category":
            codes, numbers = category_counts[feature.name].codes(
                vocabularies[feature.name]), block.matrix[:, position]
            block.matrix[:, position] = codes[np.where(np.isnan(numbers), -1, numbers).astype(int)]
    return block
