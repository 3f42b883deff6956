"""Limits that challenger and champion both break on the same rows: by how much the challenger is behind on
each, and whether that is more than noise.

Every `behind` is a difference over the same rows, above 0 where the challenger is worse.
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest

from contracts.core.classification import CALIBRATION_BINS
from contracts.core.contract import Contract
from contracts.core.gate_verdict import BrokenByBoth, Difference
from contracts.core.limits import AUC, CALIBRATION_ERROR, LOG_LOSS, broken_limits, recall_of
from contracts.core.metrics import Metrics
from contracts.core.policies import Gate


def is_better(limits: Gate, paired: Difference) -> bool:
    """Whether the challenger's log loss is better than the champion's, by the interval of the same rows."""
    return paired.high <= limits.margin and paired.difference < limits.margin


def broken_by_both(contract: Contract, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray,
                   metrics: tuple[Metrics, Metrics], paired: Difference) -> list[BrokenByBoth]:
    """The limits that both break; probabilities are (n, classes), `metrics` the challenger's and the
    champion's.

    One is forgiven if `Gate.absolute` allows that, the log loss is better by the interval `paired` and not
    equal, and the challenger is not behind on it by more than chance.
    """
    limits = contract.gate
    allowed = limits.absolute == "relative" and is_better(limits, paired) and paired.difference < 0
    broken = [{limit.name: limit for limit in broken_limits(contract, one)} for one in metrics]
    shared = []
    for name in broken[0]:
        if name in broken[1]:
            behind = paired if name == LOG_LOSS else _behind(contract, name, labels, challenger, champion)
            shared.append(BrokenByBoth(
                name=name, limit=broken[0][name].limit, challenger=broken[0][name].value,
                champion=broken[1][name].value, behind=behind.difference, low=behind.low, high=behind.high,
                forgiven=allowed and behind.low <= 0))
    return shared


def _behind(contract: Contract, name: str, labels: np.ndarray, challenger: np.ndarray,
            champion: np.ndarray) -> Difference:
    confidence = contract.gate.confidence
    if name == AUC:
        return _mean_difference(auc_by_row, labels, champion, challenger, confidence)
    if name == CALIBRATION_ERROR:
        return _mean_difference(calibration_error_by_row, labels, challenger, champion, confidence)
    index = [recall_of(one) for one in contract.label.classes].index(name)
    mine, theirs = (contract.label.predicted(answers[labels == index]) == index
                    for answers in (challenger, champion))
    return recall_behind(mine, theirs, confidence)


def recall_behind(challenger: np.ndarray, champion: np.ndarray, confidence: float) -> Difference:
    """Champion's recall minus challenger's, by the hits of each, bool (n,), on the rows of a class.

    Rows on which both agree say nothing of the difference (McNemar, 1947); the share of the others that
    the challenger loses has an exact binomial interval (Clopper and Pearson, 1934).
    """
    lost, differing = int((champion & ~challenger).sum()), int((champion != challenger).sum())
    if not differing:
        return Difference(difference=0.0, low=0.0, high=0.0)
    interval = binomtest(lost, differing).proportion_ci(confidence)
    of_all = differing / len(champion)
    behind = [float((2 * share - 1) * of_all) for share in (lost / differing, interval.low, interval.high)]
    return Difference(difference=behind[0], low=behind[1], high=behind[2])


def _mean_difference(by_row: Callable[[np.ndarray, np.ndarray], np.ndarray], labels: np.ndarray,
                     first: np.ndarray, second: np.ndarray, confidence: float) -> Difference:
    """The first model's metric minus the second's, with the normal interval of a mean over the same rows."""
    difference = by_row(labels, first) - by_row(labels, second)
    mean = float(difference.mean())
    margin = float(NormalDist().inv_cdf((1 + confidence) / 2) * difference.std() / len(difference) ** 0.5)
    return Difference(difference=mean, low=mean - margin, high=mean + margin)


def auc_by_row(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """What each row adds to the AUC, (n,): their mean is the AUC, of one class against the rest and
    unweighted, and their scatter that of its estimate (DeLong, DeLong and Clarke-Pearson, 1988)."""
    added = np.zeros(len(labels))
    for index, scores in enumerate(probabilities.T):
        hit = labels == index
        above, below = _share_below(scores[hit], scores[~hit]), 1 - _share_below(scores[~hit], scores[hit])
        area, n = above.mean(), len(labels)
        added[hit] += area + (above - area) * n / hit.sum()
        added[~hit] += area + (below - area) * n / (~hit).sum()
    return np.asarray(added / probabilities.shape[1])


def _share_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of the others below each score; those equal to it count a half."""
    ordered = np.sort(others)
    left, right = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return np.asarray((left + right) / 2 / len(others))


def calibration_error_by_row(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """What each row adds to the calibration error, (n,): their mean is the error, and their scatter that of
    its estimate, while no bin's gap changes its sign."""
    added = np.zeros(len(labels))
    for index, promised in enumerate(probabilities.astype(np.float64).T):
        gap = promised - (labels == index)
        bins = np.minimum((promised * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        added += np.sign(np.bincount(bins, gap, CALIBRATION_BINS))[bins] * gap
    return np.asarray(added / probabilities.shape[1])
