"""A model's performance on a window's labels, and its estimate while labels are missing."""

import numpy as np
from scipy.stats import norm

from contracts.core.classification import row_losses
from contracts.core.contract import Contract
from contracts.core.verdict import Estimate, Performance

LEAST = 1e-3  # the least share of a class that is expected, so that a gap stays finite


def measure_performance(
    contract: Contract, labels: np.ndarray, probabilities: np.ndarray, coverage: float | None = None,
) -> Performance:
    """The performance on one or more labelled rows; labels int (n,), probabilities (n, classes)."""
    names = contract.label.classes
    observed = np.bincount(labels, minlength=len(names)) / len(labels)
    expected = probabilities.astype(np.float64).mean(axis=0)
    there = observed > 0
    gap = float(np.sum(observed[there] * np.log(observed[there] / np.maximum(expected[there], LEAST))))
    losses = row_losses(labels, probabilities)
    loss, margin = float(losses.mean()), float(norm.ppf(0.975) * losses.std() / np.sqrt(len(losses)))
    return Performance(
        rows=len(labels), log_loss=loss, low=loss - margin, high=loss + margin, gap=gap, coverage=coverage,
        observed=dict(zip(names, observed.tolist())), expected=dict(zip(names, expected.tolist())))


def estimate_performance(probabilities: np.ndarray) -> Estimate:
    """The performance of n predictions if their probabilities, (n, classes), are right."""
    sure = np.clip(probabilities.astype(np.float64), 1e-7, 1.0)
    entropy = -(sure * np.log(sure)).sum(axis=1)
    return Estimate(rows=len(sure), log_loss=float(entropy.mean()), accuracy=float(sure.max(axis=1).mean()))
