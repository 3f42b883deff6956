"""The reference profile of a version: its training data
in bins, and how far windows differ from it by chance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import rel_entr
from scipy.stats import chi2, t

from contracts.core.binning import Bins, MonitoredColumn
from contracts.core.classification import is_output
from contracts.core.digests import JsonObject

STARTS = 400  # the most windows of the training data that are compared with the rest of it
WINDOWS = 4  # the least number that fit side by side into the training data; shorter ones are used if need be
# Pearson's chi-square of two samples is about this times their
# squared distance times their size (the first term of its series).
CHI_SQUARE_SCALE = 8 * np.log(2)


@dataclass(frozen=True)
class Reference:
    """One column of the training data: its bins and the rows in each.

    `baseline_effect`: by check, how far an unchanged window can be from the training data, sampling noise
    apart. `deciles`: those of a number, by which a change of unit is recognized.
    """

    bins: Bins
    counts: np.ndarray
    baseline_effect: Mapping[str, float]
    deciles: tuple[float, ...] = ()

    def as_json(self) -> JsonObject:
        rounded = {check: float(f"{value:.4g}") for check, value in self.baseline_effect.items()}
        return {"bins": self.bins.as_json(), "counts": self.counts.tolist(), "ordinary": rounded,
                "deciles": list(self.deciles)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Reference":
        return cls(Bins.from_json(stored["bins"]), np.array(stored["counts"], np.int64), stored["ordinary"],
                   tuple(stored["deciles"]))


@dataclass(frozen=True)
class BinnedComparison:
    """Training data and a window's traffic in the same bins: `rows`
    of the window, and of those before it back to `since`."""

    reference: Mapping[str, Reference]
    counts: Mapping[str, np.ndarray]
    rows: int
    since: datetime


def fold_counts(counts: np.ndarray, places: np.ndarray, coarser: Bins) -> np.ndarray:
    """Counts of fine bins in the coarser ones that hold them."""
    return np.bincount(places, counts, minlength=len(coarser.labels)).astype(np.int64)


def merge_versions(
    references: Mapping[str, Reference], counts: Mapping[str, np.ndarray], bins: Mapping[str, Bins],
    others: Mapping[str, np.ndarray],
) -> tuple[dict[str, Reference], dict[str, np.ndarray]]:
    """References and counts of one version, with the inputs that another version counted
    in its `bins` added, in the coarser bins of the two; where neither's divide the
    other's, the column's counts stay as they are."""
    merged, added = dict(references), dict(counts)
    for name in {*references} & {*bins} & {*others}:
        reference = references[name]
        now = counts.get(name, np.zeros(len(reference.bins.labels), np.int64))
        if is_output(name):
            continue
        if (places := reference.bins.onto(bins[name])) is not None:
            merged[name] = replace(reference, bins=bins[name],
                                   counts=fold_counts(reference.counts, places, bins[name]))
            added[name] = fold_counts(now, places, bins[name]) + others[name]
        elif (places := bins[name].onto(reference.bins)) is not None:
            added[name] = now + fold_counts(others[name], places, reference.bins)
    return merged, added


def encode_references(references: Mapping[str, Reference]) -> bytes:
    columns = {name: reference.as_json() for name, reference in references.items()}
    return json.dumps(columns, sort_keys=True).encode()


def decode_references(content: bytes) -> dict[str, Reference]:
    return {name: Reference.from_json(stored) for name, stored in json.loads(content).items()}


def effects(bins: Bins, before: np.ndarray, now: np.ndarray) -> dict[str, np.ndarray]:
    """How far two lists of shares (..., bins) are apart, by check: "values" is the Jensen-Shannon distance
    (0 to 1) of those that are neither missing nor new, "missing" and "new" are the rise of that share."""
    values = jensen_shannon_distance(before[..., bins.first:], now[..., bins.first:])
    common = {"missing": now[..., 0] - before[..., 0], "values": values}
    return common | ({"new": now[..., 1] - before[..., 1]} if bins.first > 1 else {})


def shares(counts: np.ndarray) -> np.ndarray:
    """Counts (..., bins) as parts of 1; of none, zeros."""
    whole = counts.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(counts, whole, out=np.zeros(counts.shape), where=whole > 0))


def jensen_shannon_distance(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The Jensen-Shannon distance to the base of 2 of counts or
    shares; 0 where a side has none at all: the check "missing" shows that."""
    before, now = shares(before), shares(now)
    middle = (before + now) / 2
    both = (before.sum(axis=-1) > 0) & (now.sum(axis=-1) > 0)
    divergence = (rel_entr(before, middle) + rel_entr(now, middle)).sum(axis=-1) / (2 * np.log(2))
    return np.where(both, np.sqrt(np.maximum(divergence, 0)), 0.0)


