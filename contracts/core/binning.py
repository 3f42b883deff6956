"""Bins: how the values of a column are counted, in training and in traffic."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from contracts.core.contract import Contract
from contracts.core.digests import JsonObject
from contracts.core.features import Columns

# The file of a version that holds the bins of its columns, and what is ordinary in them.
REFERENCE_FILE = "reference.json"
DECILES = np.arange(1, 10) / 10
COMMON = 0.01  # the least share in the training data for a category to have a bin of its own
MAX_KNOWN = 2_000  # distinct categories beyond which a column counts as free text: new values are expected
MAX_BINS = 120  # edges and names of a column beyond which the champion's bins are no longer divided
GROUPS = 10  # bins for the values of a category that are not common
MAX_TEXT_LENGTH = 128  # characters of a text that are looked at
MISSING, NEW = "(missing)", "(never seen)"


class MonitoredColumn(NamedTuple):
    """One column that drift is checked in: floats with NaN for a number, text with None for a category."""

    kind: Literal["number", "category"]
    values: np.ndarray


def monitored_columns(contract: Contract, columns: Columns, probabilities: np.ndarray,
                      predicted: np.ndarray) -> dict[str, MonitoredColumn]:
    """The features of n records and the model's outputs for them."""
    monitored = {feature.name: MonitoredColumn(feature.kind, feature.values(columns))
                 for feature in contract.features}
    outputs = contract.label.output_columns(probabilities, predicted)
    return monitored | {name: MonitoredColumn("category" if values.dtype == object else "number", values)
                        for name, values in outputs.items()}


