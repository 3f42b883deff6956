"""The training set: rows in blocks on disk, read in chunks, so that memory stays small."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from contracts.core.challenger_policy import ALL_ROWS, Challenger
from contracts.core.challengers import RowChoice
from contracts.core.contract import Contract
from contracts.core.features import Columns
from flows.sampling import split_mix
from flows.training.blocks import Block, BlockFile, encode_categories, join_blocks
from flows.training.booster import StoppingResult, train_booster
from flows.training.vocabulary import CategoryVocabulary
from service.model import Model

MAX_ROWS = 1_000_000  # of a block: a tree is grown on one block
SAMPLE = 100_000  # rows, at most, from which the reference is learnt
SAMPLE_LABEL = "(label)"  # the sample's column of class indices; no column of a schema is called so


@dataclass(frozen=True)
class TrainingSet:
    """A data version's rows, ready to train on: the `older` of them are those
    before `cut`; `sample` is an even sample of all, with their labels."""

    contract: Contract
    cut: datetime
    rows: int
    older: int
    sample: Columns
    category_counts: Mapping[str, CategoryVocabulary]
    block_files: tuple[BlockFile, ...]
    challenger: Challenger = ALL_ROWS
    workers = 1

    def of(self, challenger: Challenger) -> "TrainingSet":
        """The same rows for another challenger to choose from."""
        return replace(self, challenger=challenger)

    def rounds(self, threads: int = 0) -> StoppingResult:
        """How many boosting rounds to train, by early stopping on the newest `stop_share` of the older rows;
        their vocabularies are those of all older rows."""
        contract, groups = self.contract, self._groups(older=True)
        vocabularies = self._vocabularies(older=True)

        def cut(block: Block) -> int:
            return len(block.labels) - max(1, int(len(block.labels) * contract.stop_share))

        def newest(block: Block) -> Block:
            first = cut(block)
            return block.rows(first + np.flatnonzero(sampled(0, len(block.labels) - first, len(groups)) == 0))

        newest_rows = [newest(block) for block in self._training_blocks(vocabularies, groups, older=True)]
        held_out = Block(*(np.concatenate([getattr(block, name) for block in newest_rows])
                           for name in ("matrix", "labels", "times")))
        stopped_booster = train_booster(contract,
                              (block.rows(slice(cut(block)))
                               for block in self._training_blocks(vocabularies, groups, older=True)),
                              min(len(groups), contract.rounds), contract.rounds, threads, held_out)
        return {"rounds": stopped_booster.best_iteration + 1,
                "stop_log_loss": float(stopped_booster.best_score), "stop_rows": len(held_out.labels)}

    def fit(self, rounds: int, older: bool = False, threads: int = 0) -> Model:
        """Train on every row of the challenger's, or on the older ones; the same rows, rounds and
        contract give the same bytes, with any number of threads."""
        vocabularies, groups = self._vocabularies(older), self._groups(older)
        blocks = self._training_blocks(vocabularies, groups, older)
        return Model(self.contract, vocabularies,
                     train_booster(self.contract, blocks, min(len(groups), rounds), rounds, threads))

    def newest(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """Class indices of the rows from `cut` on, int64 (n,), and
        the model's probabilities for them, float32 (n, classes)."""
        labels, probabilities = [], []
        for block in self._blocks(model.vocabularies, self._groups()):
            part = block.rows(slice(block.first_from(self.cut), None))
            labels.append(part.labels.astype(np.int64))
            probabilities.append(model.booster.inplace_predict(part.matrix))
        return np.concatenate(labels), np.concatenate(probabilities)

    def _vocabularies(self, older: bool) -> dict[str, tuple[str, ...]]:
        return {name: counts.vocabulary(older) for name, counts in self.category_counts.items()}

    def _groups(self, older: bool = False) -> list[list[BlockFile]]:
        """The files of each block; several make one block where few rows are older."""
        per_block = max(1, int(MAX_ROWS * len(self.block_files) / max(self.older, 1))) if older else 1
        return [list(self.block_files[first:first + per_block])
                for first in range(0, len(self.block_files), per_block)]

    def _blocks(self, vocabularies: Mapping[str, tuple[str, ...]], groups: list[list[BlockFile]],
                older: bool = False) -> Iterator[Block]:
        """Each block, or its older rows, with categories coded by these vocabularies."""
        for group in groups:
            parts = [block.rows(slice(block.first_from(self.cut))) if older else block
                     for block in (block_file.read() for block_file in group)]
            yield encode_categories(self.contract, parts[0] if len(parts) == 1 else join_blocks(parts),
                                    self.category_counts, vocabularies)

    def _training_blocks(self, vocabularies: Mapping[str, tuple[str, ...]], groups: list[list[BlockFile]],
                         older: bool = False) -> Iterator[Block]:
        """The rows of each block, or of its older ones, that the challenger is trained on."""
        times = self.sample[self.contract.event_time]
        latest = self.cut if older else (times.max() + np.timedelta64(1, "s")).astype(datetime)
        choice = RowChoice.of(self.challenger, times, latest)
        return (block.chosen(choice) for block in self._blocks(vocabularies, groups, older))

    def close(self) -> None:
        """Free the disk space."""
        for block_file in self.block_files:
            block_file.close()


