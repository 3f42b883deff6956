"""A model's performance on a window's labels, and its estimate while labels are missing."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from contracts.core.classification import row_losses
from contracts.core.contract import Contract

LEAST = 1e-3  # the least share of a class that is expected, so that a gap stays finite


@dataclass(frozen=True)
class Performance:
    """A model on a window's matured labels: its log loss, its 95 % confidence interval from `low` to `high`, and `gap`, how far
    the class shares are from expected. `coverage`: the share of the logged predictions whose label is in; None where no
    prediction was logged, and the model was asked again instead.

    The gap is the Kullback-Leibler divergence, in nats, of the shares that came true from the mean probabilities:
    unlike the log loss it does not rise with a week that is merely hard to predict.
    """

    rows: int
    log_loss: float
    gap: float
    observed: dict[str, float]
    expected: dict[str, float]
    low: float
    high: float
    coverage: float | None = None


def measure_performance(contract: Contract, labels: np.ndarray, probabilities: np.ndarray, coverage: float | None = None) -> Performance:
    """The scores of one or more labelled rows; labels int (n,), probabilities (n, classes)."""
    names = contract.label.classes
    shares = np.bincount(labels, minlength=len(names)) / len(labels)
    expected = probabilities.astype(np.float64).mean(axis=0)
    there = shares > 0
    gap = float(np.sum(shares[there] * np.log(shares[there] / np.maximum(expected[there], LEAST))))
    losses = row_losses(labels, probabilities)
    loss, off = float(losses.mean()), float(norm.ppf(0.975) * losses.std() / np.sqrt(len(losses)))
    return Performance(len(labels), loss, gap, dict(zip(names, shares.tolist())), dict(zip(names, expected.tolist())),
                  loss - off, loss + off, coverage)


def estimate_performance(probabilities: np.ndarray) -> dict[str, float]:
    """What the scores of n rows would be if the probabilities, (n, classes), were right: an estimate, while labels are not in."""
    sure = np.clip(probabilities.astype(np.float64), 1e-7, 1.0)
    return {"rows": len(sure), "log_loss": float(-(sure * np.log(sure)).sum(axis=1).mean()), "accuracy": float(sure.max(axis=1).mean())}
