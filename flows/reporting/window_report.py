"""What the report of a window says: sentences, tables and trends."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import takewhile
from typing import Any

from contracts.core.classification import is_output
from contracts.core.contract import Contract
from contracts.core.drift import all_missing, drift_scores
from contracts.core.errors import NotFound
from contracts.core.policies import Drift
from contracts.core.reference import BinnedComparison
from contracts.core.verdict import Verdict
from flows.reporting.charts import Bar, _number, bars, line, named
from registry import layout
from registry.context import ModelContext
from registry.ledger import Event, State

Report = dict[str, Any]
TRENDS = 6  # columns whose windows before are shown
BEFORE = 26  # windows before this one that are shown: half a year of weeks
CHECKS = {"values": "distance of values", "missing": "missing, share apart", "new": "never seen, share"}
FOUND = {
    "fine": "The traffic is like the training data", "insufficient": "There is too little traffic to tell",
    "broken contract": "The data breaks its contract", "training/serving skew": "Callers send other values than training reads",
    "stale": "Something stays away", "worse on labels": "The model expects other outcomes than those that came true",
    "input drift": "What callers ask has moved away from the training data",
    "prediction drift": "What the model answers has moved away from the training data"}
RESULTS = {
    "released": "which was released", "passed": "which passed the gate and was not released", "failed": "which the gate refused",
    "insufficient": "of which the gate can't tell", "refused": "which the canary refused"}


def key(memory: ModelContext, window: str) -> str:
    """Where the store keeps the window's page."""
    return layout.window_page(memory.name, datetime.fromisoformat(window))


def newest(memory: ModelContext) -> str:
    """The newest judged window; raises NotFound."""
    windows = memory.ledger.state().windows
    if not windows:
        raise NotFound(f"no window of {memory.name} was judged in {memory.store.address}; run: perennial monitor {memory.name}")
    return max(windows)


def judged(memory: ModelContext, window: str) -> Verdict:
    """The Verdict that the ledger keeps of a window; raises NotFound."""
    windows = memory.ledger.state().windows
    if window not in windows:
        start, known = memory.contract.window_of(datetime.fromisoformat(window))[0].isoformat(), sorted(windows)
        there = f"{len(known)} are, the last {known[-1]}" if known else "none is"
        raise NotFound(f"no window of {memory.name} that starts at {window} was judged, {there}; name a start that `perennial history "
                        f"{memory.name}` lists, or run: perennial monitor {memory.name} --window {start}")
    return Verdict.from_json(windows[window]["verdict"])


def window_report(memory: ModelContext, window: str, action: str, compared: BinnedComparison) -> Report:
    """All that the page says; `action` is what was decided, `compared` what the Verdict was given on."""
    verdict, state = judged(memory, window), memory.ledger.state()
    figures, policy = verdict.figures, memory.contract.drift
    told, columns = _told(state, window), ranked(figures, compared)
    far = {start: drift_scores(seen) for start, seen in told.items()}
    return {
        "model": memory.name, "window": window, "end": (datetime.fromisoformat(window) + policy.window).isoformat(),
        "since": figures["since"], "version": named(state, figures["version"]), "kind": verdict.kind, "action": action,
        "headline": headline(state, window, action, policy), "reasons": list(verdict.reasons),
        "rows": figures["rows"], "bad": figures["bad"], "needed": figures["needed"], "counted": compared.rows,
        "ignored": list(policy.ignore), "crept": _crept(figures), "columns": columns, "first": next(iter(told)),
        "trends": [{"name": one["name"], "far": one["far"]} | line(
            told, state, {start: found.get(one["name"]) for start, found in far.items()}, limit=1.0) for one in columns[:TRENDS]],
        "scores": scores(memory.contract, told, state, window), "followed": followed(memory, window),
    }


def _crept(figures: Mapping[str, Any]) -> dict[str, float]:
    """The columns beyond their floor by the training data of the first champion, the furthest first."""
    far = figures.get("crept", {})
    return {name: far[name] for name in sorted(far, key=far.get, reverse=True) if far[name] > 1}


def headline(state: State, window: str, action: str, policy: Drift) -> str:
    """What was found, how much, since when, and what is done about it, in one sentence."""
    verdict = Verdict.from_json(state.windows[window]["verdict"])
    first, found = _first_of_kind(state, window), FOUND.get(verdict.kind, verdict.kind) + _how_much(verdict, policy)
    since = "" if first == window else f", in every window since {first.removesuffix('T00:00:00')}"
    return f"{found}{since}: {_done(state, window, action, policy)}."


def _how_much(verdict: Verdict, policy: Drift) -> str:
    if verdict.kind == "worse on labels":
        return f", by {verdict.figures['scores']['gap']:.3f} nats where {policy.label_gap:g} may be"
    asked = {"input drift": False, "prediction drift": True}.get(verdict.kind)
    far = {name: times for name, times in drift_scores(verdict.figures).items() if is_output(name) is asked}
    if far:
        return f", {max(far, key=far.get)} furthest, {max(far.values()):.1f} times its floor"
    return "" if verdict.kind in ("fine", "insufficient") else f" ({verdict.reasons[0]})"


