"""A model's recalibration layer: what its probabilities were worth on labels that came later.

This is the layer of classification: a bias a class and one temperature (Guo et al., 2017, "On Calibration of
Modern Neural Networks", with the biases of their vector scaling).
"""

from functools import cache

import numpy as np
from msgspec import Struct

from contracts.core.classification import CLIP

CALIBRATION_FILE = "calibration.json"  # of a recalibrated version: its layer
MAX_BIAS = 10.0  # of a class: e^10 times its odds
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 10.0
# What one row tells of a parameter (its Fisher information, p (1 - p) of a bias), by which the shrinkage is
# counted in rows.
ROW_INFORMATION = 0.2
DECIMALS = 6  # of the parameters: the last bits of another machine make no other version


class Calibration(Struct, frozen=True):
    """The layer: probabilities p become softmax(log p / `temperature` + `bias`), `bias` one a class; that is
    p ** (1 / `temperature`) * exp(`bias`), divided by its sum."""

    bias: tuple[float, ...]
    temperature: float = 1.0

    @classmethod
    def none(cls, classes: int) -> "Calibration":
        """The layer that changes nothing."""
        return cls((0.0,) * classes)

    @property
    def is_none(self) -> bool:
        """Whether it changes nothing."""
        return self.temperature == 1.0 and not any(self.bias)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Recalibrated probabilities, float32 (n, classes), of those of the booster, float32 (n, classes);
        without an effect these very ones. What is no number stays none."""
        if self.is_none:
            return probabilities
        weights = probabilities.astype(np.float64) ** (1 / self.temperature)
        weights *= _factors(self.bias)
        weights /= weights.sum(axis=1, keepdims=True)
        return np.asarray(weights, np.float32)


@cache
def _factors(bias: tuple[float, ...]) -> np.ndarray:
    return np.asarray(np.exp(bias))


def fit_calibration(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None,
                    shrinkage: float = 0.0) -> Calibration:
    """The layer that has the least log loss on labelled rows, shrunk towards none.

    `labels` int (n,), `probabilities` (n, classes), `weights` (n,) or all 1. `shrinkage`: the penalty of a
    change, as the number of rows that would speak against it. The problem is convex in the biases and the
    inverse temperature; without a penalty a class that is absent would have a bias without end, and has
    -MAX_BIAS. Of no rows the layer is none.
    """
    from scipy.optimize import minimize  # imported here: slow, and replicas do without

    rows, classes = probabilities.shape
    weights = np.ones(rows) if weights is None else np.asarray(weights, np.float64)
    total = float(weights.sum()) + shrinkage
    if total <= 0:
        return Calibration.none(classes)
    logarithms, penalty = _logarithms(probabilities), shrinkage * ROW_INFORMATION
    hits = np.zeros((rows, classes))
    hits[np.arange(rows), labels] = 1

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The penalized mean loss and its gradient, by inverse temperature and biases."""
        change = parameters - start
        answers = _log_softmax(logarithms * parameters[0] + parameters[1:])
        excess = weights[:, None] * (np.exp(answers) - hits)
        value = -(weights * answers[np.arange(rows), labels]).sum() + penalty / 2 * (change @ change)
        gradient = np.array([(excess * logarithms).sum(), *excess.sum(axis=0)]) + penalty * change
        return value / total, gradient / total

    start = np.array([1.0, *np.zeros(classes)])
    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), *[(-MAX_BIAS, MAX_BIAS)] * classes]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds,
                     options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1_000}).x
    bias = np.round(found[1:] - found[1:].mean(), DECIMALS) + 0.0  # the same in all is none; there is no -0.0
    return Calibration(tuple(bias.tolist()), round(float(1 / found[0]), DECIMALS))


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.clip(probabilities.astype(np.float64), CLIP, 1.0))


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=1, keepdims=True)
    normalized: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalized
