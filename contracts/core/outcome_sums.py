"""What the checks on labels need of labelled predictions, as sums: those of two parts of the rows add up.

Probabilities are counted in bins of equal width in their logit, so that the area under the curve and the
calibration follow from the sums alone, for a rare class as for a common one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from contracts.core.classification import CLIP

BINS, MAX_LOGIT = 400, 10.0  # of a probability; beyond this logit (p = 0.00005) all share the last bin
# The slices of rows without a value, and of values that have too few rows or come beyond MAX_SLICES others.
MISSING, OTHERS = "(missing)", "(others)"
MAX_SLICES = 500


@dataclass(frozen=True)
class PromisedSums:
    """Sums over `rows` predictions without a label: of the log loss that their probabilities promise, and of
    the largest probability of each."""

    rows: int = 0
    promised: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, probabilities: np.ndarray) -> "PromisedSums":
        """Of probabilities (n, classes)."""
        clipped = np.clip(probabilities.astype(np.float64), CLIP, 1.0)
        return cls(len(clipped), float(-(clipped * np.log(clipped)).sum()), float(clipped.max(axis=1).sum()))

    def __add__(self, other: "PromisedSums") -> "PromisedSums":
        return PromisedSums(self.rows + other.rows, self.promised + other.promised,
                            self.largest + other.largest)


@dataclass(frozen=True)
class CodedValues:
    """The values of n rows by their number: `codes`, int (n,), each the index of one of the `names`."""

    codes: np.ndarray
    names: Sequence[str]


@dataclass(frozen=True)
class OutcomeSums:
    """Sums over n labelled predictions.

    `loss`, `loss_squared`: of the rows' log loss. `promised`, `variance`, `third`: of the mean, the variance
    and the third central moment that a row's log loss has if its probabilities are right. `surprise`:
    of the squared difference of loss and promise. By class and bin of its probability, (classes, BINS):
    `counts` of rows, `hits` that have this label, and the sum of the `probabilities`. `recalled`: rows of
    each label whose class was predicted, (classes,).
    """

    rows: int
    loss: float
    loss_squared: float
    promised: float
    variance: float
    third: float
    surprise: float
    counts: np.ndarray
    hits: np.ndarray
    probabilities: np.ndarray
    recalled: np.ndarray

    @classmethod
    def empty(cls, classes: int) -> "OutcomeSums":
        zeros = np.zeros((classes, BINS))
        return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, zeros.astype(np.int64), zeros.astype(np.int64), zeros,
                   np.zeros(classes, np.int64))

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray,
           weights: np.ndarray | None = None) -> "OutcomeSums":
        """Of class indices (n,), probabilities (n, classes), and the weights of the classes, (classes,), by
        which one is predicted; None: all the same."""
        return _Rows(labels, probabilities, weights).sums(np.zeros(len(labels), np.int64), 1)[0]

    def __add__(self, other: "OutcomeSums") -> "OutcomeSums":
        return OutcomeSums(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})

    def __sub__(self, part: "OutcomeSums") -> "OutcomeSums":
        """The sums of the rows that are not in a part of them."""
        return OutcomeSums(**{name: getattr(self, name) - getattr(part, name) for name in vars(self)})

    @property
    def observed(self) -> np.ndarray:
        """How many rows have each label, int64 (classes,)."""
        return np.asarray(self.hits.sum(axis=1))


@dataclass(frozen=True)
class SlicedSums:
    """The sums of all rows, and those of each value of each slice's column."""

    whole: OutcomeSums
    slices: Mapping[str, Mapping[str, OutcomeSums]] = field(default_factory=dict)

    @classmethod
    def empty(cls, classes: int) -> "SlicedSums":
        return cls(OutcomeSums.empty(classes))

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray,
           slices: Mapping[str, np.ndarray | CodedValues],
           weights: np.ndarray | None = None) -> "SlicedSums":
        """Of class indices (n,), probabilities (n, classes) and the n values of each slice's column;
        `weights`: as `OutcomeSums.of`."""
        rows, by_column = _Rows(labels, probabilities, weights), {}
        for column, values in slices.items():
            names, codes = _named(values)
            by_column[column] = {
                name: sums for name, sums in zip(names, rows.sums(codes, len(names))) if sums.rows}
        return cls(rows.sums(np.zeros(len(labels), np.int64), 1)[0], by_column)

    def __add__(self, other: "SlicedSums") -> "SlicedSums":
        columns = dict.fromkeys([*self.slices, *other.slices])
        return SlicedSums(self.whole + other.whole,
                          {column: _added(self.slices.get(column, {}), other.slices.get(column, {}))
                           for column in columns})


