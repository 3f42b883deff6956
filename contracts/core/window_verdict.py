"""Has a window of traffic drifted from the training data? Which columns, how far, and how surely."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from scipy.stats import false_discovery_control

from contracts.core.classification import is_output
from contracts.core.contract import Contract
from contracts.core.decay_reasons import class_share_reasons, decay_reasons, missing_evidence
from contracts.core.drift_tests import chi_square, fisher_exact, rows_needed
from contracts.core.localization import DriftOrigin, LoggedRows, locate_drift
from contracts.core.outcome_verdict import OutcomeFigures
from contracts.core.policies import Drift
from contracts.core.reference import Reference, effects, fold_counts, shares
from contracts.core.skew import Skew
from contracts.core.verdict import (
    CheckKind,
    ColumnCheck,
    Performance,
    Severity,
    WindowFigures,
    WindowKind,
    WindowVerdict,
    gravest,
)
from contracts.core.window_checks import window_checks

# By column, the rows in each of its bins; a column that the traffic lacks is absent.
Counts: TypeAlias = Mapping[str, np.ndarray]
Checks: TypeAlias = dict[str, dict[CheckKind, ColumnCheck]]  # by column


@dataclass(frozen=True)
class Finding:
    """One check of one column: its `effect` in the check's unit, and the p-value of an effect
    of at least that size in unchanged traffic, corrected for the number of checks."""

    column: str
    check: CheckKind
    effect: float
    threshold: float
    p_value: float
    severity: Severity
    description: str
    origin: DriftOrigin | None = None

    @property
    def reason(self) -> str:
        """The description, with since when and in which slice."""
        return "; ".join(part for part in (self.description, str(self.origin or "")) if part)

    def is_drift(self, policy: Drift) -> bool:
        """Whether it is unlikely to be chance, and larger than its threshold."""
        return self.p_value <= policy.false_alarms and self.effect > self.threshold


def drift(
    contract: Contract, reference: Mapping[str, Reference], counts: Counts, *, rows: int, bad: int = 0,
    performance: Performance | None = None, outcomes: OutcomeFigures | None = None,
    refused_fields: Mapping[str, int] = MappingProxyType({}),
    skew: Sequence[Skew] = (), logged: LoggedRows | None = None, events: int | None = None,
    previous: Mapping[str, Mapping[CheckKind, ColumnCheck]] = MappingProxyType({}),
    not_run: Mapping[WindowKind, str] = MappingProxyType({}),
) -> WindowVerdict:
    """The verdict on a window of `rows` answered and `bad` refused records.

    Its kind is the gravest finding, its reasons are all of them. `refused_fields`: how often a field was at
    fault in a refused record. `outcomes`: the checks on labels, None where none is asked for. `events`: how
    many are known to have happened, None where that can't be known.
    `logged`: rows by which drift is dated and localized; `previous`: the checks of the window before, whether
    drift began there. `not_run`: why a kind of finding could not be looked for.

    A check finds drift when a test on the counts says that chance did not do it,
    with the false discoveries of all checks together under control, and when its
    effect is above the threshold: the most that unchanged windows of that size reach.
    """
    policy = contract.drift
    findings = find_drift(contract, reference, counts) if rows else []
    if logged:
        findings = [_localized(finding, reference[finding.column], logged, previous)
                    if finding.is_drift(policy) else finding for finding in findings]
    drifted = [finding for finding in findings if finding.is_drift(policy)]
    needed = rows_needed(policy, reference, len(findings))
    enough = needed is not None and rows >= needed
    inputs, outputs = _drift_reasons(drifted) if enough else ([], [])
    reasons: list[tuple[WindowKind, list[str]]] = [  # the gravest first
        (WindowKind.BROKEN_CONTRACT, [
            *(finding.reason for finding in drifted if finding.severity is Severity.PAGE),
            *(fault.reason for fault in skew if fault.is_broken),
            *_refused(rows, bad, policy, refused_fields)]),
        (WindowKind.SKEW, [fault.reason for fault in skew if not fault.is_broken]),
        (WindowKind.STALE, _stale(rows + bad, events)),
        (WindowKind.DECAYED, decay_reasons(outcomes)),
        (WindowKind.WORSE_ON_LABELS, class_share_reasons(outcomes, performance)),
        (WindowKind.INPUT_DRIFT, inputs),
        (WindowKind.PREDICTION_DRIFT, outputs),
        (WindowKind.INSUFFICIENT, [*([] if enough else [_insufficient(rows, needed)]),
                                   *missing_evidence(outcomes)]),
    ]
    kind, outcome = gravest(reasons, WindowKind.FINE)
    if not enough:
        too_few = dict.fromkeys((WindowKind.INPUT_DRIFT, WindowKind.PREDICTION_DRIFT),
                                _insufficient(rows, needed))
        not_run = {**not_run, **too_few}
    figures = WindowFigures(
        rows=rows, bad=bad, needed=needed, checks=_checks(findings, policy), performance=performance,
        outcomes=outcomes, results=window_checks(dict(reasons), not_run, outcomes),
        kinds=[kind for kind, found in reasons if found])
    return WindowVerdict(outcome=outcome, kind=kind,
                         reasons=tuple(reason for _, found in reasons for reason in found), figures=figures)


def _drift_reasons(drifted: Sequence[Finding]) -> tuple[list[str], list[str]]:
    """Of inputs, and of the model's answers."""
    findings = [finding for finding in drifted if finding.severity is Severity.DRIFT]
    return ([finding.reason for finding in findings if not is_output(finding.column)],
            [finding.reason for finding in findings if is_output(finding.column)])


