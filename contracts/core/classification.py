"""The classification task: its label, its predictions and their columns, its metrics, its training objective.

This is the one module that knows what a model predicts; another task is another module like it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.core.metrics import Metrics
from contracts.core.verdict import Estimate, Performance

if TYPE_CHECKING:
    from contracts.core.contract import Contract
    from contracts.core.outcome_sums import OutcomeSums, PromisedSums


PREDICTION = "prediction"  # the column of the predicted class, in profiles
PROBABILITY = "probability."  # prefix of the column of a class's probability, in profiles and logs
CALIBRATION_BINS = 10
TWO_SIDED = NormalDist().inv_cdf(0.975)  # deviations of a 95 % interval
CLIP = 1e-7  # to which a probability is clipped before its logarithm
SUM_ERROR = 1e-3  # by which a row's probabilities, in float32, may miss a sum of one
MIN_SHARE = 1e-3  # to which a class's expected share is clipped, so that a gap stays finite


def is_output(name: str) -> bool:
    """Whether a column is an output of the model, not a feature."""
    return name == PREDICTION or name.startswith(PROBABILITY)


@dataclass(frozen=True)
class Label:
    """What is predicted: `of` turns the columns it `needs` into indices of `classes`.

    `matures`: how long after the event the label is known. `weights`: the predicted class is the one whose
    probability times its weight is the largest, so that a rare class can be predicted at all.
    """

    classes: tuple[str, ...]
    needs: tuple[str, ...]
    of: Callable[..., np.ndarray]
    matures: timedelta
    weights: tuple[float, ...] = ()

    @cached_property
    def class_weights(self) -> np.ndarray:
        """The weight of each class, float64 (classes,)."""
        return np.asarray(self.weights or (1.0,) * len(self.classes))

    def predicted(self, probabilities: np.ndarray) -> np.ndarray:
        """The index of each row's predicted class, int64 (n,), by its probabilities, (n, classes)."""
        return np.asarray(np.argmax(probabilities * self.class_weights, axis=1))

    @cached_property
    def probability_names(self) -> tuple[str, ...]:
        """The column of each class's probability."""
        return tuple(PROBABILITY + name for name in self.classes)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The columns of the model's outputs."""
        return (PREDICTION, *self.probability_names)

    def probability_columns(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities, (n, classes), by column."""
        return dict(zip(self.probability_names, probabilities.T))

    def output_columns(self, probabilities: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
        """The model's outputs by column: the names of the predicted classes, and all probabilities."""
        return {PREDICTION: np.asarray(self.classes, object)[predicted],
                **self.probability_columns(probabilities)}

    def probabilities_in(self, frame: Any) -> np.ndarray:
        """The probabilities, (n, classes), in a data frame with the columns `probability_names`."""
        return np.asarray(frame[list(self.probability_names)])

    def settings(self) -> Iterator[tuple[str, Any, bool, str]]:
        """Each setting that can be invalid: its name, its value, whether it is valid, and the rule."""
        count, distinct = len(self.classes), len({*self.classes})
        yield "label.classes", self.classes, distinct == count >= 2, "two names or more, all different"
        yield ("label.weights", self.weights,
               len(self.weights) in (0, count) and all(weight > 0 for weight in self.weights),
               "one positive number for each class")
        yield "label.matures", self.matures, self.matures >= timedelta(0), "no less than nothing"


def training_objective(label: Label) -> dict[str, Any]:
    """XGBoost's parameters for this task."""
    return {"objective": "multi:softprob", "num_class": len(label.classes)}


def row_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each row's log loss; labels int (n,), probabilities (n, classes), clipped at CLIP."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(chosen.astype(np.float64), CLIP, 1.0)))


def classification_metrics(contract: "Contract", labels: np.ndarray, probabilities: np.ndarray) -> Metrics:
    """A model's metrics on labelled rows; None where undefined, as all are of invalid probabilities."""
    from sklearn.metrics import recall_score  # imported here: replicas have no scikit-learn

    classes, rows = np.arange(len(contract.label.classes)), len(labels)
    if probability_fault(contract, probabilities):
        labels, probabilities = labels[:0], np.empty((0, len(classes)))
    predicted = contract.label.predicted(probabilities)
    present = np.isin(classes, labels)
    has_labels = len(labels) > 0
    recalls = (recall_score(labels, predicted, labels=classes, average=None, zero_division=np.nan)
               if has_labels else [])
    return Metrics(
        rows=rows,
        log_loss=float(row_losses(labels, probabilities).mean()) if has_labels else None,
        auc=_auc(labels, probabilities) if present.all() else None,
        calibration_error=calibration_error(labels, probabilities) if has_labels else None,
        recall={name: float(recall) if is_present else None
                for name, recall, is_present in zip(contract.label.classes, recalls, present)})


def probability_fault(contract: "Contract", probabilities: np.ndarray) -> str:
    """Why these are not valid probabilities, one a class in each row; empty if they are."""
    answered, declared = probabilities.shape[1], len(contract.label.classes)
    if answered != declared:
        return f"answers {answered} classes, the contract has {declared}"
    bad = ~((probabilities >= 0).all(axis=1) & (abs(probabilities.sum(axis=1) - 1) < SUM_ERROR))
    return (f"answers {bad.sum()} of {len(bad)} rows with invalid probabilities, such as "
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
    """The total variation distance, 0 to 1, of the class shares that two models predict for the same rows."""
    shares = [np.bincount(contract.label.predicted(probabilities), minlength=probabilities.shape[1])
              / len(probabilities) for probabilities in (challenger, champion)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def performance_of_sums(contract: "Contract", sums: "OutcomeSums",
                        coverage: float | None = None) -> Performance:
    """The performance on one or more labelled rows, by the sums over them."""
    from scipy.special import rel_entr  # imported here: slow, and replicas do without

    n, loss, names = sums.rows, sums.loss / sums.rows, contract.label.classes
    observed, expected = sums.observed / n, sums.probabilities.sum(axis=1) / n
    gap = float(rel_entr(observed, np.maximum(expected, MIN_SHARE)).sum())
    deviation = max(sums.loss_squared / n - loss ** 2, 0.0) ** 0.5
    margin = TWO_SIDED * deviation / n ** 0.5
    return Performance(
        rows=n, log_loss=loss, low=loss - margin, high=loss + margin, gap=gap, coverage=coverage,
        observed=dict(zip(names, observed.tolist())), expected=dict(zip(names, expected.tolist())))


def estimate_of_sums(sums: "PromisedSums") -> Estimate:
    """The performance of one or more predictions if their probabilities are right."""
    return Estimate(rows=sums.rows, log_loss=sums.promised / sums.rows, accuracy=sums.largest / sums.rows)