def _added(first: Mapping[str, OutcomeSums], second: Mapping[str, OutcomeSums]) -> dict[str, OutcomeSums]:
    added = dict(first)
    for name, sums in second.items():
        place = name if name in added or len(added) < MAX_SLICES else OTHERS
        added[place] = added[place] + sums if place in added else sums
    return added


def _named(values: np.ndarray | CodedValues) -> tuple[list[str], np.ndarray]:
    """The distinct values as text, the commonest first and at most MAX_SLICES of them, and each row's."""
    if isinstance(values, CodedValues):
        codes, names = values.codes, list(values.names)
    else:
        codes, distinct = pd.factorize(values)  # -1: missing
        names = [*map(str, distinct), MISSING]
    counts = np.bincount(codes % len(names), minlength=len(names))
    if OTHERS in names:
        counts[names.index(OTHERS)] = -1  # the last, where the values beyond the first ones go, too
    order = np.argsort(-counts, kind="stable")
    place = np.empty(len(names), np.int64)
    place[order] = np.minimum(np.arange(len(names)), MAX_SLICES)
    kept = [names[index] for index in order[:MAX_SLICES]]
    return kept + [OTHERS] * (len(names) > MAX_SLICES), place[codes]


class _Rows:
    """The terms that are summed, of labelled predictions: labels (n,), probabilities (n, classes)."""

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None):
        # By class, so that each class's values lie together.
        by_class = np.ascontiguousarray(probabilities.T, np.float64)
        weighted_classes = by_class if weights is None else by_class * weights[:, None]
        self.is_recalled = weighted_classes.argmax(axis=0) == labels
        clipped = np.clip(by_class, CLIP, 1.0)
        surprisal = -np.log(clipped)  # the loss of each label that may come
        promised = (clipped * surprisal).sum(axis=0)
        losses = surprisal[labels, np.arange(len(labels))]
        apart = surprisal - promised
        weighted = clipped * apart * apart
        self.moments = {"loss": losses, "loss_squared": losses ** 2, "promised": promised,
                        "variance": weighted.sum(axis=0), "third": (weighted * apart).sum(axis=0),
                        "surprise": (losses - promised) ** 2}
        self.labels, self.probabilities, self.bins = labels, by_class, bin_of(by_class)

    def sums(self, groups: np.ndarray, count: int) -> list[OutcomeSums]:
        """The sums of each group's rows; `groups`: the group of each row, below `count`."""
        classes, size = len(self.probabilities), count * BINS
        counts, hits, whole = (np.zeros((count, classes, BINS), kind)
                               for kind in (np.int64, np.int64, np.float64))
        for index in range(classes):
            cells = groups * BINS + self.bins[index]
            counts[:, index] = np.bincount(cells, minlength=size).reshape(count, BINS)
            hits[:, index] = np.bincount(cells[self.labels == index], minlength=size).reshape(count, BINS)
            whole[:, index] = np.bincount(cells, self.probabilities[index], size).reshape(count, BINS)
        of_label = (groups * classes + self.labels)[self.is_recalled]
        recalled = np.bincount(of_label, minlength=count * classes).reshape(count, classes)
        rows = np.bincount(groups, minlength=count)
        moments = {name: np.bincount(groups, values, count) for name, values in self.moments.items()}

        def of_group(group: int) -> OutcomeSums:
            loss, squared, promised, variance, third, surprise = (
                float(sums[group]) for sums in moments.values())
            return OutcomeSums(int(rows[group]), loss, squared, promised, variance, third, surprise,
                               counts[group], hits[group], whole[group], recalled[group])
        return [of_group(group) for group in range(count)]


def bin_of(probabilities: np.ndarray) -> np.ndarray:
    """The bin of each probability, int64, in equal steps of its logit."""
    clipped = np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP)
    logit = np.log(clipped / (1 - clipped))
    return np.clip((logit + MAX_LOGIT) * (BINS / (2 * MAX_LOGIT)), 0, BINS - 1).astype(np.int64)
