"""Out-of-time predictions of the training rows: how the model would have done in windows it had not seen."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from contracts.core.contract import Contract
from contracts.core.features import Columns
from contracts.core.ordinary import OutcomeBaseline
from contracts.core.outcome_baseline import learn_baseline
from contracts.core.outcome_measures import block_length, block_of
from contracts.core.outcome_sums import SlicedSums
from flows.training.blocks import Block
from flows.training.booster import train_booster
from service.model import Model

FOLDS = 8  # models that are trained, each on the rows before those that it predicts
MAX_WINDOWS = 26  # predicted at most, the newest
FIRST_SHARE = 0.3  # of the time, whose rows only train
MAX_ROWS = 40_000  # that each model is trained on
MIN_ROWS = 200  # that a model needs


def learn_outcome_baseline(model: Model, columns: Columns, labels: np.ndarray,
                           rounds: int) -> OutcomeBaseline | None:
    """What is ordinary in a model's performance, from its training sample: columns and class indices of rows
    in time order; None where they are too few windows."""
    contract = model.contract
    block = Block(model.matrix(columns), labels.astype(np.float32), columns[contract.event_time])
    slices = {name: columns[name] for name in contract.gate.slices if name in columns}
    return baseline_of(contract, block, predict_out_of_time(contract, block, rounds), slices)


@dataclass(frozen=True)
class OutOfTime:
    """Out-of-time predictions: n rows' indices in the training sample, probabilities (n, classes)."""

    rows: np.ndarray
    probabilities: np.ndarray


def predict_out_of_time(contract: Contract, block: Block, rounds: int, threads: int = 0) -> OutOfTime:
    """Predict the newest windows of the rows, in time order, by models that are trained on what was before.

    The last window that is predicted ends with the last row. Each of FOLDS models predicts the same number
    of windows, so that the predictions age as a champion's do.
    """
    length = np.timedelta64(contract.drift.window)
    first, end = block.times[0], block.times[-1] + np.timedelta64(1, "s")
    count = min(int((end - first) * (1 - FIRST_SHARE) / length), MAX_WINDOWS)
    per_fold = max(-(-count // FOLDS), 1)
    starts = [end - length * back for back in range(count, 0, -per_fold)]
    rows, probabilities = [], []
    for start, until in zip(starts, [*starts[1:], end]):
        cut, stop = np.searchsorted(block.times, [start, until])
        known = block.labels[:cut]
        if cut < MIN_ROWS or len(np.unique(known)) < 2 or stop == cut:
            continue
        chosen = np.unique(np.linspace(0, cut - 1, MAX_ROWS).astype(int)) if cut > MAX_ROWS else slice(cut)
        booster = train_booster(contract, iter([block.rows(chosen)]), 1, rounds, threads)
        rows.append(np.arange(cut, stop))
        probabilities.append(booster.inplace_predict(block.matrix[cut:stop]))
    if not rows:
        return OutOfTime(np.zeros(0, int), np.zeros((0, len(contract.label.classes)), np.float32))
    return OutOfTime(np.concatenate(rows), np.concatenate(probabilities))


def baseline_of(contract: Contract, block: Block, predicted: OutOfTime,
                slices: Mapping[str, np.ndarray]) -> OutcomeBaseline | None:
    """What is ordinary in the performance on the out-of-time windows; None where they are too few.
    `slices`: the values of all rows by slice's column."""
    window = contract.drift.window
    times, labels = block.times[predicted.rows], block.labels[predicted.rows].astype(np.int64)
    blocks, length = block_of(times, window), block_length(window)
    names = {column: values[predicted.rows] for column, values in slices.items()}

    def sums_of(start: np.datetime64) -> SlicedSums:
        here = slice(*np.searchsorted(blocks, [start, start + np.timedelta64(length)]))
        return SlicedSums.of(labels[here], predicted.probabilities[here],
                             {column: values[here] for column, values in names.items()})

    if not len(blocks):
        return None
    # Blocks without a row, as a shop's nights, are a part of their window, too.
    starts = np.arange(blocks[0], blocks[-1] + np.timedelta64(length), np.timedelta64(length))
    return learn_baseline([sums_of(start) for start in starts], window // length)
