"""Does a model do worse on labels than its probabilities promise, and than it did when it was trained?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from msgspec.structs import replace
from scipy.stats import false_discovery_control, gamma, norm, t

from contracts.core.classification import TWO_SIDED
from contracts.core.ordinary import Ordinary, OutcomeBaseline
from contracts.core.outcome_baseline import (
    IN_SLICES,
    MIN_SLICE,
    SQUARED,
    above_naive,
    naive_loss,
    slice_measures,
)
from contracts.core.outcome_measures import BLOCKS, Measured, areas, calibration_bins, measures
from contracts.core.outcome_sums import OutcomeSums, SlicedSums
from contracts.core.outcome_verdict import NotRun, OutcomeCheck, OutcomeFigures, OutcomeMeasure
from contracts.core.policies import Drift

MAX_SHARE = 0.8  # of the rows in one slice, above which too few others are left to compare with
IN_WHOLE = 2 / 3  # of the false alarms that are allowed: by all rows together; the others by slices
NOT_TRAINED = Ordinary()


@dataclass(frozen=True)
class _Effect:
    """How much worse than ordinary a measure is, before the number of checks is allowed for."""

    measure: OutcomeMeasure
    effect: float
    error: float
    threshold: float
    p_value: float
    rows: int
    slice: str = ""


def judge_outcomes(policy: Drift, classes: Sequence[str], sums: SlicedSums, baseline: OutcomeBaseline | None,
                   *, windows: int = 1, coverage: float | None = None) -> OutcomeFigures:
    """Every check of a window's labelled rows, those that failed and those that could not run.

    `baseline`: what is ordinary, None for a version that was trained without one: then sampling alone
    is. `windows`: how many were put together. `coverage`: share of the logged predictions with a label.
    """
    rows = sums.whole.rows
    figures = _figures(classes, sums, baseline, windows)
    why = _why_not(policy, rows, coverage)
    if why:
        return replace(figures, not_run=[NotRun(measure=name, why=why) for name in OutcomeMeasure])
    checks = [*_checks([*_whole_effects(policy, sums, baseline)], policy, IN_WHOLE),
              *_checks([*_slice_effects(policy, sums, baseline)], policy, 1 - IN_WHOLE)]
    ran = {check.measure for check in checks}
    not_run = [NotRun(measure=name, why=_absent(name, classes, sums.whole)) for name in OutcomeMeasure
               if name not in ran]
    checks.sort(key=lambda check: (not check.failed, check.slice != "", check.p_value))
    figures = replace(figures, checks=checks, not_run=not_run)
    return _localized(figures, sums, baseline) if figures.failed else figures


def _why_not(policy: Drift, rows: int, coverage: float | None) -> str:
    if rows < policy.min_labels:
        return f"{rows} labelled rows, {policy.min_labels} are needed"
    if coverage is not None and coverage < policy.coverage:
        return f"labels of {coverage:.0%} of the logged predictions are in, {policy.coverage:.0%} are needed"
    return ""


def _absent(measure: OutcomeMeasure, classes: Sequence[str], sums: OutcomeSums) -> str:
    if measure is OutcomeMeasure.AUC_IN_BLOCKS:
        return "no few hours have rows of more than one class"
    if measure in (OutcomeMeasure.LOSS_TRAINED, OutcomeMeasure.AUC_TRAINED, OutcomeMeasure.NAIVE):
        return "the version was trained without out-of-time windows to compare with"
    counts = ", ".join(f"{name} {count}" for name, count in zip(classes, sums.observed))
    return f"too few rows by class: {counts}"


def _whole_effects(policy: Drift, sums: SlicedSums, baseline: OutcomeBaseline | None) -> Iterator[_Effect]:
    ordinary = baseline.whole if baseline else {}
    share = policy.false_alarms / len(OutcomeMeasure)
    against_training = (OutcomeMeasure.LOSS_TRAINED, OutcomeMeasure.AUC_TRAINED)
    for name, measured in measures(sums).items():
        if name is OutcomeMeasure.CLASS_SHARES and policy.label_gap is not None:
            yield _by_hand(name, measured, policy.label_gap, sums.whole.rows)
        elif name in SQUARED:
            yield _square_effect(name, measured, ordinary.get(name, NOT_TRAINED), _least(policy, name), share,
                                 sums.whole.rows)
        elif name in ordinary or name not in against_training:
            yield _effect(name, measured, ordinary.get(name, NOT_TRAINED), _least(policy, name), share,
                          sums.whole.rows)
    if baseline:
        yield _effect(OutcomeMeasure.NAIVE, above_naive(sums.whole, baseline.shares),
                      replace(ordinary[OutcomeMeasure.NAIVE], mean=0.0), 0.0, share, sums.whole.rows)


def _slice_effects(policy: Drift, sums: SlicedSums, baseline: OutcomeBaseline | None) -> Iterator[_Effect]:
    slices = [(column, value, rows) for column, by_value in sums.slices.items() if column != BLOCKS
              for value, rows in by_value.items() if rows.rows >= max(MIN_SLICE, policy.min_labels)]
    share = policy.false_alarms / max(len(slices) * len(IN_SLICES), 1)
    for column, value, rows in slices:
        for name, measured in slice_measures(sums.whole, rows).items():
            yield _effect(name, measured, _ordinary_of(baseline, column, value, name), _least(policy, name),
                          share, rows.rows, f"{column} {value}")


def _ordinary_of(baseline: OutcomeBaseline | None, column: str, value: str, name: OutcomeMeasure) -> Ordinary:
    """What is ordinary in a slice: its own, else that of its column's slices."""
    if baseline is None:
        return NOT_TRAINED
    own = baseline.slices.get(column, {}).get(value, {}).get(name)
    return own or baseline.columns.get(column, {}).get(name, NOT_TRAINED)


def _least(policy: Drift, name: OutcomeMeasure) -> float:
    """The smallest effect that can be decay; a calibration gap is squared."""
    return policy.min_decay ** 2 if name is OutcomeMeasure.CALIBRATION else policy.min_decay


def _effect(name: OutcomeMeasure, measured: Measured, ordinary: Ordinary, least: float, share: float,
            rows: int, slice: str = "") -> _Effect:
    """A measure against what is ordinary: as a new draw of windows that scatter by `spread` about the mean.

    Sampling noise and scatter add up; Student's t with the degrees of freedom of their sum (Satterthwaite,
    1946) allows for how little a few windows say of the scatter. Losses are skewed to the right: the
    p-value is no less than that of a shifted gamma distribution with their skewness.
    """
    effect = measured.value - ordinary.mean
    between = ordinary.spread ** 2 * (1 + 1 / ordinary.windows)
    noise = measured.error ** 2 + ordinary.error ** 2
    scale = sqrt(between + noise)
    freedom = (between + noise) ** 2 / (between ** 2 / max(ordinary.windows - 1, 1) + 1e-300)
    p_value = max(float(t.sf(effect / scale, freedom)), _skewed_tail(effect / scale, measured, scale))
    return _Effect(name, effect, measured.error, max(least, float(t.isf(share, freedom)) * scale), p_value,
                   rows, slice)


def _square_effect(name: OutcomeMeasure, measured: Measured, ordinary: Ordinary, least: float, share: float,
                   rows: int) -> _Effect:
    """A sum of squares against the most that ordinary windows reach; noise must not explain the rest."""
    scatter = ordinary.spread * sqrt(1 + 1 / ordinary.windows)
    limit = ordinary.mean + float(t.isf(share, max(ordinary.windows - 1, 1))) * scatter
    furthest = max(limit, ordinary.furthest, 0.0) ** 3
    noise = measured.at(furthest)
    p_value = _skewed_tail((measured.value - furthest) / noise.error, noise, noise.error)
    return _Effect(name, measured.value, measured.at(measured.value).error, max(least, furthest), p_value,
                   rows)


def _skewed_tail(deviations: float, measured: Measured, scale: float) -> float:
    skewness = measured.skewness * (measured.error / scale) ** 3
    if skewness < 1e-3:
        return float(norm.sf(deviations))
    shape = 4 / skewness ** 2
    return float(gamma.sf(shape + deviations * sqrt(shape), shape))


def _by_hand(name: OutcomeMeasure, measured: Measured, threshold: float, rows: int) -> _Effect:
    """A measure with a threshold that the contract sets: only chance is allowed for besides."""
    return _Effect(name, measured.value, measured.at(measured.value).error, threshold,
                   _skewed_tail(measured.value / measured.error, measured, measured.error), rows)


