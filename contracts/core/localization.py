"""Where drift comes from: since when, and in which slice of the traffic."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from contracts.core.binning import Bins
from contracts.core.reference import CHI_SQUARE_SCALE, Reference, effects, shares

MAX_SHARE = 0.8  # of the rows in one value of a slice, above which too few others are left to compare with
MIN_ROWS = 30  # of a day, or of all rows but one slice's, for its effect to be measured


@dataclass(frozen=True)
class LoggedRows:
    """Logged rows of a window: their event times, and by name the monitored columns and the slices."""

    times: np.ndarray
    values: Mapping[str, np.ndarray]
    slices: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DriftOrigin:
    """Since when, and where: the `first` and `last` day on which the effect was above its threshold, and
    the `slice` without which the effect is below its threshold or at most half as large."""

    first: str
    last: str
    ongoing: bool
    slice: str

    def __str__(self) -> str:
        days = (f"since {self.first}" if self.ongoing else f"on {self.first}" if self.first == self.last
                else f"from {self.first} to {self.last}")
        return ", ".join(part
                         for part in (days if self.first else "",
                                      f"carried by {self.slice}" if self.slice else "") if part)


def locate_drift(rows: LoggedRows, name: str, reference: Reference, check: str,
                 threshold: float) -> DriftOrigin | None:
    """The origin of a column's drift; None where none of its rows was logged."""
    if name not in rows.values or not len(rows.times):
        return None
    codes, days = reference.bins.codes(rows.values[name]), rows.times.astype("datetime64[D]")

    def effect_of(chosen: np.ndarray) -> float:
        counts = np.bincount(codes[chosen], minlength=len(reference.bins.labels))
        return _effect_above_noise(reference, check, counts)

    measured = [day for day in np.unique(days) if (days == day).sum() >= MIN_ROWS]
    drifted = [day for day in measured if effect_of(days == day) > threshold]
    first, last = (str(drifted[0]), str(drifted[-1])) if drifted else ("", "")
    return DriftOrigin(first, last, bool(drifted) and drifted[-1] == measured[-1],
                       _carrying_slice(rows.slices, effect_of, threshold))


def _carrying_slice(slices: Mapping[str, np.ndarray], effect_of: Callable[[np.ndarray], float],
                    threshold: float) -> str:
    """The slice whose removal leaves the smallest effect, if that is small enough; else empty."""
    remaining = {}
    for name, values in slices.items():
        texts = values.astype(str)
        whole = effect_of(np.ones(len(texts), bool))
        for value in np.unique(texts):
            rest = texts != value
            if (rest.sum() >= MIN_ROWS and rest.mean() >= 1 - MAX_SHARE
                and (effect := effect_of(rest)) <= max(threshold, whole / 2) < whole):
                remaining[f"{name} {value}"] = effect
    return min(remaining, key=lambda slice: remaining[slice], default="")


def _effect_above_noise(reference: Reference, check: str, now: np.ndarray) -> float:
    """An effect, less what sampling noise alone gives for so few rows."""
    bins: Bins = reference.bins
    effect = abs(float(effects(bins, shares(reference.counts), shares(now)).get(check, 0.0)))
    if check != "values":
        return effect
    free = max(np.count_nonzero(reference.counts[bins.first:]) - 1, 1)
    return float(np.sqrt(max(effect ** 2 - free / (CHI_SQUARE_SCALE * max(now[bins.first:].sum(), 1)), 0.0)))
