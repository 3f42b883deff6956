"""The gate: may this challenger take the champion's place?

Each rule of the gate is a function in `RULES` that gives its checks
of the challenger; all are asked before the gate answers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite, nan

import numpy as np
import pandas as pd
from msgspec.structs import replace
from scipy.stats import bootstrap

from contracts.core.absent_classes import ClassHistory, absent_classes, absent_reasons
from contracts.core.classification import (
    class_distance,
    classification_metrics,
    probability_fault,
    row_losses,
)
from contracts.core.contract import Contract
from contracts.core.gate_verdict import BrokenByBoth, Difference, GateFigures, GateVerdict, SliceDifference
from contracts.core.limits import metric_limits
from contracts.core.outcome_sums import MISSING, OTHERS
from contracts.core.policies import Gate
from contracts.core.relative_limits import broken_by_both, is_better
from contracts.core.verdict import CheckOutcome, CheckResult, Outcome

RESAMPLES = 1_000
BETTER = "better than the champion"


@dataclass(frozen=True)
class Evidence:
    """What a rule looks at.

    `fault`: why the challenger's answers are no probabilities; `undefined`: why its metrics are undefined;
    `champion_fault`: why there is nothing to compare with; `too_small`: by slice's column, why none of it is
    large enough. Empty where that is not so.
    """

    limits: Gate
    figures: GateFigures
    fault: str
    undefined: list[str]
    champion_fault: str
    too_small: Mapping[str, str] = field(default_factory=dict)

    @property
    def incomparable(self) -> str:
        """Why the challenger is not compared with a champion; empty if it is."""
        if self.figures.champion is None:
            return "no champion yet"
        return self.fault or "; ".join(self.undefined) or self.champion_fault

    @property
    def unknown(self) -> list[str]:
        """What keeps the gate from judging, though it should."""
        return [reason for reason in (*self.undefined, self.champion_fault, *self.too_small.values())
                if reason]


def gate(contract: Contract, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray | None,
         slices: Mapping[str, np.ndarray], *, latency_ms: float, size_mb: float, disagreement: float,
         refit_shift: float, since: datetime | None = None,
         history: ClassHistory | None = None) -> GateVerdict:
    """May this challenger be promoted? Both models' probabilities,
    (n, classes), are of the same newest labelled rows.

    `latency_ms`: 99th percentile of one record. `disagreement`, `refit_shift` and `since`: see `GateFigures`.
    `history`: the labelled rows before, to say how rare a class is that these lack.
    """
    evidence = compare(contract, labels, challenger, champion, slices, GateFigures(
        challenger=classification_metrics(contract, labels, challenger),
        champion=None if champion is None else classification_metrics(contract, labels, champion),
        latency_ms=_finite(latency_ms), size_mb=_finite(size_mb), disagreement=_finite(disagreement),
        refit_shift=_finite(refit_shift), absent=absent_classes(contract, labels, history),
        since=since.isoformat() if since else None))
    checks = [check for rule in RULES for check in rule(evidence)]
    failed = [check.why for check in checks if check.outcome is CheckOutcome.FAILED]
    forgiven = [check.why for check in checks if check.outcome is CheckOutcome.PASSED and check.why]
    outcome = Outcome.FAILED if failed else Outcome.INSUFFICIENT if evidence.unknown else Outcome.PASSED
    return GateVerdict(outcome=outcome, reasons=(*failed, *evidence.unknown, *forgiven),
                       figures=replace(evidence.figures, checks=checks))


def compare(contract: Contract, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray | None,
            slices: Mapping[str, np.ndarray], figures: GateFigures) -> Evidence:
    """The figures with those of the comparison with the champion, where it can be made, or why it can't."""
    limits, fault = contract.gate, probability_fault(contract, challenger)
    champion_fault = "" if champion is None else probability_fault(contract, champion)
    if champion_fault:
        champion_fault = f"the champion {champion_fault}: nothing to compare with"
    undefined = [] if fault else _undefined(contract, figures)
    too_small: dict[str, str] = {}
    if champion is not None and figures.champion and not (fault or undefined or champion_fault):
        by_slice, too_small = slice_differences(limits, labels, challenger, champion, slices)
        paired = paired_difference(limits, labels, challenger, champion)
        shared = broken_by_both(contract, labels, challenger, champion,
                                (figures.challenger, figures.champion), paired)
        figures = replace(figures, paired=paired, slices=by_slice, broken_by_both=shared,
                          class_distance=class_distance(contract, challenger, champion))
    return Evidence(limits, figures, f"the challenger {fault}" if fault else "", undefined, champion_fault,
                    too_small)


def answers_are_probabilities(evidence: Evidence) -> Iterator[CheckResult]:
    yield _check("valid probabilities", evidence.fault)


