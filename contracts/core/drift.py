"""Has a window of traffic drifted from the training data? Which columns, how far, and how surely."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from scipy.stats import false_discovery_control

from contracts.core.classification import is_output
from contracts.core.contract import Contract
from contracts.core.drift_tests import chi_square, fisher_exact, rows_needed
from contracts.core.localization import DriftOrigin, LoggedRows, locate_drift
from contracts.core.performance import Performance
from contracts.core.policies import Drift
from contracts.core.reference import Reference, effects, fold_counts, shares
from contracts.core.skew import Skew
from contracts.core.verdict import Verdict

Counts = Mapping[str, np.ndarray]  # by column, the rows in each of its bins; a column that the traffic lacks is absent


@dataclass(frozen=True)
class Finding:
    """One check of one column: `effect` in the check's unit, `chance` of at least that much among rows like the training
    data's, corrected for the number of checks; `to` is what follows when both say drift."""

    column: str
    check: Literal["values", "missing", "new"]
    effect: float
    floor: float
    chance: float
    to: Literal["page", "drift", "note"]
    said: str
    trace: DriftOrigin | None = None

    @property
    def whole(self) -> str:
        """What is said of it, with since when and where."""
        return "; ".join(part for part in (self.said, self.trace.said() if self.trace else "") if part)

    def holds(self, policy: Drift) -> bool:
        return self.chance <= policy.false_alarms and self.effect > self.floor


def drift(contract: Contract, reference: Mapping[str, Reference], counts: Counts, *, rows: int,
          scores: Performance | None = None, bad: int = 0, at_fault: Mapping[str, int] = MappingProxyType({}),
          skew: Sequence[Skew] = (), seen: LoggedRows | None = None, events: int | None = None,
          before: Mapping[str, Any] = MappingProxyType({})) -> Verdict:
    """The Verdict on a window of `rows` answered and `bad` refused records, the fields `at_fault` with how often; its `kind` is the
    gravest finding, its reasons are all of them. `events`: how many are known to have happened, None where that is nobody's
    business. Rows that were `seen` one by one tell since when, and where; the checks of the window `before`, whether it began there.

    A check finds drift when a test on the counts says that chance did not do it, with the false discoveries of all checks
    together under control, and when its effect is above the floor that ordinary windows of that size keep.
    """
    policy = contract.drift
    checks = findings(contract, reference, counts) if rows else []
    checks = [replace(one, trace=_traced(one, reference[one.column], seen, before)) if seen and one.holds(policy) else one for one in checks]
    held = [one for one in checks if one.holds(policy)]
    needed = rows_needed(policy, reference, len(checks))
    enough = needed is not None and rows >= needed
    told: dict[str, list[str]] = {  # the gravest first
        "broken contract": [one.whole for one in held if one.to == "page"] + [one.said for one in skew if one.broken] + _refused(
            rows, bad, policy, at_fault),
        "training/serving skew": [one.said for one in skew if not one.broken],
        "stale": _stale(rows + bad, events),
        "insufficient": [] if enough else [_insufficient(rows, needed)],
        "worse on labels": _worse(scores, policy),
        "input drift": [one.whole for one in held if one.to == "drift" and not is_output(one.column)] if enough else [],
        "prediction drift": [one.whole for one in held if one.to == "drift" and is_output(one.column)] if enough else [],
    }
    kind = next((kind for kind, reasons in told.items() if reasons), "fine")
    return Verdict(
        question="drift", outcome={"fine": "passed", "insufficient": "insufficient"}.get(kind, "failed"), kind=kind,
        reasons=tuple(reason for reasons in told.values() for reason in reasons),
        figures={"rows": rows, "bad": bad, "needed": needed, "checks": _figures(checks, policy), "scores": asdict(scores) if scores else None,
                 "kinds": [kind for kind, reasons in told.items() if reasons]})


def _traced(one: Finding, reference: Reference, seen: LoggedRows, before: Mapping[str, Any]) -> DriftOrigin | None:
    found, held = locate_drift(seen, one.column, reference, one.check, one.floor), before.get(one.column, {}).get(one.check, {})
    began_before = found and held.get("drifted") and held.get("since") and found.first == str(seen.times.min().astype("datetime64[D]"))
    return replace(found, first=held["since"]) if began_before else found


def drift_scores(figures: Mapping[str, Any]) -> dict[str, float]:
    """Each column's furthest check in units of its floor, by a drift Verdict's figures; 1 at most where chance may have done it."""
    def far(one: Mapping[str, Any]) -> float:
        times = one["effect"] / max(one["floor"], 1e-9)
        return times if one["drifted"] else min(times, 1.0)

    return {name: max(map(far, checks.values())) for name, checks in figures.get("checks", {}).items()}


