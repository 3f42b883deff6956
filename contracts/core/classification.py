"""The classification task: its label, its metrics, and the names of its output columns."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from contracts.core.verdict import Metrics

if TYPE_CHECKING:
    from contracts.core.contract import Contract


PREDICTION = "prediction"  # the named class, in a profile
PROBABILITY = "probability."  # a class's probability, in a profile: this and the class's name


def is_output(name: str) -> bool:
    """Whether a profile's column is what the model answered, not what it was asked."""
    return name == PREDICTION or name.startswith(PROBABILITY)


@dataclass(frozen=True)
class Label:
    """What is predicted: `of` turns the columns it `needs` into indices of `classes`.

    `matures`: how long after the event the label is known. `weights`: a class is named when its probability
    times its weight is the largest, so that a rare class can be named at all.
    """

    classes: tuple[str, ...]
    needs: tuple[str, ...]
    of: Callable[..., np.ndarray]
    matures: timedelta
    weights: tuple[float, ...] = ()


def row_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each row's log loss; labels int (n,), probabilities (n, classes), clipped at 1e-7."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(chosen.astype(np.float64), 1e-7, 1.0)))


CALIBRATION_BINS = 10
SUM_ERROR = 1e-3  # a row's probabilities, in float32, add up to one but for this


def classification_metrics(contract: "Contract", labels: np.ndarray, probabilities: np.ndarray) -> Metrics:
    """A model's metrics on labelled rows; undefined ones are None, of wrong probabilities all."""
    from sklearn.metrics import recall_score  # what serves has no scikit-learn

    classes, rows = np.arange(len(contract.label.classes)), len(labels)
    if probability_fault(contract, probabilities):
        labels, probabilities = labels[:0], np.empty((0, len(classes)))
    named = (probabilities * contract.weights).argmax(axis=1)
    present = np.isin(classes, labels)
    recalls = (recall_score(labels, named, labels=classes, average=None, zero_division=np.nan) if len(labels)
               else [])
    has_labels = len(labels) > 0
    return Metrics(
        rows=rows,
        log_loss=float(row_losses(labels, probabilities).mean()) if has_labels else None,
        auc=_auc(labels, probabilities) if present.all() else None,
        calibration_error=calibration_error(labels, probabilities) if has_labels else None,
        recall={name: float(recall) if there else None
                for name, recall, there in zip(contract.label.classes, recalls, present)})


def probability_fault(contract: "Contract", probabilities: np.ndarray) -> str:
    """What keeps these from being one probability a class in each row; empty if nothing does."""
    given, wanted = probabilities.shape[1], len(contract.label.classes)
    if given != wanted:
        return f"answers {given} classes, the contract names {wanted}"
    bad = ~((probabilities >= 0).all(axis=1) & (abs(probabilities.sum(axis=1) - 1) < SUM_ERROR))
    return (f"answers {bad.sum()} of {len(bad)} rows with what are no probabilities, such as "
            f"{probabilities[bad][0]}" if bad.any() else "")


def _auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the curve, each class against the rest, unweighted mean."""
    from sklearn.metrics import roc_auc_score

    return float(np.mean([roc_auc_score(labels == k, p) for k, p in enumerate(probabilities.T)]))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error, the mean over the classes, ten equal bins (Naeini et al., 2015)."""
    hits = labels[:, None] == np.arange(probabilities.shape[1])
    return float(np.mean([_bin_gaps(p, hit) for p, hit in zip(probabilities.T, hits.T)]))


def _bin_gaps(probability: np.ndarray, hit: np.ndarray) -> float:
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=probability - hit, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(hit))


def class_distance(contract: "Contract", challenger: np.ndarray, champion: np.ndarray) -> float:
    """The total variation distance of the class shares that two models name for the same rows, 0 to 1."""
    shares = [np.bincount((each * contract.weights).argmax(axis=1), minlength=each.shape[1]) / len(each)
              for each in (challenger, champion)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