def metrics_are_good_enough(evidence: Evidence) -> Iterator[CheckResult]:
    """A limit that the champion breaks, too, may be forgiven: see `Gate.absolute`."""
    shared = {broken.name: broken for broken in evidence.figures.broken_by_both}
    for limit in metric_limits(evidence.limits, evidence.figures.challenger):
        if limit.value is None or evidence.undefined:
            yield _not_run(limit.name, evidence.fault or "; ".join(evidence.undefined))
        elif limit.name not in shared:
            yield _check(limit.name, str(limit.broken or ""))
        else:
            both = shared[limit.name]
            yield CheckResult(name=limit.name, why=f"{limit.broken}{_beside_champion(evidence.limits, both)}",
                              outcome=CheckOutcome.PASSED if both.forgiven else CheckOutcome.FAILED)


def _beside_champion(limits: Gate, both: BrokenByBoth) -> str:
    """How a limit that both models break is judged, to end a sentence."""
    theirs = f", as is the champion's {both.champion:.4f}"
    if both.forgiven:
        return f"{theirs}: forgiven, as the challenger is better and no worse in this"
    if limits.absolute == "relative" and both.low > 0:
        return f"{theirs}, and the challenger is behind it by {both.behind:.4f}, {both.low:.4f} or more"
    return theirs


def costs_are_within_limits(evidence: Evidence) -> Iterator[CheckResult]:
    limits, figures = evidence.limits, evidence.figures
    costs = (("latency", figures.latency_ms, limits.latency_ms), ("size", figures.size_mb, limits.size_mb),
             ("disagreement with the saved model", figures.disagreement, 0.0),
             ("shift of the refitted model", figures.refit_shift, limits.refit_shift))
    for name, cost, limit in costs:
        value = nan if cost is None else cost  # NaN is within no limit
        yield _check(name, "" if value <= limit else f"{name} {value:.4g} is above {limit:.4g}")


def is_better_than_champion(evidence: Evidence) -> Iterator[CheckResult]:
    limits, paired = evidence.limits, evidence.figures.paired
    if paired is None:
        yield _not_run(BETTER, evidence.incomparable)
        return
    yield _check(BETTER, "" if is_better(limits, paired) else (
        f"not better than the champion: log loss differs by {paired.difference:+.4f}, "
        f"{limits.confidence:.0%} interval [{paired.low:+.4f}, {paired.high:+.4f}], its upper end must not "
        f"exceed {limits.margin:+.4f}"))


def no_slice_falls_behind(evidence: Evidence) -> Iterator[CheckResult]:
    """Slices with fewer than `slice_rows` rows are shown and not judged."""
    limits, parts = evidence.limits, evidence.figures.slices
    for column in limits.slices:
        name = f"slices of {column}"
        behind = [f"{part.column}={part.value} falls behind the champion by {part.behind:.4f}, the margin is "
                  f"{limits.slice_margin}" for part in parts if part.column == column
                  and part.rows >= limits.slice_rows and part.behind > limits.slice_margin]
        too_small = evidence.incomparable or evidence.too_small.get(column, "")
        yield _check(name, "; ".join(behind)) if behind or not too_small else _not_run(name, too_small)
        yield from (_not_run(f"slice {column}={part.value}",
                             f"{part.rows} rows, {limits.slice_rows} are needed")
                    for part in parts if part.column == column and part.rows < limits.slice_rows)


RULES: tuple[Callable[[Evidence], Iterator[CheckResult]], ...] = (
    answers_are_probabilities, metrics_are_good_enough, costs_are_within_limits, is_better_than_champion,
    no_slice_falls_behind)


def _finite(cost: float) -> float | None:
    return cost if isfinite(cost) else None  # the ledger holds no NaN


def _check(name: str, fault: str) -> CheckResult:
    """A check that was run; it failed if there is a fault."""
    return CheckResult(name=name, outcome=CheckOutcome.FAILED if fault else CheckOutcome.PASSED, why=fault)


def _not_run(name: str, why: str) -> CheckResult:
    return CheckResult(name=name, outcome=CheckOutcome.NOT_RUN, why=why)


def _undefined(contract: Contract, figures: GateFigures) -> list[str]:
    """Why the metrics of the judged rows are undefined; empty if they are not."""
    rows, needed = figures.challenger.rows, contract.gate.min_rows
    if rows < needed:
        return [f"{rows} labelled rows, at least {needed} are needed"]
    return absent_reasons(contract, figures.absent)


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
                      slices: Mapping[str, np.ndarray]) -> tuple[list[SliceDifference], dict[str, str]]:
    """How far the challenger is behind in each slice; and why, by column, none of it is large enough.

    Rows without a value are a slice of their own; values with too few rows share one.
    """
    difference = row_losses(labels, challenger) - row_losses(labels, champion)
    judged: list[SliceDifference] = []
    too_small = {}
    for column in limits.slices:
        values = pd.Series(slices[column], dtype=object)
        enough = values.map(values.value_counts()) >= limits.slice_rows
        if not enough.any():
            too_small[column] = f"no slice of {column} has {limits.slice_rows} rows"
        groups = pd.Series(difference).groupby(values.where(enough, OTHERS).mask(values.isna(),
                                                                                 MISSING).astype(str))
        judged += [
            SliceDifference(column=column, value=str(value), rows=int(row["size"]), behind=float(row["mean"]))
            for value, row in groups.agg(["size", "mean"]).iterrows()]
    return judged, too_small
