"""What is ordinary in a model's performance on labels: learnt at training, from out-of-time windows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import hypot, log, sqrt

import numpy as np
from msgspec.structs import replace

from contracts.core.classification import MIN_SHARE
from contracts.core.ordinary import Ordinary, OutcomeBaseline
from contracts.core.outcome_measures import Measured, RankedClasses, measures_of, ranked
from contracts.core.outcome_sums import OutcomeSums, SlicedSums
from contracts.core.outcome_verdict import OutcomeMeasure

MIN_SLICE = 200  # labelled rows from which on a slice is measured
SEVENTHS = 7  # of a window: windows are compared with one another in steps of a seventh
RUN = 2  # consecutive sevenths that are drawn together, as what a storm does lasts
RESAMPLES = 100
# Sums of squares: their cube roots are nearly normal (Wilson and Hilferty), and are what is learnt.
SQUARED = (OutcomeMeasure.CALIBRATION, OutcomeMeasure.CLASS_SHARES)
IN_SLICES = (OutcomeMeasure.LOSS_PROMISED, OutcomeMeasure.AUC_PROMISED)


def learn_baseline(blocks: Sequence[SlicedSums], per_window: int) -> OutcomeBaseline | None:
    """The baseline from the sums of consecutive blocks of out-of-time rows, of which `per_window` make a
    window; None where they are fewer than two windows.

    Windows overlap, each a seventh of its length after the one before, as those of the inputs do. A few
    windows say little of how much windows scatter; so sevenths of a window, two in a row, are also drawn
    at random and put together to windows, and the larger scatter of the two counts.
    """
    step = max(per_window // SEVENTHS, 1)
    sevenths = [_Part.of(blocks[start:start + step]) for start in range(0, len(blocks) - step + 1, step)]
    fit = len(sevenths) / SEVENTHS
    if fit < 2:
        return None
    windows = [_Part.joined(sevenths[start:start + SEVENTHS])
               for start in range(len(sevenths) - SEVENTHS + 1)]
    drawn = [_Part.joined(parts) for parts in _drawn(sevenths)]
    measured, resampled = ([measures_of(part.sums.whole, part.blocks) for part in parts]
                           for parts in (windows, drawn))
    whole = {name: (_ordinary_square if name in SQUARED else _ordinary)(
                 _of(measured, name), _of(resampled, name), len(sevenths))
             for name in OutcomeMeasure if len(_of(measured, name)) > 1}
    columns, slices = _slice_baselines([part.sums for part in windows], [part.sums for part in drawn],
                                     len(sevenths))
    errors = [found[OutcomeMeasure.LOSS_PROMISED].value for found in measured[::SEVENTHS] if found]
    together = _total([part.sums for part in sevenths]).whole
    shares = [float(share) for share in together.observed / together.rows]
    above, above_drawn = ([above_naive(part.sums.whole, shares) for part in parts if part.sums.whole.rows]
                          for parts in (windows, drawn))
    whole[OutcomeMeasure.NAIVE] = _ordinary(above, above_drawn, len(sevenths))
    return OutcomeBaseline(whole, columns, slices, shares, errors)


@dataclass(frozen=True)
class _Part:
    """Consecutive blocks: their sums, and the rankings within each."""

    sums: SlicedSums
    blocks: list[RankedClasses]

    @classmethod
    def of(cls, blocks: Sequence[SlicedSums]) -> "_Part":
        return cls(_total(blocks), [ranked(block.whole) for block in blocks if block.whole.rows])

    @classmethod
    def joined(cls, parts: Sequence["_Part"]) -> "_Part":
        return cls(_total([part.sums for part in parts]), [block for part in parts for block in part.blocks])


def _drawn(sevenths: Sequence[_Part]) -> Iterator[list[_Part]]:
    """Windows of sevenths drawn at random, RUN consecutive ones at a time."""
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        starts = rng.integers(0, len(sevenths) - RUN + 1, -(-SEVENTHS // RUN))
        yield [sevenths[start + offset] for start in starts for offset in range(RUN)][:SEVENTHS]


def _of(measured: Sequence[Mapping[OutcomeMeasure, Measured]], name: OutcomeMeasure) -> list[Measured]:
    return [found[name] for found in measured if name in found]


def _total(parts: Sequence[SlicedSums]) -> SlicedSums:
    return reduce(SlicedSums.__add__, parts)


def _ordinary(windows: Sequence[Measured], drawn: Sequence[Measured], sevenths: int) -> Ordinary:
    """The mean and spread of a measure, without sampling noise: that is added for the window judged."""
    fit = sevenths / SEVENTHS
    values = np.array([value.value for value in windows])
    noise = float(np.mean([value.error ** 2 for value in windows]))
    scatter = float(values.var()) * fit / (fit - 1)
    if drawn:
        runs = sevenths / RUN
        scatter = max(scatter, float(np.var([value.value for value in drawn])) * runs / (runs - 1))
        fit = runs
    return Ordinary(float(values.mean()), sqrt(noise * SEVENTHS / sevenths), sqrt(max(scatter - noise, 0.0)),
                    fit, max(value.value for value in (*windows, *drawn)))


def _ordinary_square(windows: Sequence[Measured], drawn: Sequence[Measured], sevenths: int) -> Ordinary:
    """The mean and spread of the cube root of a sum of squares, whose noise is subtracted already."""
    roots, resampled = ([Measured(float(np.cbrt(max(value.value, 0.0))), 0.0) for value in values]
                        for values in (windows, drawn))
    return _ordinary(roots, resampled, sevenths)


def _slice_baselines(
    windows: Sequence[SlicedSums], drawn: Sequence[SlicedSums], sevenths: int,
) -> tuple[dict[str, dict[OutcomeMeasure, Ordinary]], dict[str, dict[str, dict[OutcomeMeasure, Ordinary]]]]:
    """What is ordinary in the slices of each column: pooled, and of each with its own mean. A slice scatters
    at least as the slices of its column do."""
    columns: dict[str, dict[OutcomeMeasure, Ordinary]] = {}
    slices: dict[str, dict[str, dict[OutcomeMeasure, Ordinary]]] = {}
    for column, by_value in _total(windows[::SEVENTHS]).slices.items():
        own: dict[str, dict[OutcomeMeasure, Ordinary]] = {}
        for value, rows in by_value.items():
            if rows.rows >= MIN_SLICE * 2:
                measured, resampled = (
                    [slice_measures(window.whole, window.slices[column][value]) for window in parts
                     if value in window.slices.get(column, {})] for parts in (windows, drawn))
                own[value] = {name: _ordinary(_of(measured, name), _of(resampled, name), sevenths)
                              for name in IN_SLICES if len(_of(measured, name)) > 1}
        columns[column] = {name: _pooled(found) for name in IN_SLICES
                           if (found := [ordinary[name] for ordinary in own.values() if name in ordinary])}
        slices[column] = {value: {name: replace(one, spread=max(one.spread, columns[column][name].spread))
                                  for name, one in ordinary.items()} for value, ordinary in own.items()}
    return columns, slices


def _pooled(found: Sequence[Ordinary]) -> Ordinary:
    spread = sqrt(float(np.mean([one.spread ** 2 for one in found])))
    return Ordinary(float(np.mean([one.mean for one in found])),
                    float(np.mean([one.error for one in found])), spread, found[0].windows)


def naive_loss(sums: OutcomeSums, shares: Sequence[float]) -> float:
    """The mean log loss of always answering with these class shares."""
    losses = (count * log(max(share, MIN_SHARE)) for count, share in zip(sums.observed.tolist(), shares))
    return float(-sum(losses) / sums.rows)


def above_naive(sums: OutcomeSums, shares: Sequence[float]) -> Measured:
    """The mean log loss above that of always answering with these class shares."""
    loss = sums.loss / sums.rows
    spread = max(sums.loss_squared / sums.rows - loss ** 2, 1e-12)
    return Measured(loss - naive_loss(sums, shares), sqrt(spread / sums.rows))


def slice_measures(whole: OutcomeSums, part: OutcomeSums) -> dict[OutcomeMeasure, Measured]:
    """The measures of one slice's rows, less those of all other rows: what hits all alike is not its own."""
    here, rest = measures_of(part, []), measures_of(whole - part, [])
    return {name: Measured(here[name].value - rest[name].value, hypot(here[name].error, rest[name].error),
                           here[name].skewness) for name in IN_SLICES if name in here and name in rest}