def _localized(finding: Finding, reference: Reference, logged: LoggedRows,
               previous: Mapping[str, Mapping[CheckKind, ColumnCheck]]) -> Finding:
    """The finding with its origin; drift that was there when the window before ended began in that one."""
    origin = locate_drift(logged, finding.column, reference, finding.check, finding.threshold)
    before = previous.get(finding.column, {}).get(finding.check)
    first_day = str(logged.times.min().astype("datetime64[D]"))
    if origin and before and before.drifted and before.since and origin.first == first_day:
        origin = replace(origin, first=before.since)
    return replace(finding, origin=origin)


def find_drift(contract: Contract, reference: Mapping[str, Reference], counts: Counts) -> list[Finding]:
    """Every check of every column that the contract does not ignore: drift first, then by effect."""
    findings = []
    rows = int(max((column.sum() for column in counts.values()), default=0))
    for name, trained in reference.items():
        now = counts.get(name, all_missing(trained, rows))
        if name not in contract.drift.ignore and now.sum() and trained.counts.sum():
            findings += [_finding(contract, name, trained, now, CheckKind(check), float(effect))
                         for check, effect in effects(trained.bins, shares(trained.counts),
                                                      shares(now)).items()]
    corrected = false_discovery_control([finding.p_value for finding in findings]) if findings else []
    findings = [replace(finding, p_value=float(p_value)) for finding, p_value in zip(findings, corrected)]
    return sorted(findings, key=lambda finding: (
        not finding.is_drift(contract.drift), -finding.effect / max(finding.threshold, 1e-9)))


def cumulative_drift(
    contract: Contract, first: Mapping[str, Reference], reference: Mapping[str, Reference], counts: Counts,
) -> dict[str, float]:
    """Drift scores against the training data of the `first` champion.

    They show what moved so slowly, from one retraining to the next, that no window was far from its
    champion's training data. They start no retraining: each retraining was meant to follow the world.
    """
    folded = {}
    for name in {*first} & {*reference} & {*counts}:
        places = reference[name].bins.onto(first[name].bins)
        if places is not None and not is_output(name):
            folded[name] = fold_counts(counts[name], places, first[name].bins)
    findings = find_drift(contract, {name: first[name] for name in folded}, folded)
    return WindowFigures(checks=_checks(findings, contract.drift)).drift_scores


