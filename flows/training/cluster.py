"""Training on a Dask cluster, on rows that lie on its workers."""

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import xgboost

from contracts.core.challenger_policy import ALL_ROWS, Challenger
from contracts.core.challengers import RowChoice
from contracts.core.contract import Contract
from contracts.core.errors import PerennialError, Unavailable
from contracts.core.features import Columns
from contracts.core.loading import load_contract
from flows.training.blocks import Block, encode_categories
from flows.training.booster import StoppingResult, booster_params, feature_types
from flows.training.dataset import read_training_set, sorted_sample
from flows.training.vocabulary import CategoryVocabulary
from registry import data
from registry.settings import DASK
from registry.store import open_store
from service.model import Model

CONNECT_TIMEOUT = 10  # seconds within which the scheduler must answer
QUANTILES = np.linspace(0, 1, 1001)  # of a worker's event times


@contextmanager
def dask_client(address: str) -> Iterator[Any]:
    """A client of the Dask scheduler at `address`, such as tcp://127.0.0.1:8786; raises Unavailable."""
    try:
        import distributed
    except ImportError as error:
        raise PerennialError(f"{DASK} is {address} and Dask is not installed ({error}); run: pip install "
                             f"'perennial[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_TIMEOUT)
    except (OSError, ValueError, TimeoutError) as error:
        raise Unavailable(f"no Dask scheduler answers at {address}: {error}; start it, or correct or unset "
                          f"{DASK}") from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise Unavailable(f"the Dask scheduler at {address} has no workers; start some: dask worker "
                              f"{address}")
        yield client


@contextmanager
def named_worker_losses(address: str) -> Iterator[None]:
    """Raise Unavailable if a worker ends during a training; XGBoost and Dask raise errors of many kinds."""
    import distributed

    try:
        yield
    except (xgboost.core.XGBoostError, distributed.KilledWorker, CancelledError, OSError) as error:
        last_line = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise Unavailable(f"a worker of {address} was lost, or failed, while it trained: {last_line[0]}; "
                          f"nothing was registered: see the worker's log and run it again") from error


@dataclass(frozen=True)
class WorkerRows:
    """The rows of one worker, categories as numbers of its own `category_counts`."""

    block: Block
    category_counts: dict[str, CategoryVocabulary]
    sample: Columns


@dataclass(frozen=True)
class RowSummary:
    """What is gathered of a worker's rows; `times`: QUANTILES of its older rows' event times."""

    rows: int
    older: int
    category_counts: dict[str, CategoryVocabulary]
    sample: Columns
    times: np.ndarray


def read_share(module: str, address: str, source: data.DataVersion, cut: datetime,
               share: tuple[int, int]) -> WorkerRows:
    """Read a worker's share (i, n) of a data version's files; runs on the worker."""
    contract = load_contract(module)
    rows = data.chunks(open_store(address), source, contract.training_columns, share)
    training_set = read_training_set(contract, rows, source.rows, cut, Path(gettempdir()), blocks=1)
    return WorkerRows(training_set.block_files[0].read(), dict(training_set.category_counts),
                      training_set.sample)


def summarize(share: WorkerRows, cut: datetime) -> RowSummary:
    """Summarize a worker's rows; runs on the worker."""
    older = share.block.times[:share.block.first_from(cut)]
    times = np.quantile(older.astype(np.int64), QUANTILES) if len(older) else np.zeros(0)
    return RowSummary(len(share.block.labels), len(older), share.category_counts, share.sample, times)


def block_between(module: str, share: WorkerRows, vocabularies: dict[str, tuple[str, ...]],
                  start: datetime | None, end: datetime | None) -> Block:
    """A worker's rows of [start, end), categories coded by these vocabularies; runs on the worker."""
    first = 0 if start is None else share.block.first_from(start)
    last = None if end is None else share.block.first_from(end)
    return encode_categories(load_contract(module), share.block.rows(slice(first, last)).copy(),
                             share.category_counts, vocabularies)


def predict_block(part: Block, booster: Any) -> np.ndarray:
    """The booster's probabilities, (n, classes); runs on a worker."""
    return np.asarray(booster.inplace_predict(part.matrix))


@dataclass(frozen=True)
class DistributedTrainingSet:
    """A data version's rows on a cluster's workers, with the methods of `TrainingSet`."""

    contract: Contract
    cut: datetime
    client: Any
    shares: tuple[Any, ...]
    summaries: tuple[RowSummary, ...]
    challenger: Challenger = ALL_ROWS

    def of(self, challenger: Challenger) -> "DistributedTrainingSet":
        """As `TrainingSet.of`."""
        return replace(self, challenger=challenger)

    @property
    def rows(self) -> int:
        return sum(summary.rows for summary in self.summaries)

    @property
    def older(self) -> int:
        return sum(summary.older for summary in self.summaries)

    @property
    def workers(self) -> int:
        return len(self.shares)

    @property
    def sample(self) -> Columns:
        return sorted_sample(self.contract, [summary.sample for summary in self.summaries])

    def rounds(self) -> StoppingResult:
        """As `TrainingSet.rounds`; the newest rows are those from a certain time on."""
        vocabularies, newest = self._vocabularies(older=True), self._stopping_time()
        oldest = min(summary.times[0] for summary in self.summaries if summary.older)
        if newest <= np.datetime64(int(oldest), "s").item():
            raise PerennialError(f"{self.contract.name}: the older rows all happened by {newest}: none is "
                                 f"left to learn from before the newest {self.contract.stop_share:.0%}; "
                                 f"ingest more, or unset {DASK}")
        trained = self._matrix(vocabularies, None, newest, self._choice(older=True))
        held_out = self._matrix(vocabularies, newest, self.cut)
        probe = self._train(trained[0], self.contract.rounds, evals=[(held_out[0], "newest")],
                            early_stopping_rounds=self.contract.patience)
        return {"rounds": probe.best_iteration + 1, "stop_log_loss": float(probe.best_score),
                "stop_rows": held_out[1]}

    def fit(self, rounds: int, older: bool = False) -> Model:
        """Train on every row, or on the older ones. The workers' sums are
        added up, so the last bits depend on how many workers there are."""
        vocabularies = self._vocabularies(older)
        matrix, _ = self._matrix(vocabularies, None, self.cut if older else None, self._choice(older))
        return Model(self.contract, vocabularies, self._train(matrix, rounds))

    def newest(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """As `TrainingSet.newest`."""
        parts = self._parts(model.vocabularies, self.cut, None)
        answers = self.client.gather(self.client.map(predict_block, [part for part, _ in parts],
                                                     booster=model.booster, pure=False))
        return np.concatenate([labels for _, labels in parts]).astype(np.int64), np.concatenate(answers)

    def _vocabularies(self, older: bool) -> dict[str, tuple[str, ...]]:
        counts = {name: [summary.category_counts[name] for summary in self.summaries]
                  for name in self.summaries[0].category_counts}
        return {name: CategoryVocabulary.of_all(parts).vocabulary(older) for name, parts in counts.items()}

    def _stopping_time(self) -> datetime:
        """The event time from which on the newest `stop_share` of the older
        rows happened, exact to a thousandth of a worker's rows."""
        times = np.concatenate([summary.times for summary in self.summaries])
        weights = np.concatenate([np.full(len(summary.times), summary.older) for summary in self.summaries])
        order = np.argsort(times)
        cumulative = np.cumsum(weights[order]) / weights.sum()
        return np.datetime64(int(times[order][np.searchsorted(cumulative, 1 - self.contract.stop_share)]),
                             "s").item()

    def _parts(self, vocabularies: Any, start: datetime | None,
               end: datetime | None) -> list[tuple[Any, np.ndarray]]:
        """The rows of [start, end): of each worker with some, the future of its Block, and its labels."""
        module = self.contract.module
        parts = [self.client.submit(block_between, module, share, vocabularies, start, end, pure=False)
                 for share in self.shares]
        return [(part, labels)
                for part, labels in zip(parts,
                                        self.client.gather(self.client.map(_labels, parts, pure=False)))
                if len(labels)]

    def _choice(self, older: bool) -> RowChoice:
        """The rows of the challenger, and how they are weighted."""
        times = self.sample[self.contract.event_time]
        latest = self.cut if older else (times.max() + np.timedelta64(1, "s")).astype(datetime)
        return RowChoice.of(self.challenger, times, latest)

    def _matrix(self, vocabularies: Any, start: datetime | None, end: datetime | None,
                choice: RowChoice | None = None) -> tuple[Any, int]:
        """XGBoost's matrix of the rows of [start, end) on all workers, and how many they are; `choice`: of
        these, and with which weights."""
        from dask.array import concatenate, from_delayed
        from dask.delayed import delayed

        start = choice.since if choice and choice.since else start
        parts = [(delayed(part), len(labels)) for part, labels in self._parts(vocabularies, start, end)]
        matrix = concatenate([from_delayed(part.matrix, (rows, len(self.contract.features)), np.float32)
                              for part, rows in parts])
        labels = concatenate([from_delayed(part.labels, (rows,), np.float32) for part, rows in parts])
        weights = (concatenate([from_delayed(delayed(choice.weights)(part.times), (rows,), np.float32)
                                for part, rows in parts]) if choice and choice.half_life else None)
        return _dask().DaskDMatrix(self.client, matrix, labels, weight=weights, enable_categorical=True,
                                   feature_types=feature_types(self.contract)), len(labels)

    def _train(self, matrix: Any, rounds: int, **options: Any) -> Any:
        # The number of threads is each worker's own.
        params = {name: value for name, value in booster_params(self.contract, 0).items()
                  if name != "nthread"}
        return _dask().train(self.client, params, matrix, rounds, verbose_eval=False, **options)["booster"]


def _labels(part: Block) -> np.ndarray:
    return part.labels


def _dask() -> Any:
    import xgboost.dask

    return xgboost.dask


def distribute(client: Any, contract: Contract, address: str, source: data.DataVersion,
               cut: datetime) -> DistributedTrainingSet:
    """Have each worker read its share of a data version's files from the
    store at `address`; workers without rows are left out."""
    workers, module = sorted(client.scheduler_info()["workers"]), contract.module
    shares = [client.submit(read_share, module, address, source, cut, (index, len(workers)), workers=[worker],
                            allow_other_workers=True, pure=False) for index, worker in enumerate(workers)]
    summaries = client.gather(client.map(summarize, shares, cut=cut, pure=False))
    non_empty = [(share, summary) for share, summary in zip(shares, summaries) if summary.rows]
    with_rows, their_summaries = map(tuple, zip(*non_empty))
    return DistributedTrainingSet(contract, cut, client, with_rows, their_summaries)
