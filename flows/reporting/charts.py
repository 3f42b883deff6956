"""The charts of a window's report, as SVG."""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from types import MappingProxyType
from typing import NamedTuple, TypedDict

import numpy as np

from contracts.core.binning import Bins
from contracts.core.reference import Reference, shares
from contracts.core.verdict import WindowFigures
from registry.state import State

MAX_BARS = 14  # in a column's chart; more bins are drawn as groups
WIDTH, HEIGHT = 290, 84  # pixels of a curve's chart


class Bar(NamedTuple):
    """A bin, or a group of bins, with its share of the training data (`before`) and
    of the window (`now`); `rest`: whether it is the sum of those not shown."""

    label: str
    before: float
    now: float
    rest: bool = False


def named(state: State, version: str) -> str:
    """A version by its number and the beginning of its digest."""
    return f"v{state.number(version)} · {version[:12]}"


def bars(reference: Reference, counts: np.ndarray) -> list[Bar]:
    """At most MAX_BARS bars of a column, in the order of its bins.

    If there are more bins, a number's are grouped with their neighbours,
    in about equal shares; of a category's, those that changed least are summed.
    """
    bins, before, now = reference.bins, shares(reference.counts), shares(counts)
    non_empty = np.flatnonzero(before + now)
    groups = [[index] for index in non_empty[non_empty < bins.first]]  # missing, never seen
    known, room = non_empty[non_empty >= bins.first], MAX_BARS - len(groups)
    rest: Sequence[int] = []
    if len(known) <= room:
        groups += [[index] for index in known]
    elif bins.kind == "number":
        groups += _adjacent_groups(known, (before + now)[known], room)
    else:
        order = known[np.argsort(-np.abs(now - before)[known], kind="stable")]
        groups, rest = [*groups, *([index] for index in np.sort(order[:room - 1]))], order[room - 1:].tolist()
    chosen_bars = [Bar(_label(bins, group), before[group].sum(), now[group].sum()) for group in groups]
    return ([*chosen_bars, Bar(f"({len(rest)} others)", before[rest].sum(), now[rest].sum(), rest=True)]
            if len(rest) else chosen_bars)


def _adjacent_groups(known: np.ndarray, weight: np.ndarray, count: int) -> list[list[int]]:
    """Adjacent bins in groups of about the same weight."""
    centres = (np.cumsum(weight) - weight / 2) / max(weight.sum(), 1e-12)
    groups_of = np.minimum((centres * count).astype(int), count - 1)
    return [known[groups_of == number].tolist() for number in np.unique(groups_of)]


def _label(bins: Bins, group: Sequence[int]) -> str:
    if len(group) == 1:
        return bins.labels[group[0]]
    ends = [-np.inf, *bins.edges, np.inf]
    return f"{ends[group[0] - 1]:g} … {ends[group[-1]]:g}"


class Point(TypedDict):
    """A window's value in a chart, `x` and `y` in pixels; `span`: the two ends of its interval, or empty;
    `beyond`: whether it exceeds the chart's limit."""

    start: str
    value: float
    x: float
    y: float
    beyond: bool
    span: list[float]


class Mark(TypedDict):
    """The x from which on another version answers."""

    x: float
    version: str


class Line(TypedDict):
    """A curve: `runs` of points without a gap, `limit` as a y in
    pixels, `low` and `high` as values of the axis."""

    runs: list[list[Point]]
    marks: list[Mark]
    limit: float | None
    low: float
    high: float


def line(windows: Mapping[str, WindowFigures], state: State, values: Mapping[str, float | None], *,
         limit: float | None = None,
         spans: Mapping[str, tuple[float, float]] = MappingProxyType({})) -> Line:
    """A curve over windows in a chart of WIDTH by HEIGHT pixels, broken where a window has no value.

    With a `limit` the axis includes zero and the limit; without one it spans the values.
    """
    seconds = np.array([*windows], "datetime64[s]").astype(float)
    xs = (seconds - seconds[0]) / np.ptp(seconds) * WIDTH if len(seconds) > 1 else [WIDTH]
    x_of = dict(zip(windows, xs))
    finite = {start: value for start, value in values.items() if value is not None and np.isfinite(value)}
    ends = ([*finite.values(), *(end for span in spans.values() for end in span),
             *([] if limit is None else [0.0, limit * 1.25])] or [0.0])
    low, high = min(ends), max(ends)

    def y_of(value: float) -> float:
        return HEIGHT * (high - value) / ((high - low) or 1.0)

    def point(start: str) -> Point:
        return {"start": start, "value": finite[start], "x": x_of[start], "y": y_of(finite[start]),
                "beyond": limit is not None and finite[start] > limit,
                "span": [*map(y_of, spans.get(start, ()))]}

    runs = [[point(start) for start in run] for has_value, run in groupby(windows, finite.__contains__)
            if has_value]
    versions = {start: figures.version for start, figures in windows.items() if figures.version}
    marks: list[Mark] = [{"x": x_of[start], "version": named(state, now)}
             for (_, before), (start, now) in pairwise([("", ""), *versions.items()]) if now != before]
    return {"runs": runs, "marks": marks, "limit": None if limit is None else y_of(limit), "low": low,
            "high": high}