@dataclass(frozen=True)
class Bins:
    """The bins of one column: missing values first, then those of a number between
    its `edges`; or those of a category: values never seen, the uncommon ones in
    alphabetical groups that start at `edges`, and each of the common `names`.

    `known` are the uncommon ones; None in free text, where whatever is no common name falls into a group.
    """

    kind: Literal["number", "category"]
    edges: tuple[Any, ...]
    names: tuple[str, ...] = ()
    known: tuple[str, ...] | None = ()

    @classmethod
    def of(cls, kind: Literal["number", "category"], values: np.ndarray,
           before: "Bins | None" = None) -> "Bins":
        """The bins of a column of the training data; they divide those of the champion `before`,
        so that the traffic of both can be added up, unless they would become too many."""
        bins = cls(kind, _deciles(values)) if kind == "number" else _category_bins(values)
        return before._divided(bins) if before and before.kind == kind else bins

    def _divided(self, by: "Bins") -> "Bins":
        """These bins cut at the edges and names of both."""
        names = tuple(sorted({*self.names, *by.names}))
        edges = tuple(sorted({*self.edges, *by.edges}))
        if len(names) + len(edges) > MAX_BINS:
            return by
        return Bins(self.kind, edges, names,
                    None if by.known is None else tuple(sorted({*by.known} - {*names})))

    def onto(self, coarser: "Bins") -> np.ndarray | None:
        """For each of these bins, the one of `coarser` that holds
        it, int64 (bins,); None where one doesn't hold it whole."""
        if (self.kind != coarser.kind
            or not ({*coarser.edges} <= {*self.edges} and {*coarser.names} <= {*self.names})):
            return None
        starts = np.asarray(coarser.edges, float if self.kind == "number" else str)
        parts = (np.searchsorted(starts, np.asarray(self.edges, starts.dtype), side="right") if self.edges
                 else np.zeros(0, int))
        groups = coarser.first + np.append(0, parts)
        named = (coarser._text_codes(np.asarray(self.names, object), new=False) if self.names
                 else np.zeros(0, int))
        return np.concatenate([np.arange(self.first), groups, named]).astype(np.int64)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The name of each bin."""
        if self.kind == "category":
            starts = ("", *self.edges)
            return (MISSING, NEW, *(f"(others from {start!r})" if start else "(others)" for start in starts),
                    *self.names)
        edges = [-np.inf, *map(float, self.edges), np.inf]
        return (MISSING, *map(_between, [None, *edges], edges, edges[1:]))

    @property
    def first(self) -> int:
        """The index of the first bin of known values."""
        return 2 if self.kind == "category" else 1

    def count(self, values: np.ndarray) -> np.ndarray:
        """How many of n values fall into each bin, int64 (bins,)."""
        if self.kind == "category":
            return self.count_texts(*text_counts(values))
        return np.bincount(self._number_codes(values), minlength=len(self.labels))

    def count_texts(self, texts: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The same, from what `text_counts` gave for the values."""
        return np.bincount(np.append(self._text_codes(texts), 0), times, len(self.labels)).astype(np.int64)

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Each value's bin, int64 (n,)."""
        return self._number_codes(values) if self.kind == "number" else self._category_codes(values)

    def _number_codes(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, np.float64)
        codes = np.ones(len(values), np.uint8)  # enough for MAX_BINS
        for edge in self.edges:
            codes += values >= edge  # with so few edges much faster than np.searchsorted
        codes[~np.isfinite(values)] = 0
        return codes.astype(np.int64)

    def _category_codes(self, values: np.ndarray) -> np.ndarray:
        codes, texts = distinct_texts(values)
        # The code of a missing value is -1: it finds the appended 0.
        return np.asarray(np.append(self._text_codes(texts), 0)[codes])

    def _text_codes(self, texts: np.ndarray, new: bool = True) -> np.ndarray:
        codes = np.array([self._named.get(text, -1) for text in texts.tolist()], np.int64)
        if (others := codes < 0).any():
            rest = texts[others]
            grouped = self.first + np.searchsorted(self._starts, rest.astype(str), side="right")
            if new and self.known is not None:
                grouped[[text not in self._known for text in rest.tolist()]] = 1
            codes[others] = grouped
        return codes

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.asarray(self.edges, str)

    @cached_property
    def _named(self) -> dict[str, int]:
        """Each common name's bin."""
        return {name: code for code, name in enumerate(self.names, start=self.first + len(self.edges) + 1)}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.known or ())

    def as_json(self) -> JsonObject:
        return {"kind": self.kind, "edges": list(self.edges), "names": list(self.names),
                "known": None if self.known is None else list(self.known)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Bins":
        known = stored["known"]
        return cls(stored["kind"], tuple(stored["edges"]), tuple(stored["names"]),
                   None if known is None else tuple(known))


def _between(before: float | None, low: float, high: float) -> str:
    """The name of a bin from `low` to `high`: a single number, or an
    interval that is open where a single number's bin comes before it."""
    if high == np.nextafter(low, np.inf):
        return f"{low:g}"
    return (f"({before:g}, {high:g})" if before is not None and low == np.nextafter(before, np.inf)
            else f"[{low:g}, {high:g})")


def _deciles(values: np.ndarray) -> tuple[float, ...]:
    """The edges of bins with about equal shares; a value that several deciles fall on has its own bin."""
    values = np.asarray(values, np.float64)
    present = values[np.isfinite(values)]
    if not len(present):
        return ()
    cuts, times = np.unique(np.quantile(present, DECILES, method="inverted_cdf"), return_counts=True)
    return tuple(np.union1d(cuts, np.nextafter(cuts[times > 1], np.inf)).tolist())


def _category_bins(values: np.ndarray) -> Bins:
    """A bin for each common value, and alphabetical groups for the others. Groups by frequency would
    put those together that were frequent by chance, and be rarer in every later window."""
    codes, texts = distinct_texts(values)
    # Long texts can be equal once they are cut.
    names, name_of_text = np.unique(texts.astype(str), return_inverse=True)
    counts = np.bincount(name_of_text[codes[codes >= 0]], minlength=len(names))
    common = counts >= COMMON * counts.sum()
    others, edges = names[~common], np.zeros(0, str)
    if len(others):
        cumulative = np.cumsum(counts[~common])
        cuts = np.unique(np.searchsorted(cumulative, cumulative[-1] * np.arange(1, GROUPS) / GROUPS))
        edges = others[cuts[cuts > 0]]
    known = tuple(others.tolist()) if len(names) <= MAX_KNOWN else None
    return Bins("category", tuple(edges.tolist()), tuple(names[common].tolist()), known)


def distinct_texts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each value's position among the texts that occur, -1
    where it is missing; and the texts, of bounded length."""
    codes, distinct = pd.factorize(np.asarray(values, object))
    return codes, np.array([str(value)[:MAX_TEXT_LENGTH] for value in distinct], object)


def text_counts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The texts that occur, object (k,), and how often each
    does; then how many values are missing, int64 (k + 1,)."""
    codes, texts = distinct_texts(values)
    return texts, np.roll(np.bincount(codes + 1, minlength=len(texts) + 1), -1)
