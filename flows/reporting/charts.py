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

BARS = 14  # of a column's picture; more bins are taken together
WIDE, HIGH = 290, 84  # of a curve, in pixels


class Bar(NamedTuple):
    """A bin, or several, and its parts of the training data
    and of the window; `rest`: all those that are not shown."""

    label: str
    before: float
    now: float
    rest: bool = False


def named(state: State, version: str) -> str:
    """A version by its number and the beginning of its digest."""
    return f"v{state.number(version)} · {version[:12]}"


def bars(reference: Reference, counts: np.ndarray) -> list[Bar]:
    """At most BARS bars of a column, in its bins' own order.

    Of more bins a number's neighbours are taken together, in
    about equal shares; of a category's, those that changed least.
    """
    bins, before, now = reference.bins, shares(reference.counts), shares(counts)
    there = np.flatnonzero(before + now)
    groups = [[index] for index in there[there < bins.first]]  # missing, never seen
    known, room = there[there >= bins.first], BARS - len(groups)
    rest: Sequence[int] = []
    if len(known) <= room:
        groups += [[index] for index in known]
    elif bins.kind == "number":
        groups += _neighbours(known, (before + now)[known], room)
    else:
        order = known[np.argsort(-np.abs(now - before)[known], kind="stable")]
        groups, rest = [*groups, *([index] for index in np.sort(order[:room - 1]))], order[room - 1:].tolist()
    found = [Bar(_label(bins, inside), before[inside].sum(), now[inside].sum()) for inside in groups]
    return ([*found, Bar(f"({len(rest)} others)", before[rest].sum(), now[rest].sum(), rest=True)]
            if len(rest) else found)


def _neighbours(known: np.ndarray, weight: np.ndarray, most: int) -> list[list[int]]:
    """Bins side by side in groups of about the same weight."""
    middles = (np.cumsum(weight) - weight / 2) / max(weight.sum(), 1e-12)
    places = np.minimum((middles * most).astype(int), most - 1)
    return [known[places == place].tolist() for place in np.unique(places)]


def _label(bins: Bins, inside: Sequence[int]) -> str:
    if len(inside) == 1:
        return bins.labels[inside[0]]
    ends = [-np.inf, *bins.edges, np.inf]
    return f"{ends[inside[0] - 1]:g} … {ends[inside[-1]]:g}"


class Point(TypedDict):
    """A window's value in a picture; `span`: its interval's ends, none where it has none."""

    start: str
    value: float
    x: float
    y: float
    beyond: bool
    span: list[float]


class Mark(TypedDict):
    """From where on another version answers."""

    x: float
    version: str


class Line(TypedDict):
    """A curve: `runs` of windows that follow one another, `limit`
    as a height in the picture, `low` and `high` as values."""

    runs: list[list[Point]]
    marks: list[Mark]
    limit: float | None
    low: float
    high: float


def line(windows: Mapping[str, WindowFigures], state: State, values: Mapping[str, float | None], *,
         limit: float | None = None,
         spans: Mapping[str, tuple[float, float]] = MappingProxyType({})) -> Line:
    """A curve over windows in a picture of WIDE by HIGH, broken where a window has no value.

    With a `limit` it starts at zero; without one it shows
    what there is. Marks say where another version answers.
    """
    days = np.array([*windows], "datetime64[s]").astype(float)
    across = dict(zip(windows, (days - days[0]) / np.ptp(days) * WIDE if len(days) > 1 else [WIDE]))
    real = {start: value for start, value in values.items() if value is not None and np.isfinite(value)}
    ends = ([*real.values(), *(end for span in spans.values() for end in span),
             *([] if limit is None else [0.0, limit * 1.25])] or [0.0])
    low, high = min(ends), max(ends)

    def down(value: float) -> float:
        return HIGH * (high - value) / ((high - low) or 1.0)

    def point(start: str) -> Point:
        return {"start": start, "value": real[start], "x": across[start], "y": down(real[start]),
                "beyond": limit is not None and real[start] > limit,
                "span": [*map(down, spans.get(start, ()))]}

    runs = [[point(start) for start in run] for there, run in groupby(windows, real.__contains__) if there]
    versions = {start: figures.version for start, figures in windows.items() if figures.version}
    marks: list[Mark] = [{"x": across[start], "version": named(state, now)}
             for (_, before), (start, now) in pairwise([("", ""), *versions.items()]) if now != before]
    return {"runs": runs, "marks": marks, "limit": None if limit is None else down(limit), "low": low,
            "high": high}
