"""Training on a Dask cluster, on rows that lie on its workers."""

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import xgboost

from contracts.core.contract import Contract
from contracts.core.errors import PerennialError, Unavailable
from contracts.core.features import Columns
from contracts.core.loading import load_contract
from flows.training.blocks import Block, encode_categories
from flows.training.booster import booster_params, feature_types
from flows.training.dataset import read_training_set, sorted_sample
from flows.training.vocabulary import CategoryVocabulary
from registry import data
from registry.settings import DASK
from registry.store import open_store
from service.model import Model

PATIENCE = 10  # seconds in which the scheduler must answer
QUANTILES = np.linspace(0, 1, 1001)


@contextmanager
def dask_client(address: str) -> Iterator[Any]:
    """A client of the Dask scheduler at `address`, such as tcp://127.0.0.1:8786; raises Unavailable."""
    try:
        import distributed
    except ImportError as error:
        raise PerennialError(f"{DASK} is {address} and Dask is not installed ({error}); run: pip install "
                             f"'perennial[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:
        raise Unavailable(f"no Dask scheduler answers at {address}: {error}; start it, or mend or unset "
                          f"{DASK}") from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise Unavailable(f"the Dask scheduler at {address} has no workers; start some: dask worker "
                              f"{address}")
        yield client


@contextmanager
def lost_workers_named(address: str) -> Iterator[None]:
    """Raises Unavailable where a worker ends in the midst of a
    training, which XGBoost and Dask tell of in their own many ways."""
    import distributed

    try:
        yield
    except (xgboost.core.XGBoostError, distributed.KilledWorker, CancelledError, OSError) as error:
        told = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise Unavailable(f"a worker of {address} was lost, or failed, while it trained: {told[0]}; nothing "
                          f"was registered: see the worker's log and run it again") from error


@dataclass(frozen=True)
class Share:
    """What one worker holds: its rows, categories numbered by its own `category_counts`."""

    block: Block
    category_counts: dict[str, CategoryVocabulary]
    sample: Columns


@dataclass(frozen=True)
class Facts:
    """What the others must know of a share."""

    rows: int
    older: int
    category_counts: dict[str, CategoryVocabulary]
    sample: Columns
    times: np.ndarray


def read_share(module: str, address: str, source: data.DataVersion, cut: datetime,
               share: tuple[int, int]) -> Share:
    """Runs on a worker."""
    contract = load_contract(module)
    rows = data.chunks(open_store(address), source, contract.training_columns, share)
    found = read_training_set(contract, rows, source.rows, cut, Path(gettempdir()), blocks=1)
    return Share(found.block_files[0].read(), dict(found.category_counts), found.sample)


def facts_of(share: Share, cut: datetime) -> Facts:
    """Runs on a worker."""
    older = share.block.times[:share.block.first_from(cut)]
    times = np.quantile(older.astype(np.int64), QUANTILES) if len(older) else np.zeros(0)
    return Facts(len(share.block.labels), len(older), share.category_counts, share.sample, times)


def part_of(module: str, share: Share, vocabularies: dict[str, tuple[str, ...]], start: datetime | None,
            end: datetime | None) -> Block:
    """The rows of [start, end) with the codes that these vocabularies give; runs on a worker."""
    first = 0 if start is None else share.block.first_from(start)
    last = None if end is None else share.block.first_from(end)
    return encode_categories(load_contract(module), share.block.rows(slice(first, last)).copy(),
                             share.category_counts, vocabularies)


def answers_to(part: Block, booster: Any) -> np.ndarray:
    """Runs on a worker."""
    return np.asarray(booster.inplace_predict(part.matrix))


@dataclass(frozen=True)
class DistributedTrainingSet:
    """A data version's rows, ready to train on where they lie; what
    `flows.training.dataset.TrainingSet` offers, for a cluster."""

    contract: Contract
    cut: datetime
    client: Any
    shares: tuple[Any, ...]
    facts: tuple[Facts, ...]

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.facts)

    @property
    def older(self) -> int:
        return sum(one.older for one in self.facts)

    @property
    def workers(self) -> int:
        return len(self.shares)

    @property
    def sample(self) -> Columns:
        return sorted_sample(self.contract, [one.sample for one in self.facts])

    def rounds(self) -> dict[str, Any]:
        """As `Prepared.rounds`; the newest rows are those from a time on."""
        vocabularies, newest = self._vocabularies(older=True), self._newest_of_the_older()
        if newest <= np.datetime64(int(min(one.times[0] for one in self.facts if one.older)), "s").item():
            raise PerennialError(f"{self.contract.name}: the older rows all happened by {newest}: none is "
                                 f"left to learn from before the newest {self.contract.stop_share:.0%}; "
                                 f"ingest more, or unset {DASK}")
        trained, held_out = self._matrix(vocabularies, None, newest), self._matrix(vocabularies, newest,
                                                                                   self.cut)
        probe = self._train(trained[0], self.contract.rounds, evals=[(held_out[0], "newest")],
                            early_stopping_rounds=self.contract.patience)
        return {"rounds": probe.best_iteration + 1, "stop_log_loss": float(probe.best_score),
                "stop_rows": held_out[1]}

    def fit(self, rounds: int, older: bool = False) -> Model:
        """Train on every row, or on the older ones; sums are added in
        the workers' order: the last bits depend on their number."""
        vocabularies = self._vocabularies(older)
        matrix, _ = self._matrix(vocabularies, None, self.cut if older else None)
        return Model(self.contract, vocabularies, self._train(matrix, rounds))

    def newest(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """As `Prepared.newest`."""
        parts = self._parts(model.vocabularies, self.cut, None)
        answers = self.client.gather(self.client.map(answers_to, [part for part, _ in parts],
                                                     booster=model.booster, pure=False))
        return np.concatenate([labels for _, labels in parts]).astype(np.int64), np.concatenate(answers)

    def _vocabularies(self, older: bool) -> dict[str, tuple[str, ...]]:
        counts = {name: [facts.category_counts[name] for facts in self.facts]
                  for name in self.facts[0].category_counts}
        return {name: CategoryVocabulary.of_all(parts).vocabulary(older) for name, parts in counts.items()}

    def _newest_of_the_older(self) -> datetime:
        """The time from which on the newest `stop_share` of the
        older rows happened, to a thousandth of a share's rows."""
        times = np.concatenate([one.times for one in self.facts])
        weights = np.concatenate([np.full(len(one.times), one.older) for one in self.facts])
        order = np.argsort(times)
        upto = np.cumsum(weights[order]) / weights.sum()
        return np.datetime64(int(times[order][np.searchsorted(upto, 1 - self.contract.stop_share)]),
                             "s").item()

    def _parts(self, vocabularies: Any, start: datetime | None,
               end: datetime | None) -> list[tuple[Any, np.ndarray]]:
        """The rows of [start, end): where a share has some, the future of its Block, and the labels."""
        module = self.contract.schema.__module__
        parts = [self.client.submit(part_of, module, share, vocabularies, start, end, pure=False)
                 for share in self.shares]
        return [(part, labels)
                for part, labels in zip(parts,
                                        self.client.gather(self.client.map(_labels, parts, pure=False)))
                if len(labels)]

    def _matrix(self, vocabularies: Any, start: datetime | None, end: datetime | None) -> tuple[Any, int]:
        """XGBoost's matrix of the rows of [start, end) on all workers, and how many they are."""
        from dask.array import concatenate, from_delayed
        from dask.delayed import delayed

        parts = [(delayed(part), len(labels)) for part, labels in self._parts(vocabularies, start, end)]
        matrix = concatenate([from_delayed(part.matrix, (rows, len(self.contract.features)), np.float32)
                              for part, rows in parts])
        labels = concatenate([from_delayed(part.labels, (rows,), np.float32) for part, rows in parts])
        return _dask().DaskDMatrix(self.client, matrix, labels, feature_types=feature_types(self.contract),
                                   enable_categorical=True), len(labels)

    def _train(self, matrix: Any, rounds: int, **named: Any) -> Any:
        # Dask knows a worker's threads.
        params = {name: value for name, value in booster_params(self.contract, 0).items()
                  if name != "nthread"}
        return _dask().train(self.client, params, matrix, rounds, verbose_eval=False, **named)["booster"]


def _labels(part: Block) -> np.ndarray:
    return part.labels


def _dask() -> Any:
    import xgboost.dask

    return xgboost.dask


def distribute(client: Any, contract: Contract, address: str, source: data.DataVersion,
               cut: datetime) -> DistributedTrainingSet:
    """Let each worker read its share of the files of a data version
    in the store at `address`; a worker without rows is left out."""
    workers, module = sorted(client.scheduler_info()["workers"]), contract.schema.__module__
    shares = [client.submit(read_share, module, address, source, cut, (index, len(workers)), workers=[worker],
                            allow_other_workers=True, pure=False) for index, worker in enumerate(workers)]
    facts = client.gather(client.map(facts_of, shares, cut=cut, pure=False))
    held = [(share, fact) for share, fact in zip(shares, facts) if fact.rows]
    return DistributedTrainingSet(contract, cut, client, *map(tuple, zip(*held)))
