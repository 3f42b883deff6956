"""The gate: may this challenger take the champion's place?

Each rule of the gate is a function in `RULES` that gives its reasons
against the challenger; all are asked before the gate answers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from contracts.core.classification import (
    class_distance,
    classification_metrics,
    probability_fault,
    row_losses,
)
from contracts.core.contract import Contract
from contracts.core.gate_verdict import Difference, GateFigures, GateVerdict, Metrics, SliceDifference
from contracts.core.policies import Gate
from contracts.core.verdict import Outcome

RESAMPLES = 1_000
# The slices of rows without a value, and of values with too few rows.
MISSING, OTHERS = "(missing)", "(others)"


@dataclass(frozen=True)
class Evidence:
    """What a rule looks at; `metrics` are the challenger's, None
    where they are undefined or its answers are no probabilities."""

    limits: Gate
    metrics: Metrics | None
    figures: GateFigures


def gate(contract: Contract, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray | None,
         slices: Mapping[str, np.ndarray], *, latency_ms: float, size_mb: float, disagreement: float,
         refit_shift: float) -> GateVerdict:
    """May this challenger be promoted? Both models' probabilities,
    (n, classes), are of the same newest labelled rows.

    `latency_ms`: 99th percentile of one record. `disagreement` and `refit_shift`: see `GateFigures`.
    """
    limits, metrics = contract.gate, classification_metrics(contract, labels, challenger)
    costs = {"latency_ms": latency_ms, "size_mb": size_mb, "disagreement": disagreement,
             "refit_shift": refit_shift}
    # The ledger holds no NaN.
    finite = {name: cost if isfinite(cost) else None for name, cost in costs.items()}
    fault = probability_fault(contract, challenger)
    unknown = [] if fault else _undefined(limits, metrics)
    is_defined = not fault and not unknown
    compared: dict[str, object] = {}
    if champion is not None and (champion_fault := probability_fault(contract, champion)):
        unknown.append(f"the champion {champion_fault}: nothing to compare with")
    elif champion is not None and is_defined:
        by_slice, small = slice_differences(limits, labels, challenger, champion, slices)
        unknown += small
        compared = {"champion": classification_metrics(contract, labels, champion), "slices": by_slice,
                    "paired": paired_difference(limits, labels, challenger, champion),
                    "class_distance": class_distance(contract, challenger, champion)}
    figures = GateFigures(challenger=metrics, **finite, **compared)  # type: ignore[arg-type]  # of several types
    evidence = Evidence(limits, metrics if is_defined else None, figures)
    reasons = [f"the challenger {fault}"] if fault else []
    reasons += [reason for rule in RULES for reason in rule(evidence)]
    outcome = Outcome.FAILED if reasons else Outcome.INSUFFICIENT if unknown else Outcome.PASSED
    return GateVerdict(outcome=outcome, reasons=(*reasons, *unknown), figures=figures)


def metrics_are_good_enough(evidence: Evidence) -> list[str]:
    limits, metrics = evidence.limits, evidence.metrics
    if metrics is None:
        return []
    recalls = {name: _number(metrics.recall[name]) for name in limits.recall}
    return [*_above("log loss", _number(metrics.log_loss), limits.log_loss),
            *_below("AUC", _number(metrics.auc), limits.auc),
            *_above("calibration error", _number(metrics.calibration_error), limits.calibration_error),
            *(reason for name, recall in recalls.items()
              for reason in _below(f"recall of {name}", recall, limits.recall[name]))]


def costs_are_within_limits(evidence: Evidence) -> list[str]:
    limits, figures = evidence.limits, evidence.figures
    costs = (("latency", figures.latency_ms, limits.latency_ms), ("size", figures.size_mb, limits.size_mb),
             ("disagreement with the saved model", figures.disagreement, 0.0),
             ("shift of the refitted model", figures.refit_shift, limits.refit_shift))
    return [f"{name} {_number(cost):.4g} is above {limit:.4g}" for name, cost, limit in costs
            if not _number(cost) <= limit]


def is_better_than_champion(evidence: Evidence) -> list[str]:
    limits, paired = evidence.limits, evidence.figures.paired
    if paired is None or (paired.high <= limits.margin and paired.difference < limits.margin):
        return []
    return [f"not better than the champion: log loss differs by {paired.difference:+.4f}, "
            f"{limits.confidence:.0%} interval [{paired.low:+.4f}, {paired.high:+.4f}], its upper end must "
            f"not exceed {limits.margin:+.4f}"]


def no_slice_falls_behind(evidence: Evidence) -> list[str]:
    """Slices with fewer than `slice_rows` rows are shown and not judged."""
    limits = evidence.limits
    return [f"{part.column}={part.value} falls behind the champion by {part.behind:.4f}, the margin is "
            f"{limits.slice_margin}" for part in evidence.figures.slices if part.rows >= limits.slice_rows
            and part.behind > limits.slice_margin]


RULES: tuple[Callable[[Evidence], list[str]], ...] = (
    metrics_are_good_enough, costs_are_within_limits, is_better_than_champion, no_slice_falls_behind)


def _number(value: float | None) -> float:
    return nan if value is None else value  # NaN is within no limit


def _above(name: str, value: float, limit: float) -> list[str]:
    return [] if value <= limit else [f"{name} {value:.4f} is above {limit}"]


def _below(name: str, value: float, limit: float) -> list[str]:
    return [] if value >= limit else [f"{name} {value:.4f} is below {limit}"]


def _undefined(limits: Gate, metrics: Metrics) -> list[str]:
    if metrics.rows < limits.min_rows:
        return [f"{metrics.rows} labelled rows, at least {limits.min_rows} are needed"]
    absent = [name for name, recall in metrics.recall.items() if recall is None]
    return [f"no labelled row of class {', '.join(absent)}: AUC and recall are undefined"] if absent else []


def paired_difference(limits: Gate, labels: np.ndarray, challenger: np.ndarray,
                      champion: np.ndarray) -> Difference:
    """Challenger minus champion: mean log loss of the same
    rows and its bootstrap interval (below 0: better)."""
    difference = row_losses(labels, challenger) - row_losses(labels, champion)
    if np.ptp(difference) == 0:  # the very same model: scipy's interval would be NaN
        return Difference(difference=float(difference[0]), low=float(difference[0]),
                          high=float(difference[0]))
    interval = bootstrap((difference,), np.mean, n_resamples=RESAMPLES, batch=50, method="percentile",
                         confidence_level=limits.confidence, rng=0).confidence_interval
    return Difference(difference=float(difference.mean()), low=float(interval.low), high=float(interval.high))


def slice_differences(limits: Gate, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray,
                      slices: Mapping[str, np.ndarray]) -> tuple[list[SliceDifference], list[str]]:
    """How far the challenger is behind in each slice; and a reason for each column without a large slice.

    Rows without a value are a slice of their own; values with too few rows share one.
    """
    difference = row_losses(labels, challenger) - row_losses(labels, champion)
    judged, too_small = [], []
    for column in limits.slices:
        values = pd.Series(slices[column], dtype=object)
        enough = values.map(values.value_counts()) >= limits.slice_rows
        if not enough.any():
            too_small.append(f"no slice of {column} has {limits.slice_rows} rows")
        groups = pd.Series(difference).groupby(values.where(enough, OTHERS).mask(values.isna(),
                                                                                 MISSING).astype(str))
        judged += [
            SliceDifference(column=column, value=str(value), rows=int(row["size"]), behind=float(row["mean"]))
            for value, row in groups.agg(["size", "mean"]).iterrows()]
    return judged, too_small
