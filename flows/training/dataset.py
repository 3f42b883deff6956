"""The training set: rows in blocks on disk, read in chunks, so that memory stays small."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from contracts.core.contract import Contract
from contracts.core.features import Columns
from flows.training.blocks import Block, BlockFile, _joined, encode_categories
from flows.training.booster import train_booster
from flows.training.vocabulary import CategoryVocabulary
from service.model import Model

MOST_ROWS = 1_000_000  # that a tree is grown on
SAMPLE = 100_000  # rows, at most, from which is learnt what is ordinary


@dataclass(frozen=True)
class TrainingSet:
    """A data version's rows, ready to train on: those before `cut`
    are the older ones; `sample` is an even share of them all."""

    contract: Contract
    cut: datetime
    rows: int
    older: int
    sample: Columns
    category_counts: Mapping[str, CategoryVocabulary]
    block_files: tuple[BlockFile, ...]
    workers = 1

    def rounds(self, threads: int = 0) -> dict[str, Any]:
        """How many boosting rounds to train: early stopping on the newest `stop_share` of the older
        rows, whose categories count as known where the older rows as a whole have them often enough."""
        contract, vocabularies, groups = self.contract, self._vocabularies(
            older=True), self._groups(older=True)

        def cut(block: Block) -> int:
            return len(block.labels) - max(1, int(len(block.labels) * contract.stop_share))

        def newest(block: Block) -> Block:
            first = cut(block)
            return block.rows(first + np.flatnonzero(sampled(0, len(block.labels) - first, len(groups)) == 0))

        held = [newest(block) for block in self._blocks(vocabularies, groups, older=True)]
        held_out = Block(*(np.concatenate([getattr(block, name) for block in held])
                           for name in ("matrix", "labels", "times")))
        probe = train_booster(contract,
                              (block.rows(slice(cut(block)))
                               for block in self._blocks(vocabularies, groups, older=True)),
                              min(len(groups), contract.rounds), contract.rounds, threads, held_out)
        return {"rounds": probe.best_iteration + 1, "stop_log_loss": float(probe.best_score),
                "stop_rows": len(held_out.labels)}

    def fit(self, rounds: int, older: bool = False, threads: int = 0) -> Model:
        """Train on every row, or on the older ones; the same rows,
        rounds and contract give the same bytes, whatever the threads."""
        vocabularies, groups = self._vocabularies(older), self._groups(older)
        blocks = self._blocks(vocabularies, groups, older)
        return Model(self.contract, vocabularies,
                     train_booster(self.contract, blocks, min(len(groups), rounds), rounds, threads))

    def newest(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """Class indices of the rows from `cut` on, int64 (n,),
        and what a model says of them, float32 (n, classes)."""
        labels, probabilities = [], []
        for block in self._blocks(model.vocabularies, self._groups()):
            part = block.rows(slice(block.first_from(self.cut), None))
            labels.append(part.labels.astype(np.int64))
            probabilities.append(model.booster.inplace_predict(part.matrix))
        return np.concatenate(labels), np.concatenate(probabilities)

    def _vocabularies(self, older: bool) -> dict[str, tuple[str, ...]]:
        return {name: words.vocabulary(older) for name, words in self.category_counts.items()}

    def _groups(self, older: bool = False) -> list[list[BlockFile]]:
        """The files by the blocks that they make; several make one where few rows are older."""
        per_block = max(1, int(MOST_ROWS * len(self.block_files) / max(self.older, 1))) if older else 1
        return [list(self.block_files[first:first + per_block])
                for first in range(0, len(self.block_files), per_block)]

    def _blocks(self, vocabularies: Mapping[str, tuple[str, ...]], groups: list[list[BlockFile]],
                older: bool = False) -> Iterator[Block]:
        """Each block, with the codes that a model with these
        vocabularies has for its categories; or its older rows."""
        for group in groups:
            parts = [block.rows(slice(block.first_from(self.cut))) if older else block
                     for block in (block_file.read() for block_file in group)]
            yield encode_categories(self.contract, parts[0] if len(parts) == 1 else _joined(parts),
                                    self.category_counts, vocabularies)

    def close(self) -> None:
        """Give back the disk's space."""
        for block_file in self.block_files:
            block_file.close()


def sampled(first: int, rows: int, n: int) -> np.ndarray:
    """A number below n for each of the rows from the `first` on, int64 (rows,): in n
    rows that follow one another, from a multiple of n on, each number comes once, first
    a seemingly random one, so that it picks no pattern out of rows that repeat one."""
    index = np.arange(first, first + rows)
    # SplitMix64 (Steele, Lea and Flood, 2014).
    mixed = (index // n).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (index + ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(n)).astype(np.int64)) % n


def read_training_set(contract: Contract, chunks: Iterable[pd.DataFrame], rows: int, cut: datetime,
                      folder: Path, report_progress: Callable[[str], None] = lambda _: None,
                      blocks: int | None = None) -> TrainingSet:
    """Go once through labelled events, some of `rows` in all,
    whatever their order; the features lie in `folder` meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    category_counts = {feature.name: CategoryVocabulary(feature.name) for feature in contract.features
                       if feature.kind == "category"}
    block_files = tuple(BlockFile(folder, len(contract.features))
                        for _ in range(blocks or -(-rows // MOST_ROWS)))
    sample, rows_read, older_rows, every = [], 0, 0, -(-rows // SAMPLE)
    for chunk in chunks:
        columns, labels = contract.columns_of(chunk), contract.labels_of(chunk)
        times = columns[contract.event_time]
        older = times < np.datetime64(cut)
        matrix = _numbered(contract, columns, category_counts, older)
        turns = sampled(rows_read, len(labels), len(block_files))
        for index, block_file in enumerate(block_files):
            mine = turns == index
            block_file.add(matrix=matrix[mine], labels=labels[mine], times=times[mine])
        some = sampled(rows_read, len(labels), every) == 0
        sample.append({name: values[some] for name, values in columns.items()})
        rows_read, older_rows = rows_read + len(labels), older_rows + int(older.sum())
        if len(block_files) > 1:
            report_progress(f"{contract.name}: {rows_read:,} of {rows:,} rows are read")
    return TrainingSet(contract, cut, rows_read, older_rows, sorted_sample(contract, sample), category_counts,
                       block_files)


def sorted_sample(contract: Contract, parts: Sequence[Columns]) -> Columns:
    """All rows of the parts in the order of their event time."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    order = np.argsort(whole[contract.event_time], kind="stable") if parts else np.zeros(0, int)
    return {name: values[order] for name, values in whole.items()}


def _numbered(contract: Contract, columns: Columns, category_counts: Mapping[str, CategoryVocabulary],
              older: np.ndarray) -> np.ndarray:
    """The features of n rows, float32 (n, features), categories as the numbers of their texts."""
    matrix = np.empty((len(older), len(contract.features)), np.float32)
    for position, feature in enumerate(contract.features):
        values = feature.values(columns)
        matrix[:, position] = (category_counts[feature.name].numbered(values, older)
                               if feature.kind == "category" else values)
    return matrix
