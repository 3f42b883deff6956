"""data version → features → XGBoost, in memory that does not grow with the rows.

XGBoost's own external memory keeps some 75 bytes of each row: labels, gradients and predictions of all classes, places in
the tree. Here each tree is grown on at most MOST_ROWS rows, a share drawn evenly from them all, and the next trees on another share:
stochastic gradient boosting (Friedman, 2002), its samples cut once. Where there are no more rows than that, it is XGBoost's
own training on all of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pandas as pd

from contracts.contract import Columns, Contract, PerennialError
from service.model import UNKNOWN, Model, xgboost  # from there: contracts, where OpenMP is told how to wait, must be imported before

MOST_ROWS = 1_000_000  # that a tree is grown on
SAMPLE = 100_000  # rows, at most, from which is learnt what is ordinary
MOST_TEXTS = 2**24  # of a category: a float32 tells no more numbers apart
RARE = 20  # rows below which a category counts as unknown, so that "unknown" is learnt from something


@dataclass(frozen=True)
class Block:
    """Rows in the order of their event time: features, float32 (n, features), categories numbered as `Texts` does; class
    indices, float32 (n,); event times."""

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


class Spool:
    """One block's rows on disk, in files without a name: they are gone with the process, however it ends."""

    KINDS = (np.float32, np.float32, "datetime64[s]")  # of a block's matrix, labels and times

    def __init__(self, folder: Path, features: int):
        self._features = features
        self._files = [TemporaryFile(dir=folder) for _ in self.KINDS]  # noqa: SIM115, each is closed when nobody holds it

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