def findings(contract: Contract, reference: Mapping[str, Reference], counts: Counts) -> list[Finding]:
    """Every check of every column, the most telling first; without those that the contract ignores."""
    found = []
    rows = int(max((now.sum() for now in counts.values()), default=0))
    for name, one in reference.items():
        now = counts.get(name, all_missing(one, rows))
        if name not in contract.drift.ignore and now.sum() and one.counts.sum():
            found += [_finding(contract, name, one, now, check, float(effect))
                      for check, effect in effects(one.bins, shares(one.counts), shares(now)).items()]
    corrected = false_discovery_control([one.chance for one in found]) if found else []
    found = [replace(one, chance=float(chance)) for one, chance in zip(found, corrected)]
    return sorted(found, key=lambda one: (not one.holds(contract.drift), -one.effect / max(one.floor, 1e-9)))


def cumulative_drift(contract: Contract, first: Mapping[str, Reference], reference: Mapping[str, Reference], counts: Counts) -> dict[str, float]:
    """Each column's furthest check in units of its floor, against the training data of the `first` champion: what moved so
    slowly, a retraining at a time, that no window was far from the champion's. It starts nothing, for each retraining was
    meant to follow the world."""
    folded = {}
    for name in {*first} & {*reference} & {*counts}:
        places = reference[name].bins.onto(first[name].bins)
        if places is not None and not is_output(name):
            folded[name] = fold_counts(counts[name], places, first[name].bins)
    checks = findings(contract, {name: first[name] for name in folded}, folded)
    return drift_scores({"checks": _figures(checks, contract.drift)})


def all_missing(one: Reference, rows: int) -> np.ndarray:
    """The counts of a column that none of the rows has."""
    return np.append(rows, np.zeros(len(one.bins.labels) - 1, np.int64))


def _finding(contract: Contract, name: str, one: Reference, now: np.ndarray, check: str, effect: float) -> Finding:
    policy, index = contract.drift, {"missing": 0, "new": 1}.get(check)
    by_hand = policy.floor(name, check)
    ordinary = min(one.ordinary[check], np.inf if by_hand is None else by_hand)
    floor = max(ordinary, policy.least(check)) if by_hand is None else by_hand
    first = one.bins.first
    chance = (chi_square(one.counts[first:], now[first:], ordinary) if index is None else
              fisher_exact(one.counts, now, index, ordinary))
    closed = check == "new" and name in contract.closed
    usual = "page" if closed or (check == "missing" and effect > 0 and not is_output(name)) else "drift"
    return Finding(name, check, effect if check == "new" else abs(effect), floor, chance, policy.severity_of(name, check) or usual,
                   _said(one, name, check, effect, floor, shares(one.counts), shares(now)))


def _insufficient(rows: int, needed: int | None) -> str:
    return (f"{rows} records of traffic, {needed} are needed" if needed else
            "the training data has too few rows to tell drift from chance; train on more, or set Drift(min_rows=…)")


def _said(one: Reference, name: str, check: str, effect: float, floor: float, before: np.ndarray, now: np.ndarray) -> str:
    if check == "missing":
        return f"{name}: missing in {now[0]:.1%} of the records, {before[0]:.1%} of the training data; floor: {floor:.1%} apart"
    if check == "new":
        return f"{name}: values never seen in training in {now[1]:.1%} of the records; floor: {floor:.1%}"
    first = one.bins.first
    change = now[first:] / max(now[first:].sum(), 1e-12) - before[first:] / max(before[first:].sum(), 1e-12)
    more, less = (one.bins.labels[first + index] for index in (change.argmax(), change.argmin()))
    return f"{name}: distance {effect:.3f}, floor {floor:.3f}; more {more}, less {less}"


def _stale(records: int, events: int | None) -> list[str]:
    if events and not records:
        return [f"no traffic, though {events} events happened: no replica was asked, or no profile was shipped"]
    if events == 0 and records:
        return [f"no labels: nothing was ingested of this window, though {records} records came, and later events are in"]
    return []


def _refused(rows: int, bad: int, policy: Drift, at_fault: Mapping[str, int]) -> list[str]:
    if bad <= policy.bad_inputs * (rows + bad) or bad <= policy.bad_rows:
        return []
    fields = ", ".join(f"{name} in {times}" for name, times in sorted(at_fault.items(), key=lambda item: -item[1])[:5])
    return [f"{bad} of {rows + bad} records were refused by the service, limit: {policy.bad_inputs:.0%}" + (f": {fields}" if fields else "")]


def _worse(scores: Performance | None, policy: Drift) -> list[str]:
    if scores is None or scores.rows < policy.min_labels or scores.gap <= policy.label_gap or (
            scores.coverage is not None and scores.coverage < policy.coverage):
        return []  # a gap that is not a number gets no pass here
    shifts = ", ".join(f"{name} {share:.1%} for {scores.expected[name]:.1%}" for name, share in scores.observed.items())
    return [f"labels: {shifts} expected, on {scores.rows} rows: gap {scores.gap:.4f}, limit {policy.label_gap:g}"]


def _figures(checks: list[Finding], policy: Drift) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for one in checks:
        found.setdefault(one.column, {})[one.check] = {
            "effect": one.effect, "floor": one.floor, "chance": one.chance, "drifted": one.holds(policy)} | (
                {"since": one.trace.first, "slice": one.trace.slice} if one.trace else {})
    return found
