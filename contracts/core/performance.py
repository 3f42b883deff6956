"""A model's performance on a window's labels, and its estimate while labels are missing."""

import numpy as np
from scipy.special import rel_entr
from scipy.stats import norm

from contracts.core.classification import row_losses
from contracts.core.contract import Contract
from contracts.core.verdict import Estimate, Performance

MIN_SHARE = 1e-3  # to which a class's expected share is clipped, so that a gap stays finite


def measure_performance(
    contract: Contract, labels: np.ndarray, probabilities: np.ndarray, coverage: float | None = None,
) -> Performance:
    """The performance on one or more labelled rows; labels int (n,), probabilities (n, classes)."""
    names = contract.label.classes
    observed = np.bincount(labels, minlength=len(names)) / len(labels)
    expected = probabilities.astype(np.float64).mean(axis=0)
    gap = float(rel_entr(observed, np.maximum(expected, MIN_SHARE)).sum())
    losses = row_losses(labels, probabilities)
    loss, margin = float(losses.mean()), float(norm.ppf(0.975) * losses.std() / np.sqrt(len(losses)))
    return Performance(
        rows=len(labels), log_loss=loss, low=loss - margin, high=loss + margin, gap=gap, coverage=coverage,
        observed=dict(zip(names, observed.tolist())), expected=dict(zip(names, expected.tolist())))


def estimate_performance(probabilities: np.ndarray) -> Estimate:
    """The performance of n predictions if their probabilities, (n, classes), are right."""
    clipped = np.clip(probabilities.astype(np.float64), 1e-7, 1.0)
    entropy = -(clipped * np.log(clipped)).sum(axis=1)
    return Estimate(rows=len(clipped), log_loss=float(entropy.mean()),
                    accuracy=float(clipped.max(axis=1).mean()))