class Texts:
    """The texts of one category, numbered as they come, and how many rows have each: of the older ones, and of all."""

    def __init__(self, feature: str):
        self._feature, self._numbers = feature, {}
        self._older = self._all = np.zeros(0, np.int64)

    def numbered(self, values: np.ndarray, older: np.ndarray) -> np.ndarray:
        """The number of each of n values' texts, NaN where it is missing, float64 (n,); `older` is a mask of those that count as such."""
        ids, texts = pd.factorize(values)
        for text in texts:
            if not isinstance(text, str):
                raise PerennialError(f"feature {self._feature!r} is a category and has the value {text}, no text; let its `compute` give texts")
            self._numbers.setdefault(text, len(self._numbers))
        if len(self._numbers) > MOST_TEXTS:
            raise PerennialError(f"feature {self._feature!r} is a category with more than {MOST_TEXTS:,} texts; let its `compute` group them")
        numbers = np.array([*(self._numbers[text] for text in texts), -1])[ids]  # -1 finds the last
        self._older, self._all = self._counted(self._older, numbers[older]), self._counted(self._all, numbers)
        return np.where(numbers < 0, np.nan, numbers)

    def _counted(self, before: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return _added(before, numbers[numbers >= 0], None, len(self._numbers))

    @classmethod
    def of_all(cls, parts: Sequence["Texts"]) -> "Texts":
        """What several went through."""
        whole = cls(parts[0]._feature)
        for part in parts:
            for text in part._numbers:
                whole._numbers.setdefault(text, len(whole._numbers))
            places = np.array([whole._numbers[text] for text in part._numbers], int)
            whole._older, whole._all = (_added(before, places, counts, len(whole._numbers)) for before, counts in
                                        ((whole._older, part._older), (whole._all, part._all)))
        return whole

    def vocabulary(self, older: bool) -> tuple[str, ...]:
        """The texts that are not rare, in order."""
        counts = self._older if older else self._all
        return tuple(sorted(text for text, number in self._numbers.items() if counts[number] >= RARE))

    def codes(self, vocabulary: tuple[str, ...]) -> np.ndarray:
        """For each number the text's code in a model with this vocabulary, and NaN at the end, float32."""
        known = {text: code for code, text in enumerate(vocabulary, start=UNKNOWN + 1)}
        return np.array([*(known.get(text, UNKNOWN) for text in self._numbers), np.nan], np.float32)


def _added(before: np.ndarray, numbers: np.ndarray, times: np.ndarray | None, size: int) -> np.ndarray:
    counts = np.bincount(numbers, times, size).astype(np.int64)
    counts[:len(before)] += before
    return counts


@dataclass(frozen=True)
class Prepared:
    """A data version's rows, ready to train on: those before `cut` are the older ones; `sample` is an even share of them all."""

    contract: Contract
    cut: datetime
    rows: int
    older: int
    sample: Columns
    texts: Mapping[str, Texts]
    spools: tuple[Spool, ...]
    workers = 1

    def rounds(self, threads: int = 0) -> dict[str, Any]:
        """How many boosting rounds to train: early stopping on the newest `stop_share` of the older rows, whose categories count
        as known where the older rows as a whole have them often enough."""
        contract, vocabularies, groups = self.contract, self._vocabularies(older=True), self._groups(older=True)

        def cut(block: Block) -> int:
            return len(block.labels) - max(1, int(len(block.labels) * contract.stop_share))

        def newest(block: Block) -> Block:
            first = cut(block)
            return block.rows(first + np.flatnonzero(drawn(0, len(block.labels) - first, len(groups)) == 0))

        held = [newest(block) for block in self._blocks(vocabularies, groups, older=True)]
        held_out = Block(*(np.concatenate([getattr(block, name) for block in held]) for name in ("matrix", "labels", "times")))
        probe = _boosted(contract, (block.rows(slice(cut(block))) for block in self._blocks(vocabularies, groups, older=True)),
                         min(len(groups), contract.rounds), contract.rounds, threads, held_out)
        return {"rounds": probe.best_iteration + 1, "stop_log_loss": float(probe.best_score), "stop_rows": len(held_out.labels)}

    def fit(self, rounds: int, older: bool = False, threads: int = 0) -> Model:
        """Train on every row, or on the older ones; the same rows, rounds and contract give the same bytes, whatever the threads."""
        vocabularies, groups = self._vocabularies(older), self._groups(older)
        blocks = self._blocks(vocabularies, groups, older)
        return Model(self.contract, vocabularies, _boosted(self.contract, blocks, min(len(groups), rounds), rounds, threads))

    def newest(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """Class indices of the rows from `cut` on, int64 (n,), and what a model says of them, float32 (n, classes)."""
        labels, probabilities = [], []
        for block in self._blocks(model.vocabularies, self._groups()):
            part = block.rows(slice(block.first_from(self.cut), None))
            labels.append(part.labels.astype(np.int64))
            probabilities.append(model.booster.inplace_predict(part.matrix))
        return np.concatenate(labels), np.concatenate(probabilities)

    def _vocabularies(self, older: bool) -> dict[str, tuple[str, ...]]:
        return {name: texts.vocabulary(older) for name, texts in self.texts.items()}

    def _groups(self, older: bool = False) -> list[list[Spool]]:
        """The spools by the blocks that they make; several make one where few rows are older."""
        together = max(1, int(MOST_ROWS * len(self.spools) / max(self.older, 1))) if older else 1
        return [list(self.spools[first:first + together]) for first in range(0, len(self.spools), together)]

    def _blocks(self, vocabularies: Mapping[str, tuple[str, ...]], groups: list[list[Spool]], older: bool = False) -> Iterator[Block]:
        """Each block, with the codes that a model with these vocabularies has for its categories; or its older rows."""
        for group in groups:
            parts = [block.rows(slice(block.first_from(self.cut))) if older else block for block in (spool.read() for spool in group)]
            yield coded(self.contract, parts[0] if len(parts) == 1 else _joined(parts), self.texts, vocabularies)

    def close(self) -> None:
        """Give back the disk's space."""
        for spool in self.spools:
            spool.close()


def drawn(first: int, rows: int, n: int) -> np.ndarray:
    """A number below n for each of the rows from the `first` on, int64 (rows,): in n rows that follow one another, from a multiple
    of n on, each number comes once, first a seemingly random one, so that it picks no pattern out of rows that repeat one."""
    index = np.arange(first, first + rows)
    mixed = (index // n).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # SplitMix64 (Steele, Lea and Flood, 2014)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (index + ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(n)).astype(np.int64)) % n


def _joined(parts: list[Block]) -> Block:
    whole = Block(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("matrix", "labels", "times")))
    return whole.rows(np.argsort(whole.times, kind="stable"))


def coded(contract: Contract, block: Block, texts: Mapping[str, Texts], vocabularies: Mapping[str, tuple[str, ...]]) -> Block:
    """The block, in which categories now have the codes of a model with these vocabularies in place of their texts' numbers."""
    for position, feature in enumerate(contract.features):
        if feature.kind == "category":
            codes, numbers = texts[feature.name].codes(vocabularies[feature.name]), block.matrix[:, position]
            block.matrix[:, position] = codes[np.where(np.isnan(numbers), -1, numbers).astype(int)]
    return block


def prepared(contract: Contract, chunks: Iterable[pd.DataFrame], rows: int, cut: datetime, folder: Path,
             tell: Callable[[str], None] = lambda _: None, blocks: int | None = None) -> Prepared:
    """Go once through labelled events, some of `rows` in all, whatever their order; the features lie in `folder` meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {feature.name: Texts(feature.name) for feature in contract.features if feature.kind == "category"}
    spools = tuple(Spool(folder, len(contract.features)) for _ in range(blocks or -(-rows // MOST_ROWS)))
    sample, seen, older_rows, every = [], 0, 0, -(-rows // SAMPLE)
    for chunk in chunks:
        columns, labels = contract.columns_of(chunk), contract.labels_of(chunk)
        times = columns[contract.event_time]
        older = times < np.datetime64(cut)
        matrix = _numbered(contract, columns, texts, older)
        turns = drawn(seen, len(labels), len(spools))
        for index, spool in enumerate(spools):
            mine = turns == index
            spool.add(matrix=matrix[mine], labels=labels[mine], times=times[mine])
        some = drawn(seen, len(labels), every) == 0
        sample.append({name: values[some] for name, values in columns.items()})
        seen, older_rows = seen + len(labels), older_rows + int(older.sum())
        if len(spools) > 1:
            tell(f"{contract.name}: {seen:,} of {rows:,} rows are read")
    return Prepared(contract, cut, seen, older_rows, sorted_sample(contract, sample), texts, spools)


def sorted_sample(contract: Contract, parts: list[Columns]) -> Columns:
    """All rows of the parts in the order of their event time."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    order = np.argsort(whole[contract.event_time], kind="stable") if parts else []
    return {name: values[order] for name, values in whole.items()}


def _numbered(contract: Contract, columns: Columns, texts: Mapping[str, Texts], older: np.ndarray) -> np.ndarray:
    """The features of n rows, float32 (n, features), categories as the numbers of their texts."""
    matrix = np.empty((len(older), len(contract.features)), np.float32)
    for position, feature in enumerate(contract.features):
        values = feature.values(columns)
        matrix[:, position] = texts[feature.name].numbered(values, older) if feature.kind == "category" else values
    return matrix


def _boosted(contract: Contract, blocks: Iterator[Block], turns: int, rounds: int, threads: int,
             held_out: Block | None = None) -> xgboost.Booster:
    """A booster of `rounds` rounds, each of the first `turns` blocks growing its share of them; fewer where `held_out` says stop."""
    evals = [(_dmatrix(contract, held_out), "newest")] if held_out else []
    stop = [xgboost.callback.EarlyStopping(rounds=contract.patience)] if held_out else []
    booster, done = None, 0
    for turn, block in zip(range(1, turns + 1), blocks):
        upto = rounds * turn // turns
        params = params_of(contract, threads)
        params["seed"] += turn - 1  # else each block would draw the same columns
        booster = xgboost.train(params, _dmatrix(contract, block), upto - done, evals=evals, callbacks=stop, xgb_model=booster,
                                verbose_eval=False)
        done = booster.num_boosted_rounds()
        if done < upto:
            break
    return booster


def params_of(contract: Contract, threads: int) -> dict[str, Any]:
    """What XGBoost is asked for."""
    return {"tree_method": "hist", "objective": "multi:softprob", "num_class": len(contract.label.classes),
            "seed": contract.seed, "nthread": threads, **contract.xgboost}


def kinds_of(contract: Contract) -> list[str]:
    """XGBoost's letter for each feature's kind."""
    return ["c" if feature.kind == "category" else "q" for feature in contract.features]


def _dmatrix(contract: Contract, block: Block) -> xgboost.DMatrix:
    return xgboost.DMatrix(block.matrix, block.labels, feature_types=kinds_of(contract), enable_categorical=True)
