"""Is this window still the world that the champion was trained on? → Verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, false_discovery_control, hypergeom, ncx2, norm

from contracts.contract import Contract, Drift, Verdict, is_output
from contracts.reference import CHI, Reference, distance, effects, fold, shares
from contracts.skew import Skew
from contracts.trace import Rows, Trace, trace

PAGED = ("broken contract", "training/serving skew", "stale")  # a person must look: training on it would teach the fault
RETRAINABLE = ("worse on labels", "input drift", "prediction drift")  # the other kinds teach nothing good
POOLED = 10  # rows that are expected in a bin, below which it is tested together with others that are as rare
POWER = 0.9  # with which a window must find a shift of `Drift.detect` in a column of TYPICAL bins, or it is insufficient
TYPICAL = 10
LEAST = 1e-3  # the least share of a class that is expected, so that a gap stays finite

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
    trace: Trace | None = None

    @property
    def whole(self) -> str:
        """What is said of it, with since when and where."""
        return "; ".join(part for part in (self.said, self.trace.said() if self.trace else "") if part)

    def holds(self, policy: Drift) -> bool:
        return self.chance <= policy.false_alarms and self.effect > self.floor


@dataclass(frozen=True)
class Scores:
    """A model on a window's matured labels: its log loss, its 95 % confidence interval from `low` to `high`, and `gap`, how far
    the class shares are from expected. `coverage`: the share of the logged predictions whose label is in; None where no
    prediction was logged, and the model was asked again instead.

    The gap is the Kullback-Leibler divergence, in nats, of the shares that came true from the mean probabilities:
    unlike the log loss it does not rise with a week that is merely hard to predict.
    """

    rows: int
    log_loss: float
    gap: float
    observed: dict[str, float]
    expected: dict[str, float]
    low: float
    high: float
    coverage: float | None = None


def row_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each row's log loss; labels int (n,), probabilities (n, classes), clipped at 1e-7."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(chosen.astype(np.float64), 1e-7, 1.0))


def scored(contract: Contract, labels: np.ndarray, probabilities: np.ndarray, coverage: float | None = None) -> Scores:
    """The scores of one or more labelled rows; labels int (n,), probabilities (n, classes)."""
    names = contract.label.classes
    shares = np.bincount(labels, minlength=len(names)) / len(labels)
    expected = probabilities.astype(np.float64).mean(axis=0)
    there = shares > 0
    gap = float(np.sum(shares[there] * np.log(shares[there] / np.maximum(expected[there], LEAST))))
    losses = row_losses(labels, probabilities)
    loss, off = float(losses.mean()), float(norm.ppf(0.975) * losses.std() / np.sqrt(len(losses)))
    return Scores(len(labels), loss, gap, dict(zip(names, shares.tolist())), dict(zip(names, expected.tolist())),
                  loss - off, loss + off, coverage)


def estimated(probabilities: np.ndarray) -> dict[str, float]:
    """What the scores of n rows would be if the probabilities, (n, classes), were right: an estimate, while labels are not in."""
    sure = np.clip(probabilities.astype(np.float64), 1e-7, 1.0)
    return {"rows": len(sure), "log_loss": float(-(sure * np.log(sure)).sum(axis=1).mean()), "accuracy": float(sure.max(axis=1).mean())}


def drift(contract: Contract, reference: Mapping[str, Reference], counts: Counts, *, rows: int,
          scores: Scores | None = None, bad: int = 0, at_fault: Mapping[str, int] = MappingProxyType({}),
          skew: Sequence[Skew] = (), seen: Rows | None = None, events: int | None = None,
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


def _traced(one: Finding, reference: Reference, seen: Rows, before: Mapping[str, Any]) -> Trace | None:
    found, held = trace(seen, one.column, reference, one.check, one.floor), before.get(one.column, {}).get(one.check, {})
    began_before = found and held.get("drifted") and held.get("since") and found.first == str(seen.times.min().astype("datetime64[D]"))
    return replace(found, first=held["since"]) if began_before else found


def how_far(figures: Mapping[str, Any]) -> dict[str, float]:
    """Each column's furthest check in units of its floor, by a drift Verdict's figures; 1 at most where chance may have done it."""
    def far(one: Mapping[str, Any]) -> float:
        times = one["effect"] / max(one["floor"], 1e-9)
        return times if one["drifted"] else min(times, 1.0)

    return {name: max(map(far, checks.values())) for name, checks in figures.get("checks", {}).items()}


def wants_retraining(verdict: Verdict, policy: Drift) -> bool:
    """The world has moved in a way that the contract answers with a retraining."""
    return verdict.kind in RETRAINABLE and verdict.kind in policy.retrain_on


def persists(verdicts: Sequence[Verdict], policy: Drift) -> bool:
    """Whether drift was told of enough of the last windows, oldest first, and of the newest."""
    enough, of = policy.persist
    told = [wants_retraining(verdict, policy) for verdict in verdicts[-of:]]
    return sum(told) >= enough and told[-1]


def pages(verdict: Verdict) -> bool:
    """A person must look."""
    return verdict.kind in PAGED


def waits(verdict: Verdict, policy: Drift) -> bool:
    """Whether the window is to be judged again: when there is more traffic, or when more of its labels are in."""
    covered = (verdict.figures.get("scores") or {}).get("coverage")
    return verdict.outcome == "insufficient" or verdict.kind == "stale" or (covered is not None and covered < policy.coverage)


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


def crept(contract: Contract, first: Mapping[str, Reference], reference: Mapping[str, Reference], counts: Counts) -> dict[str, float]:
    """Each column's furthest check in units of its floor, against the training data of the `first` champion: what moved so
    slowly, a retraining at a time, that no window was far from the champion's. It starts nothing, for each retraining was
    meant to follow the world."""
    folded = {}
    for name in {*first} & {*reference} & {*counts}:
        places = reference[name].bins.onto(first[name].bins)
        if places is not None and not is_output(name):
            folded[name] = fold(counts[name], places, first[name].bins)
    checks = findings(contract, {name: first[name] for name in folded}, folded)
    return how_far({"checks": _figures(checks, contract.drift)})


def all_missing(one: Reference, rows: int) -> np.ndarray:
    """The counts of a column that none of the rows has."""
    return np.append(rows, np.zeros(len(one.bins.labels) - 1, np.int64))


def _finding(contract: Contract, name: str, one: Reference, now: np.ndarray, check: str, effect: float) -> Finding:
    policy, index = contract.drift, {"missing": 0, "new": 1}.get(check)
    by_hand = policy.floor(name, check)
    ordinary = min(one.ordinary[check], np.inf if by_hand is None else by_hand)
    floor = max(ordinary, policy.least(check)) if by_hand is None else by_hand
    first = one.bins.first
    chance = (_chi_square(one.counts[first:], now[first:], ordinary) if index is None else
              _exact(one.counts, now, index, ordinary))
    closed = check == "new" and name in contract.closed
    usual = "page" if closed or (check == "missing" and effect > 0 and not is_output(name)) else "drift"
    return Finding(name, check, effect if check == "new" else abs(effect), floor, chance, policy.severity_of(name, check) or usual,
                   _said(one, name, check, effect, floor, shares(one.counts), shares(now)))


def _exact(before: np.ndarray, now: np.ndarray, index: int, ordinary: float) -> float:
    """Fisher's exact chance that a share rose this far, or fell, where it may be `ordinary` above or below the training data's."""
    all_before, all_now = int(before.sum()), int(now.sum())
    high, low = (int(np.clip(round(before[index] + sign * ordinary * all_before), 0, all_before)) for sign in (1, -1))
    rise = hypergeom.sf(now[index] - 1, all_before + all_now, high + now[index], all_now)
    if index:
        return float(rise)  # that fewer values are new is no news
    return float(min(1.0, 2 * min(rise, hypergeom.cdf(now[index], all_before + all_now, low + now[index], all_now))))


def _chi_square(before: np.ndarray, now: np.ndarray, ordinary: float) -> float:
    """The chance of two lists of counts at least this unlike, where their distributions may be `ordinary` apart.

    Squared and times the size of both, their Jensen-Shannon distance follows Pearson's chi-square where it is small, and
    a noncentral one where the truth is apart. Bins of few expected rows are taken together.
    """
    table = np.array([before, now], np.float64)
    rows = table.sum(axis=1)
    if not rows.all():
        return 1.0
    rare = table.sum(axis=0) * rows.min() / rows.sum() < POOLED
    pooled = table[:, rare].sum(axis=1, keepdims=True)
    table = table[:, ~rare]
    if pooled.sum() * rows.min() / rows.sum() >= POOLED:
        table = np.column_stack([table, pooled])
    elif pooled.sum() and table.shape[1]:  # even together they are few: with the rarest of the others
        table[:, [table.sum(axis=0).argmin()]] += pooled
    if table.shape[1] < 2:
        return 1.0
    size = CHI * rows.prod() / rows.sum()
    return float(ncx2.sf(size * distance(*table) ** 2, table.shape[1] - 1, size * ordinary ** 2))


def rows_needed(policy: Drift, reference: Mapping[str, Reference], checks: int) -> int | None:
    """How many rows find a shift of `policy.detect` in a typical column with POWER, after correction for the number of
    checks; None where the training data itself has too few. `policy.min_rows` takes the place of the calculation."""
    if policy.min_rows is not None:
        return max(policy.min_rows, 1)
    trained = min((int(one.counts.sum()) for one in reference.values()), default=0)
    limit = chi2.isf(policy.false_alarms / max(checks, 1), TYPICAL - 1)
    strength = CHI * policy.detect ** 2
    pairs = brentq(lambda noncentral: ncx2.sf(limit, TYPICAL - 1, noncentral) - POWER, 1e-6, 1e4) / strength
    return int(np.ceil(1 / (1 / pairs - 1 / trained))) if trained > pairs else None


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


def _worse(scores: Scores | None, policy: Drift) -> list[str]:
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
