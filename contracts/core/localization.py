"""Where drift comes from: since when, and in which slice of the traffic."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from contracts.core.binning import Bins
from contracts.core.reference import CHI_SQUARE_SCALE, Reference, effects, shares

MOST_OF_ALL = 0.8  # of the rows in one value of a slice: what is left says too little
FEW = 30  # rows of a day, or of a rest, below which it says nothing


@dataclass(frozen=True)
class LoggedRows:
    """Logged rows of a window: their event times, the values of watched columns, and of slices."""

    times: np.ndarray
    values: Mapping[str, np.ndarray]
    slices: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DriftOrigin:
    """`first` and `last` day on which an effect was above its threshold;
    `slice`: without which the rest shows none, or half of it."""

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
    """Where the drift of a column lies; None where none of its rows are known."""
    if name not in rows.values or not len(rows.times):
        return None
    codes, days = reference.bins.codes(rows.values[name]), rows.times.astype("datetime64[D]")

    def beyond(chosen: np.ndarray) -> float:
        return _beyond_chance(reference, check,
                              np.bincount(codes[chosen], minlength=len(reference.bins.labels)))

    enough = [day for day in np.unique(days) if (days == day).sum() >= FEW]
    drifted = [day for day in enough if beyond(days == day) > threshold]
    first, last = (str(drifted[0]), str(drifted[-1])) if drifted else ("", "")
    return DriftOrigin(first, last, bool(drifted) and drifted[-1] == enough[-1],
                       _carried_by(rows.slices, beyond, threshold))


def _carried_by(slices: Mapping[str, np.ndarray], beyond: Callable[[np.ndarray], float],
                threshold: float) -> str:
    found = {}
    for name, values in slices.items():
        texts = values.astype(str)
        whole = beyond(np.ones(len(texts), bool))
        for value in np.unique(texts):
            rest = texts != value
            if (rest.sum() >= FEW and rest.mean() >= 1 - MOST_OF_ALL
                and (left := beyond(rest)) <= max(threshold, whole / 2) < whole):
                found[f"{name} {value}"] = left
    return min(found, key=lambda slice: found[slice], default="")


def _beyond_chance(reference: Reference, check: str, now: np.ndarray) -> float:
    """An effect without what chance alone gives so few rows."""
    bins: Bins = reference.bins
    effect = abs(float(effects(bins, shares(reference.counts), shares(now)).get(check, 0.0)))
    if check != "values":
        return effect
    free = max(np.count_nonzero(reference.counts[bins.first:]) - 1, 1)
    return float(np.sqrt(max(effect ** 2 - free / (CHI_SQUARE_SCALE * max(now[bins.first:].sum(), 1)), 0.0)))