def all_missing(reference: Reference, rows: int) -> np.ndarray:
    """The counts of a column that none of the rows has."""
    return np.append(rows, np.zeros(len(reference.bins.labels) - 1, np.int64))


def _finding(
    contract: Contract, name: str, reference: Reference, now: np.ndarray, check: CheckKind, effect: float,
) -> Finding:
    policy, index = contract.drift, {CheckKind.MISSING: 0, CheckKind.NEW: 1}.get(check)
    by_hand = policy.threshold_of(name, check)
    baseline_effect = min(reference.baseline_effect[check], np.inf if by_hand is None else by_hand)
    threshold = max(baseline_effect, policy.min_effect(check)) if by_hand is None else by_hand
    first = reference.bins.first
    p_value = (chi_square(reference.counts[first:], now[first:], baseline_effect) if index is None else
               fisher_exact(reference.counts, now, index, baseline_effect))
    is_closed = check is CheckKind.NEW and name in contract.closed_features
    is_lost = check is CheckKind.MISSING and effect > 0 and not is_output(name)
    return Finding(
        name, check, effect if check is CheckKind.NEW else abs(effect), threshold, p_value,
        policy.severity_of(name, check) or (Severity.PAGE if is_closed or is_lost else Severity.DRIFT),
        _description(reference, name, check, effect, threshold, shares(reference.counts), shares(now)))


def _insufficient(rows: int, needed: int | None) -> str:
    if needed:
        return f"{rows} records of traffic, {needed} are needed"
    return ("the training data has too few rows to distinguish drift from chance; train on more, or set "
            "Drift(min_rows=…)")


def _description(reference: Reference, name: str, check: CheckKind, effect: float, threshold: float,
                 before: np.ndarray, now: np.ndarray) -> str:
    if check is CheckKind.MISSING:
        return (f"{name}: missing in {now[0]:.1%} of the records, {before[0]:.1%} of the training data; "
                f"threshold: {threshold:.1%} apart")
    if check is CheckKind.NEW:
        return (f"{name}: values never seen in training in {now[1]:.1%} of the records; "
                f"threshold: {threshold:.1%}")
    first = reference.bins.first
    change = now[first:] / max(now[first:].sum(), 1e-12) - before[first:] / max(before[first:].sum(), 1e-12)
    more, less = (reference.bins.labels[first + index] for index in (change.argmax(), change.argmin()))
    return f"{name}: distance {effect:.3f}, threshold {threshold:.3f}; more {more}, less {less}"


def _stale(records: int, events: int | None) -> list[str]:
    if events and not records:
        return [f"no traffic, though {events} events happened: no replica was asked, or no profile was "
                f"shipped"]
    if events == 0 and records:
        return [f"no labels: nothing was ingested of this window, though {records} records came, and later "
                f"events are in"]
    return []


def _refused(rows: int, bad: int, policy: Drift, refused_fields: Mapping[str, int]) -> list[str]:
    if bad <= policy.bad_inputs * (rows + bad) or bad <= policy.bad_rows:
        return []
    most = sorted(refused_fields.items(), key=lambda item: -item[1])[:5]
    fields = ", ".join(f"{name} in {times}" for name, times in most)
    return [f"{bad} of {rows + bad} records were refused by the service, limit: {policy.bad_inputs:.0%}"
            + (f": {fields}" if fields else "")]


def _checks(findings: Sequence[Finding], policy: Drift) -> Checks:
    checks: Checks = {}
    for finding in findings:
        origin = finding.origin
        checks.setdefault(
            finding.column, {})[finding.check] = ColumnCheck(effect=finding.effect,
                                                             threshold=finding.threshold,
                                                             p_value=finding.p_value,
                                                             drifted=finding.is_drift(policy),
                                                             since=origin.first if origin else None,
                                                             slice=origin.slice if origin else None)
    return checks
