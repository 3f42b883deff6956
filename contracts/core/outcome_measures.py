"""Measures of how a model does on labelled rows, with their sampling error, from sums over the rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import sqrt
from typing import Any, TypeAlias

import numpy as np

from contracts.core.classification import MIN_SHARE, TWO_SIDED
from contracts.core.outcome_sums import OutcomeSums, SlicedSums
from contracts.core.outcome_verdict import CalibrationBin, OutcomeMeasure
from contracts.core.windows import WEEK_ZERO

# The slice's column in which a window's rows are told apart by their event time, in BLOCKS_A_WINDOW parts.
BLOCKS = "(time block)"
BLOCKS_A_WINDOW = 28  # six hours of a week
MIN_OF_CLASS = 10  # rows with a label, and without it, from which on its area under the curve is measured
MIN_IN_BLOCK = 2  # the same within a time block
CALIBRATION_GROUPS = 10
# By class: rows with and without the label, the area under the curve, and the promised area.
RankedClasses: TypeAlias = list[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Measured:
    """A measure's value, its standard error by sampling alone, and the skewness of that error.

    Of a sum of squares they hold where the true value is 0; `slope`: the variance that is added for each unit
    of it.
    """

    value: float
    error: float
    skewness: float = 0.0
    slope: float = 0.0

    def at(self, true_value: float) -> "Measured":
        """With the error that it has for this true value, as a noncentral chi-square has."""
        added = self.slope * max(true_value, 0.0) / max(self.error ** 2, 1e-300)
        return Measured(self.value, self.error * sqrt(1 + added),
                        self.skewness * (1 + 1.5 * added) / (1 + added) ** 1.5)


def block_length(window: timedelta) -> timedelta:
    """Of the BLOCKS_A_WINDOW parts of a window; a minute where these would be shorter."""
    return timedelta(minutes=max(window // timedelta(minutes=BLOCKS_A_WINDOW), 1))


def block_of(times: np.ndarray, window: timedelta) -> np.ndarray:
    """The start of each event time's block, datetime64[m]; counted from a Monday, as windows are."""
    zero, length = np.datetime64(WEEK_ZERO, "m"), np.timedelta64(block_length(window))
    return np.asarray(zero + (times.astype("datetime64[m]") - zero) // length * length)


def measures(sums: SlicedSums) -> dict[OutcomeMeasure, Measured]:
    """Every measure that the rows suffice for; AUC measures need MIN_OF_CLASS rows with and without a label.

    `LOSS_TRAINED` is the mean log loss and `AUC_TRAINED` the negative area itself: what they were at training
    is subtracted by the caller.
    """
    return measures_of(sums.whole, [ranked(block) for block in sums.slices.get(BLOCKS, {}).values()])


def measures_of(whole: OutcomeSums, blocks: Sequence[RankedClasses]) -> dict[OutcomeMeasure, Measured]:
    """The measures of rows by their sums, and by the rankings within each of their time blocks."""
    if not whole.rows:
        return {}
    found = loss_measures(whole)
    classes = [index for index in range(len(whole.counts)) if _has_enough(whole, index)]
    if not classes:
        return found
    of_whole = ranked(whole)
    found[OutcomeMeasure.AUC_TRAINED] = _area(of_whole, classes)
    for name, strata, least in ((OutcomeMeasure.AUC_PROMISED, [of_whole], MIN_OF_CLASS),
                                (OutcomeMeasure.AUC_IN_BLOCKS, blocks, MIN_IN_BLOCK)):
        if (measured := _shortfall(strata, classes, least)) is not None:
            found[name] = measured
    return found


def loss_measures(sums: OutcomeSums) -> dict[OutcomeMeasure, Measured]:
    """The measures that need no ranking: of the log loss, the calibration and the class shares."""
    n = sums.rows
    # Labels are drawn from the probabilities, if these are right; if not, their own scatter is the larger.
    variance = max(sums.variance, sums.surprise - (sums.loss - sums.promised) ** 2 / n, 1e-12)
    spread = max(sums.loss_squared / n - (sums.loss / n) ** 2, 1e-12)
    return {
        OutcomeMeasure.LOSS_PROMISED: Measured((sums.loss - sums.promised) / n, sqrt(variance) / n,
                                               max(sums.third, 0.0) / max(sums.variance, 1e-12) ** 1.5),
        OutcomeMeasure.LOSS_TRAINED: Measured(sums.loss / n, sqrt(spread / n)),
        OutcomeMeasure.CALIBRATION: _calibration_gap(sums),
        OutcomeMeasure.CLASS_SHARES: _class_gap(sums)}


def _shortfall(strata: Sequence[RankedClasses], classes: Sequence[int], least: int) -> Measured | None:
    """By how much the area under the curve is below the promised one: the mean over classes and strata,
    weighted by the pairs of rows they compare (van Elteren, 1960); None where no stratum has enough rows.

    `least`: rows with and without the label that a stratum needs. The error is that of Hanley and McNeil
    (1982).
    """
    weight = difference = 0.0
    errors = []
    for index in classes:
        parts = np.array([stratum[index] for stratum in strata if min(stratum[index][:2]) >= least])
        if not len(parts):
            continue
        hits, others, realised, promised = parts.T
        weights = hits * others / (hits + others)
        mean = float((weights * realised).sum() / weights.sum())
        difference += float((weights * (promised - realised)).sum())
        errors.append(sqrt(float((weights ** 2 * _area_variance(mean, hits, others)).sum())))
        weight += float(weights.sum())
    return Measured(difference / weight, _joint_error(errors) / weight) if weight else None


def areas(sums: OutcomeSums) -> dict[int, tuple[float, float]]:
    """By the index of each class with enough rows, the area under its curve and the promised one."""
    found = {index: _ranked_class(sums, index) for index in range(len(sums.counts))
             if _has_enough(sums, index)}
    return {index: (realised, promised) for index, (_, _, realised, promised) in found.items()}


def calibration_bins(sums: OutcomeSums, index: int) -> list[CalibrationBin]:
    """The calibration of a class in tenths of the rows, by the order of their probability."""
    bins = []
    for rows, hits, promised in _groups(sums, index):
        share = promised / rows
        margin = TWO_SIDED * sqrt(max(promised * (1 - share), 0.0)) / rows
        bins.append(CalibrationBin(rows=int(rows), promised=share, observed=hits / rows,
                                   low=max(share - margin, 0.0), high=min(share + margin, 1.0)))
    return bins


def ranked(sums: OutcomeSums) -> RankedClasses:
    """By class: rows with and without the label, the area under the curve, and the promised area."""
    return [_ranked_class(sums, index) for index in range(len(sums.counts))]


def _ranked_class(sums: OutcomeSums, index: int) -> tuple[float, float, float, float]:
    counts, hits, whole = (values[index].astype(np.float64)
                           for values in (sums.counts, sums.hits, sums.probabilities))
    # A row is no pair with itself: in a narrow bin the square of its probability is that of the mean.
    with_itself = float((whole - whole ** 2 / np.maximum(counts, 1)).sum())
    return (float(hits.sum()), float((counts - hits).sum()), _area_of(hits, counts - hits, 0.0),
            _area_of(whole, counts - whole, with_itself))


def _area_of(with_label: np.ndarray, without: np.ndarray, with_itself: float) -> float:
    """The area under the curve of weights by bin (BINS,); ties within a bin count a half."""
    below = np.cumsum(without) - without
    pairs = float(with_label.sum() * without.sum()) - with_itself
    won = float((with_label * (below + without / 2)).sum()) - with_itself / 2
    return won / pairs if pairs > 0 else 0.5


def _area_variance(area: Any, hits: Any, others: Any) -> Any:
    """The sampling variance of areas, by the rows with and without the label; numbers or (n,)."""
    first, second = area / (2 - area), 2 * area ** 2 / (1 + area)
    return (area * (1 - area) + (hits - 1) * (first - area ** 2)
            + (others - 1) * (second - area ** 2)) / (hits * others)


def _has_enough(sums: OutcomeSums, index: int) -> bool:
    hits = int(sums.observed[index])
    return min(hits, sums.rows - hits) >= MIN_OF_CLASS


def _area(of_whole: RankedClasses, classes: Sequence[int]) -> Measured:
    """The negative mean area over the classes that have enough rows, as a measure that rises with faults."""
    hits, others, realised, _ = np.array([of_whole[index] for index in classes]).T
    errors = np.sqrt(_area_variance(realised, hits, others)).tolist()
    return Measured(-float(realised.mean()), _joint_error(errors) / len(classes))


def _joint_error(errors: list[float]) -> float:
    """The standard error of a sum over k classes, whose errors correlate by 1 / (k - 1), as the labels of
    equally frequent classes do: with two classes one is the other's mirror."""
    correlation = 1 / max(len(errors) - 1, 1)
    return sqrt(correlation * sum(errors) ** 2 + (1 - correlation) * sum(error ** 2 for error in errors))


def _groups(sums: OutcomeSums, index: int) -> Iterator[tuple[float, float, float]]:
    """Rows, hits and the promised number of hits of each tenth of the rows, by their probability."""
    counts = sums.counts[index]
    before = np.cumsum(counts) - counts / 2
    group = np.minimum(before * CALIBRATION_GROUPS // max(counts.sum(), 1), CALIBRATION_GROUPS - 1)
    cells = [np.bincount(group.astype(np.int64), values[index], CALIBRATION_GROUPS)
             for values in (sums.counts, sums.hits, sums.probabilities)]
    yield from ((float(rows), float(hits), float(promised)) for rows, hits, promised in zip(*cells) if rows)


def _calibration_gap(sums: OutcomeSums) -> Measured:
    """The mean squared gap of promised and observed shares over classes and groups, less sampling noise: a
    weighted sum of chi-squares."""
    weights, noises, gaps = [], [], []
    for index in range(len(sums.counts)):
        for rows, hits, promised in _groups(sums, index):
            weights.append(rows / sums.rows / len(sums.counts))
            noises.append(max(promised * (1 - promised / rows), 1e-12) / rows ** 2)
            gaps.append(((hits - promised) / rows) ** 2)
    weight, noise = np.array(weights), np.array(noises)
    variance = 2 * float((weight ** 2 * noise ** 2).sum())
    return Measured(float((weight * (np.array(gaps) - noise)).sum()), sqrt(variance),
                    8 * float((weight ** 3 * noise ** 3).sum()) / variance ** 1.5,
                    4 * float((weight ** 2 * noise).sum()))


def _class_gap(sums: OutcomeSums) -> Measured:
    """The Kullback-Leibler divergence of the observed class shares from the promised ones, in nats, less
    sampling noise; twice it times the rows is nearly a noncentral chi-square."""
    from scipy.special import rel_entr  # imported here: slow, and `perennial status` does without

    n, free = sums.rows, len(sums.counts) - 1
    expected = np.maximum(sums.probabilities.sum(axis=1) / n, MIN_SHARE)
    gap = float(rel_entr(sums.observed / n, expected).sum()) - free / (2 * n)
    return Measured(gap, sqrt(2 * free) / (2 * n), sqrt(8 / free), 2 / n)