def sampled(first: int, rows: int, n: int) -> np.ndarray:
    """A number below n for each of the rows from index `first` on, int64 (rows,), to sample by.

    Of every n consecutive rows (from a multiple of n on) each number has one. Which one is
    pseudo-random, so that a sample of rows that repeat a pattern does not pick out a part of it.
    """
    index = np.arange(first, first + rows)
    mixed = split_mix((index // n).astype(np.uint64))
    return (index + (mixed % np.uint64(n)).astype(np.int64)) % n


def read_training_set(contract: Contract, chunks: Iterable[pd.DataFrame], rows: int, cut: datetime,
                      folder: Path, report_progress: Callable[[str], None] = lambda _: None,
                      blocks: int | None = None, keep: bool = False) -> TrainingSet:
    """Read labelled events once, about `rows` of them in any order, into blocks on disk in `folder`, which
    stay there if asked to `keep` them."""
    folder.mkdir(parents=True, exist_ok=True)
    category_counts = {feature.name: CategoryVocabulary(feature.name) for feature in contract.features
                       if feature.kind == "category"}
    block_files = tuple(BlockFile(folder, len(contract.features), number if keep else None)
                        for number in range(blocks or -(-rows // MAX_ROWS)))
    sample, rows_read, older_rows, every = [], 0, 0, -(-rows // SAMPLE)
    for chunk in chunks:
        columns, labels = dict(contract.columns_of(chunk)), contract.labels_of(chunk)
        times = columns[contract.event_time]
        older = times < np.datetime64(cut)
        matrix = _feature_matrix(contract, columns, category_counts, older)
        block_of_row = sampled(rows_read, len(labels), len(block_files))
        for index, block_file in enumerate(block_files):
            in_block = block_of_row == index
            block_file.add(matrix=matrix[in_block], labels=labels[in_block], times=times[in_block])
        in_sample = sampled(rows_read, len(labels), every) == 0
        sample.append({name: values[in_sample]
                       for name, values in (columns | {SAMPLE_LABEL: labels}).items()})
        rows_read, older_rows = rows_read + len(labels), older_rows + int(older.sum())
        if len(block_files) > 1:
            report_progress(f"{contract.name}: {rows_read:,} of {rows:,} rows read")
    return TrainingSet(contract, cut, rows_read, older_rows, sorted_sample(contract, sample), category_counts,
                       block_files)


def sorted_sample(contract: Contract, parts: Sequence[Columns]) -> Columns:
    """All rows of the parts in the order of their event time."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    order = np.argsort(whole[contract.event_time], kind="stable") if parts else np.zeros(0, int)
    return {name: values[order] for name, values in whole.items()}


def _feature_matrix(contract: Contract, columns: Columns, category_counts: Mapping[str, CategoryVocabulary],
              older: np.ndarray) -> np.ndarray:
    """The features of n rows, float32 (n, features), categories as numbers of `CategoryVocabulary`."""
    matrix = np.empty((len(older), len(contract.features)), np.float32)
    for position, feature in enumerate(contract.features):
        values = feature.values(columns)
        matrix[:, position] = (category_counts[feature.name].numbers(values, older)
                               if feature.kind == "category" else values)
    return matrix
