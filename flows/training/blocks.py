"""Blocks of the training matrix, kept in files."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from contracts.core.challengers import RowChoice
from contracts.core.contract import Contract
from flows.training.vocabulary import CategoryVocabulary


@dataclass(frozen=True)
class Block:
    """Rows in the order of their event time: features, float32 (n, features), categories as
    numbers of `CategoryVocabulary`; class indices, float32 (n,); event times; and the rows' weights in
    training, float32 (n,), None where all count the same."""

    matrix: np.ndarray
    labels: np.ndarray
    times: np.ndarray
    weights: np.ndarray | None = None

    def rows(self, index: slice | np.ndarray) -> "Block":
        return Block(self.matrix[index], self.labels[index], self.times[index],
                     None if self.weights is None else self.weights[index])

    def chosen(self, choice: RowChoice) -> "Block":
        """The rows that a challenger is trained on, with their weights."""
        block = self.rows(slice(self.first_from(choice.since), None)) if choice.since else self
        return Block(block.matrix, block.labels, block.times, choice.weights(block.times))

    def copy(self) -> "Block":
        """A copy that shares no memory with the block it was cut from."""
        return Block(self.matrix.copy(), self.labels.copy(), self.times.copy())

    def first_from(self, time: datetime) -> int:
        """The index of the first row that happened at `time` or later."""
        return int(np.searchsorted(self.times, np.datetime64(time)))


class BlockFile:
    """One block's rows in files: with a `number` in those of this name in the folder, which stay; else in
    nameless temporary ones, which the system deletes when the process ends."""

    # Of a block's matrix, labels and times.
    KINDS: tuple[Any, ...] = (np.float32, np.float32, "datetime64[s]")

    def __init__(self, folder: Path, features: int, number: int | None = None):
        self._features = features
        self._files: list[Any] = [  # `close` closes them
            TemporaryFile(dir=folder) if number is None else open(folder / f"{number}-{part}.block", "a+b")  # noqa: SIM115
            for part in range(len(self.KINDS))]

    def add(self, matrix: np.ndarray, labels: np.ndarray, times: np.ndarray) -> None:
        for file, kind, part in zip(self._files, self.KINDS, (matrix, labels, times)):
            file.write(np.ascontiguousarray(part, kind))

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


def join_blocks(parts: list[Block]) -> Block:
    whole = Block(*(np.concatenate([getattr(part, name) for part in parts])
                    for name in ("matrix", "labels", "times")))
    return whole.rows(np.argsort(whole.times, kind="stable"))


def encode_categories(contract: Contract, block: Block, category_counts: Mapping[str, CategoryVocabulary],
                      vocabularies: Mapping[str, tuple[str, ...]]) -> Block:
    """The block with each category's number replaced by its code in these vocabularies."""
    for position, feature in enumerate(contract.features):
        if feature.kind == "category":
            codes = category_counts[feature.name].codes(vocabularies[feature.name])
            numbers = block.matrix[:, position]
            block.matrix[:, position] = codes[np.where(np.isnan(numbers), -1, numbers).astype(int)]
    return block