def learn_reference(columns: Mapping[str, MonitoredColumn], times: np.ndarray, window: timedelta,
                    false_alarms: float,
                    before: Mapping[str, Bins] = MappingProxyType({})) -> dict[str, Reference]:
    """The reference of every column of the training data, whose n
    rows happened at `times`, in bins that divide those `before`.

    The baseline effects come from windows of the training data itself, each compared with all the rest of
    it, so that what a Sunday or a cold week does is in them. Sampling noise is subtracted: it is added again
    for the size of the window that is judged. The limit is a prediction interval for one more window after
    the K that fit side by side into the training data; in it all checks together fail in `false_alarms` of
    the windows. Student's t with K - 1 degrees of freedom allows for how little K weeks say of the next.
    """
    order = np.argsort(times, kind="stable")
    parts, fit = _windows(times[order], window)
    bins = {name: Bins.of(*column, None if is_output(name) else before.get(name))
            for name, column in columns.items()}
    counts = {name: (bins[name], *_bin_counts(bins[name], column.values[order], parts))
              for name, column in columns.items()}
    checks = sum(2 + (bins.first > 1) for bins, _, _ in counts.values())
    far = float(t.isf(false_alarms / checks, fit - 1) * np.sqrt(1 + 1 / fit))
    return {name: Reference(bins, whole, _baseline_effects(bins, whole, inside, far, fit),
                            _deciles(columns[name]))
            for name, (bins, whole, inside) in counts.items()}


def _windows(times: np.ndarray, window: timedelta) -> tuple[list[slice], float]:
    """Windows of the sorted times, each a seventh of its length after the one before,
    and how many fit side by side; shorter ones where fewer than WINDOWS do."""
    first, last = times[0], times[-1] + np.timedelta64(1, "s")
    length = min(np.timedelta64(window), (last - first) / WINDOWS)
    steps = int((last - first - length) / (length / 7)) + 1
    starts = first + (last - first - length) * np.linspace(0, 1, min(steps, STARTS))
    ends = np.searchsorted(times, np.stack([starts, starts + length], axis=1))
    return [slice(start, stop) for start, stop in ends if stop > start], (last - first) / length


def _bin_counts(bins: Bins, values: np.ndarray, parts: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """The rows in each bin (bins,), and in each bin of each window (windows, bins).

    A category's value counts as new in a window if no row outside has it, and as new in the whole if a single
    row has it: that often would one more row bring a value never seen before (Good and Turing).
    """
    codes, size, everywhere = bins.codes(values), len(bins.labels), slice(None)
    if bins.kind == "number" or bins.known is None:
        return (np.bincount(codes, minlength=size),
                np.array([np.bincount(codes[part], minlength=size) for part in parts]))
    ids, texts = pd.factorize(values)  # -1: missing

    def rows_with_text(part: slice, missing: int) -> np.ndarray:
        return np.append(np.bincount(ids[part][ids[part] >= 0], minlength=len(texts)), missing)

    def counts(part: slice, is_new: np.ndarray) -> np.ndarray:
        return np.bincount(np.where(is_new[ids[part]], 1, codes[part]), minlength=size)

    total = rows_with_text(everywhere, 0)  # never equal to a window's -1: what is missing is not new
    inside = [counts(part, rows_with_text(part, -1) == total) for part in parts]
    return counts(everywhere, total == 1), np.array(inside)


def _baseline_effects(bins: Bins, whole: np.ndarray, inside: np.ndarray, far: float,
                      fit: float) -> dict[str, float]:
    """By check, the effect that an unchanged window may have: `far` deviations above the mean and
    no less than the largest seen, sampling noise subtracted. Squared distances are sums
    of squares: their cube roots are nearly normal (Wilson and Hilferty)."""
    rest = np.maximum(whole - inside, 0)  # a value that is new to a window is not new to the whole
    rises = effects(bins, shares(rest), shares(inside))
    known, others = inside[:, bins.first:].sum(axis=1), rest[:, bins.first:].sum(axis=1)
    size = CHI_SQUARE_SCALE * np.maximum(known * others / np.maximum(known + others, 1), 1)
    free = max(int(np.count_nonzero(whole[bins.first:])) - 1, 1)
    squared = rises.pop("values") ** 2
    roots, chance = np.cbrt(squared), free / size.mean()
    by_chance = chance * (1 - 2 / (9 * free) + far * np.sqrt(2 / (9 * free))) ** 3
    # That the windows differ by more than chance.
    sure = max(0.0, 1 - 2 * chi2.sf((squared * size).mean() * fit, free * fit))
    next_one = sure * ((roots.mean() + far * roots.std() * np.sqrt(fit / (fit - 1))) ** 3 - by_chance)
    furthest = squared.max() - chance if squared.max() > by_chance else 0.0
    limits = {"values": np.sqrt(max(next_one, furthest, 0.0))}
    rows, all_rows = inside.sum(axis=1), rest.sum(axis=1)
    for index, (check, rise) in enumerate(rises.items()):
        share = whole[index] / whole.sum()
        by_chance = (share * (1 - share) * (1 / rows + 1 / np.maximum(all_rows, 1))).mean()
        beyond = np.sqrt(max(0.0, rise.var() * fit / (fit - 1) - by_chance))
        limits[check] = max(far * beyond, np.abs(rise).max() - far * np.sqrt(by_chance))
    return {check: float(np.clip(value, 0, 1)) for check, value in limits.items()}


def _deciles(column: MonitoredColumn) -> tuple[float, ...]:
    if column.kind != "number":
        return ()
    values = np.asarray(column.values, np.float64)
    present = values[np.isfinite(values)]
    return tuple(np.quantile(present, np.arange(1, 10) / 10).tolist()) if len(present) else ()
