"""Recalibration between trainings: when it is due, the layer that labels ask for, and that layer judged on
rows that it was not fitted to. Pure functions of labelled answers and the contract's policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from contracts.core.calibration import Calibration, fit_calibration
from contracts.core.policies import Recalibration

FOLDS = 7  # parts of the gate's window, each judged by a layer that has not seen it: days of a week
EARLY = 0.1  # of `every`, by which a recalibration may come early: a scheduled look is seconds late or early


@dataclass(frozen=True)
class LabelledAnswers:
    """Labelled events, oldest first: n event times, class indices int64 (n,), and the booster's probabilities
    without any layer, float32 (n, classes). `slices`: the values of the gate's slices, (n,) each."""

    times: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    slices: Mapping[str, np.ndarray]

    def rows(self, chosen: np.ndarray) -> "LabelledAnswers":
        """Some of the rows, by a mask or by indices."""
        return LabelledAnswers(self.times[chosen], self.labels[chosen], self.probabilities[chosen],
                               {name: values[chosen] for name, values in self.slices.items()})


def is_due(since: datetime, until: datetime, policy: Recalibration) -> bool:
    """Whether labels that are in up to `until` ask for a recalibration, after one (or a training) on those up
    to `since`."""
    return until - since >= policy.every * (1 - EARLY)


def fit_layer(answers: LabelledAnswers, until: datetime, policy: Recalibration) -> Calibration:
    """The layer for what comes after `until`, by labelled answers before: the newer one is, the more it
    counts."""
    weights = 0.5 ** _ages(answers.times, until, policy.half_life)
    shrinkage = policy.shrinkage * float(weights.sum()) + policy.prior_rows
    return fit_calibration(answers.labels, answers.probabilities, weights, shrinkage)


def cross_fitted(answers: LabelledAnswers, until: datetime, window: timedelta,
                 policy: Recalibration) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are of the newest `window` before `until`, bool (n,), and their probabilities, float32
    (m, classes), recalibrated by layers that were not fitted to them.

    Each seventh of the window has a layer of its own, fitted to all other rows.
    """
    parts = np.floor(_ages(answers.times, until, window / FOLDS)).astype(int)
    is_judged = parts < FOLDS
    probabilities = np.array(answers.probabilities)
    for part in np.unique(parts[is_judged]):
        inside = parts == part
        layer = fit_layer(answers.rows(~inside), until, policy)
        probabilities[inside] = layer.apply(answers.probabilities[inside])
    return is_judged, probabilities[is_judged]


def _ages(times: np.ndarray, until: datetime, unit: timedelta) -> np.ndarray:
    """How long before `until` each event was, float64 (n,)."""
    ages = (np.datetime64(until, "us") - times.astype("datetime64[us]")).astype(np.float64)
    return np.asarray(ages / (unit.total_seconds() * 1e6))