def _checks(effects: Sequence[_Effect], policy: Drift, share: float) -> Iterator[OutcomeCheck]:
    """The checks of effects that have a `share` of the false alarms to themselves."""
    if effects:
        corrected = false_discovery_control([effect.p_value for effect in effects])
        for effect, p_value in zip(effects, corrected):
            yield _check(effect, min(float(p_value) / share, 1.0), policy)


def _check(effect: _Effect, p_value: float, policy: Drift) -> OutcomeCheck:
    """The check of an effect, a squared calibration gap as its root."""
    values = {"effect": effect.effect, "low": effect.effect - TWO_SIDED * effect.error,
              "high": effect.effect + TWO_SIDED * effect.error, "threshold": effect.threshold}
    failed = p_value <= policy.false_alarms and effect.effect > effect.threshold
    if effect.measure is OutcomeMeasure.CALIBRATION:
        values = {name: sqrt(max(value, 0.0)) for name, value in values.items()}
    return OutcomeCheck(measure=effect.measure, p_value=p_value, failed=failed, rows=effect.rows,
                        slice=effect.slice, **values)


def _figures(classes: Sequence[str], sums: SlicedSums, baseline: OutcomeBaseline | None,
             windows: int) -> OutcomeFigures:
    whole, n = sums.whole, sums.whole.rows
    if not n:
        return OutcomeFigures(rows=0, windows=windows)
    ordinary: Mapping[OutcomeMeasure, Ordinary] = baseline.whole if baseline else {}
    found = areas(whole)
    trained_loss, trained_area = (ordinary.get(name) for name in (OutcomeMeasure.LOSS_TRAINED,
                                                                  OutcomeMeasure.AUC_TRAINED))
    return OutcomeFigures(
        rows=n, windows=windows, loss=whole.loss / n, loss_promised=whole.promised / n,
        loss_trained=trained_loss.mean if trained_loss else None,
        naive_loss=naive_loss(whole, baseline.shares) if baseline else None,
        auc={classes[index]: area for index, (area, _) in found.items()},
        auc_promised={classes[index]: promised for index, (_, promised) in found.items()},
        auc_trained=-trained_area.mean if trained_area else None,
        calibration={name: calibration_bins(whole, index) for index, name in enumerate(classes)})


def _localized(figures: OutcomeFigures, sums: SlicedSums, baseline: OutcomeBaseline | None) -> OutcomeFigures:
    """The figures with since when the loss is above the promised one, and the slice that carries it."""
    ordinary = (baseline.whole if baseline else {}).get(OutcomeMeasure.LOSS_PROMISED, NOT_TRAINED)
    return replace(figures, since=_since(sums.slices.get(BLOCKS, {}), ordinary.mean),
                   slice=_carrying_slice(sums, ordinary.mean, figures.failed))


def _since(blocks: Mapping[str, OutcomeSums], ordinary: float) -> str | None:
    """The block from which on the loss is above the promised one most surely."""
    excess = variance = furthest = 0.0
    since = None
    for start, rows in sorted(blocks.items(), reverse=True):
        excess += rows.loss - rows.promised - ordinary * rows.rows
        variance += rows.variance
        if excess / sqrt(max(variance, 1e-12)) > furthest:
            since, furthest = start, excess / sqrt(max(variance, 1e-12))
    return since


def _carrying_slice(sums: SlicedSums, ordinary: float, failed: Sequence[OutcomeCheck]) -> str | None:
    """The slice without which the loss's excess is at most half as large; else the slice that failed."""
    def excess(loss: float, promised: float, rows: int) -> float:
        return (loss - promised) / max(rows, 1) - ordinary

    whole = sums.whole
    remaining = {}
    for column, by_value in sums.slices.items():
        for value, rows in by_value.items():
            if column != BLOCKS and rows.rows <= MAX_SHARE * whole.rows:
                rest = excess(whole.loss - rows.loss, whole.promised - rows.promised, whole.rows - rows.rows)
                remaining[f"{column} {value}"] = rest
    best = min(remaining, key=lambda name: remaining[name], default=None)
    if best is not None and remaining[best] <= excess(whole.loss, whole.promised, whole.rows) / 2:
        return best
    return next((check.slice for check in failed if check.slice), None)