def _first_of_kind(state: State, window: str) -> str:
    """The first of the judged windows, up to this one, that were all of its kind."""
    kinds = {start: one["verdict"]["kind"] for start, one in state.windows.items()}
    return min(takewhile(lambda start: kinds[start] == kinds[window], sorted((start for start in kinds if start <= window), reverse=True)))


def _done(state: State, window: str, action: str, policy: Drift) -> str:
    enough, of = policy.persist
    if window in state.claims:
        return _claimed(state, state.claims[window])
    return {
        "fine": "nothing is to be done", "insufficient": "it is judged again when there is more",
        "page": "a person must look, and nothing is trained on it",
        "noted": "it is noted, for under this contract it starts no retraining",
        "watch": f"it is watched, for {enough} of {of} windows must tell of it before a retraining starts",
    }[action]


def _claimed(state: State, claim: Mapping[str, Any]) -> str:
    """What became of the retraining that a window asked for."""
    if claim["state"] == "refused":
        return f"no retraining was granted ({claim['why']})"
    if claim["state"] == "claimed":
        failures = claim.get("failures", 0)
        return f"a retraining was granted, and {failures} of its runs failed" if failures else "a retraining was granted"
    if "version" not in claim:
        return f"a retraining was granted and failed ({claim.get('why', '')})"
    outcome = claim["outcome"]
    return f"a retraining was granted and made {_number(state, claim['version'])}, {RESULTS.get(outcome, outcome)}"


def ranked(figures: Mapping[str, Any], compared: BinnedComparison) -> list[dict[str, Any]]:
    """Each judged column with its checks and its picture, the furthest first."""
    far, checks = drift_scores(figures), figures["checks"]

    def column(name: str) -> dict[str, Any]:
        reference, drifted = compared.reference[name], any(one["drifted"] for one in checks[name].values())
        return {"name": name, "output": is_output(name), "drifted": drifted,
                "far": f"{far[name]:.2f} × floor" if drifted or far[name] < 1 else "≤ 1 × floor",
                "checks": [{"what": what} | checks[name][check] for check, what in CHECKS.items() if check in checks[name]],
                "bars": bars(reference, compared.counts.get(name, all_missing(reference, compared.rows)))}

    return [column(name) for name in sorted(far, key=far.get, reverse=True) if name in compared.reference]


def _told(state: State, window: str) -> dict[str, Mapping[str, Any]]:
    """The figures of the window and of those before it, oldest first."""
    starts = sorted(start for start in state.windows if start <= window)
    return {start: state.windows[start]["verdict"]["figures"] for start in starts[-BEFORE - 1:]}


def scores(contract: Contract, told: Mapping[str, Mapping[str, Any]], state: State, window: str) -> dict[str, Any]:
    """How the model did on the window's labels, and on those of the windows before; what is not known is None."""
    known = {start: figures["scores"] for start, figures in told.items() if figures.get("scores")}
    mine, policy = known.get(window), contract.drift
    spans = {start: (one["low"], one["high"]) for start, one in known.items() if "low" in one and "high" in one}
    return {
        "mine": mine, "span": spans.get(window), "estimate": _estimate(told[window].get("estimate")), "limit": policy.label_gap,
        "least": policy.min_labels,
        "classes": [Bar(name, mine["expected"][name], mine["observed"][name]) for name in _in_order(contract, mine["observed"])] if mine else [],
        "log_loss": line(told, state, {start: one["log_loss"] for start, one in known.items()}, spans=spans),
        "gap": line(told, state, {start: one["gap"] for start, one in known.items()}, limit=policy.label_gap),
    }


def _in_order(contract: Contract, names: Iterable[str]) -> list[str]:
    """The contract's order of the classes; one that it no longer has comes last."""
    return sorted(names, key=[*contract.label.classes, *names].index)


def _estimate(stored: Any) -> dict[str, Any]:
    return dict(stored) if isinstance(stored, Mapping) else {} if stored is None else {"log_loss": stored}


def followed(memory: ModelContext, window: str) -> list[dict[str, str]]:
    """The ledger's events about the window, its alerts' among them, and about the version that its retraining made."""
    state, found = memory.ledger.state(), memory.ledger.events()
    made = state.claims.get(window, {}).get("version")
    about = [event for event in found if any(window in str(event.data.get(name)) for name in ("key", "window", "over"))
             or (made and event.data.get("version") == made)]
    return [{"at": event.at[:19], "kind": event.kind.replace("_", " "), "about": _about(state, event)} for event in about]


def _about(state: State, event: Event) -> str:
    data, verdict = event.data, event.data.get("verdict", {})
    version = data.get("version")
    said = (data.get(name) for name in ("kind", "state", "outcome", "why", "doing", "ended"))
    parts = [named(state, version) if version else "", *said, verdict.get("outcome"), verdict.get("kind")]
    reasons = () if event.kind == "window_judged" else verdict.get("reasons", ())  # the window's are at the top of the page
    return "; ".join(str(part) for part in (*dict.fromkeys(parts), *reasons) if part)
