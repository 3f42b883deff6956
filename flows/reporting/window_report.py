"""What the report of a window says: sentences, tables and trends."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import takewhile
from typing import Any

from contracts.core.classification import is_output
from contracts.core.contract import Contract
from contracts.core.drift import all_missing
from contracts.core.errors import NotFound
from contracts.core.policies import Drift
from contracts.core.reference import BinnedComparison
from contracts.core.retraining import Claim, ClaimState
from contracts.core.verdict import Action, CheckKind, WindowFigures, WindowKind, WindowVerdict, as_json
from flows.reporting.charts import Bar, Line, bars, line, named
from registry import layout
from registry.context import ModelContext
from registry.events import Event, WindowJudged
from registry.state import State

Report = dict[str, Any]
TRENDS = 6  # columns whose windows before are shown
BEFORE = 26  # windows before this one that are shown: half a year of weeks
CHECKS = {CheckKind.VALUES: "distance of values", CheckKind.MISSING: "missing, share apart",
          CheckKind.NEW: "never seen, share"}
FOUND = {
    WindowKind.FINE: "The traffic is like the training data",
    WindowKind.INSUFFICIENT: "There is too little traffic to tell",
    WindowKind.BROKEN_CONTRACT: "The data breaks its contract",
    WindowKind.SKEW: "Callers send other values than training reads",
    WindowKind.STALE: "Traffic or labels are missing",
    WindowKind.WORSE_ON_LABELS: "The model expects other outcomes than those that came true",
    WindowKind.INPUT_DRIFT: "What callers ask has moved away from the training data",
    WindowKind.PREDICTION_DRIFT: "What the model answers has moved away from the training data"}
RESULTS = {"released": "which was released", "passed": "which passed the gate and was not released",
           "failed": "which the gate refused", "insufficient": "of which the gate can't tell",
           "refused": "which the canary refused"}


def key(context: ModelContext, window: str) -> str:
    """Where the store keeps the window's page."""
    return layout.window_page(context.name, datetime.fromisoformat(window))


def newest(context: ModelContext) -> str:
    """The newest judged window; raises NotFound."""
    windows = context.ledger.state().windows
    if not windows:
        raise NotFound(f"no window of {context.name} was judged in {context.store.address}; run: perennial "
                       f"monitor {context.name}")
    return max(windows)


def judged(context: ModelContext, window: str) -> WindowVerdict:
    """The verdict that the ledger keeps of a window; raises NotFound."""
    windows = context.ledger.state().windows
    if window not in windows:
        start, known = context.contract.window_of(
            datetime.fromisoformat(window))[0].isoformat(), sorted(windows)
        there = f"{len(known)} are, the last {known[-1]}" if known else "none is"
        raise NotFound(f"no window of {context.name} that starts at {window} was judged, {there}; name a "
                       f"start that `perennial history {context.name}` lists, or run: perennial monitor "
                       f"{context.name} --window {start}")
    return windows[window].verdict


def window_report(context: ModelContext, window: str, action: Action, compared: BinnedComparison) -> Report:
    """All that the page says; `action` is what was decided,
    `compared` the counts that the verdict was given on."""
    verdict, state = judged(context, window), context.ledger.state()
    figures, policy = verdict.figures, context.contract.drift
    history, columns = _history(state, window), ranked(figures, compared)
    return {"model": context.name, "window": window,
            "end": (datetime.fromisoformat(window) + policy.window).isoformat(), "since": figures.since,
            "version": named(state, str(figures.version)), "kind": str(verdict.kind), "action": str(action),
            "headline": headline(state, window, action, policy), "reasons": list(verdict.reasons),
            "rows": figures.rows, "bad": figures.bad, "needed": figures.needed, "counted": compared.rows,
            "ignored": list(policy.ignore), "cumulative": _cumulative(figures), "columns": columns,
            "first": next(iter(history)),
            "trends": [{"name": column["name"], "score": column["score"]}
                       | _trend(history, state, column["name"]) for column in columns[:TRENDS]],
            "scores": scores(context.contract, history, state, window), "followed": followed(context, window)}


def _trend(history: Mapping[str, WindowFigures], state: State, column: str) -> Line:
    return line(history, state,
                {start: figures.drift_scores.get(column) for start, figures in history.items()}, limit=1.0)


def _cumulative(figures: WindowFigures) -> dict[str, float]:
    """The columns beyond their threshold by the training data of the first champion, the furthest first."""
    scores = figures.cumulative
    return {name: scores[name] for name in sorted(scores, key=lambda name: -scores[name]) if scores[name] > 1}


def headline(state: State, window: str, action: Action, policy: Drift) -> str:
    """What was found, how much, since when, and what is done about it, in one sentence."""
    verdict = state.windows[window].verdict
    first, found = _first_of_kind(state, window), FOUND[verdict.kind] + _how_much(verdict, policy)
    since = "" if first == window else f", in every window since {first.removesuffix('T00:00:00')}"
    return f"{found}{since}: {_done(state, window, action, policy)}."


def _how_much(verdict: WindowVerdict, policy: Drift) -> str:
    if verdict.kind is WindowKind.WORSE_ON_LABELS and verdict.figures.performance:
        return f", by {verdict.figures.performance.gap:.3f} nats where {policy.label_gap:g} may be"
    of_outputs = {WindowKind.INPUT_DRIFT: False, WindowKind.PREDICTION_DRIFT: True}.get(verdict.kind)
    scores = {name: score for name, score in verdict.figures.drift_scores.items()
              if is_output(name) is of_outputs}
    if scores:
        return (f", {max(scores, key=lambda name: scores[name])} furthest, {max(scores.values()):.1f} times "
                f"its threshold")
    return "" if verdict.kind in (WindowKind.FINE, WindowKind.INSUFFICIENT) else f" ({verdict.reasons[0]})"


def _first_of_kind(state: State, window: str) -> str:
    """The first of the judged windows, up to this one, that were all of its kind."""
    kinds = {start: judged.verdict.kind for start, judged in state.windows.items() if start <= window}
    return min(takewhile(lambda start: kinds[start] is kinds[window], sorted(kinds, reverse=True)))


def _done(state: State, window: str, action: Action, policy: Drift) -> str:
    enough, of = policy.persist
    if window in state.claims:
        return _claimed(state, state.claims[window])
    return {
        Action.FINE: "nothing is to be done", Action.INSUFFICIENT: "it is judged again when there is more",
        Action.PAGE: "a person must look, and nothing is trained on it",
        Action.NOTED: "it is noted, for under this contract it starts no retraining",
        Action.WATCH: f"it is watched, for {enough} of {of} windows must show it before a retraining starts",
    }[action]


def _claimed(state: State, claim: Claim) -> str:
    """What became of the retraining that a window asked for."""
    if claim.state is ClaimState.REFUSED:
        return f"no retraining was granted ({claim.why})"
    if claim.state is ClaimState.CLAIMED:
        failed = f", and {claim.failures} of its runs failed" if claim.failures else ""
        return f"a retraining was granted{failed}"
    if claim.version is None:
        return f"a retraining was granted and failed ({claim.why})"
    result = RESULTS.get(str(claim.outcome), claim.outcome)
    return f"a retraining was granted and made v{state.number(claim.version)}, {result}"


def ranked(figures: WindowFigures, compared: BinnedComparison) -> list[dict[str, Any]]:
    """Each judged column with its checks and its picture, the furthest first."""
    scores = figures.drift_scores

    def column(name: str) -> dict[str, Any]:
        reference, checks = compared.reference[name], figures.checks[name]
        drifted = any(check.drifted for check in checks.values())
        counts = compared.counts.get(name, all_missing(reference, compared.rows))
        return {"name": name, "output": is_output(name), "drifted": drifted,
                "score": (f"{scores[name]:.2f} × threshold" if drifted or scores[name] < 1
                          else "≤ 1 × threshold"),
                "checks": [{"what": what, "figures": checks[kind]} for kind, what in CHECKS.items()
                           if kind in checks], "bars": bars(reference, counts)}

    return [column(name) for name in sorted(scores, key=lambda name: -scores[name])
            if name in compared.reference]


def _history(state: State, window: str) -> dict[str, WindowFigures]:
    """The figures of the window and of those before it, oldest first."""
    starts = sorted(start for start in state.windows if start <= window)
    return {start: state.windows[start].verdict.figures for start in starts[-BEFORE - 1:]}


def scores(contract: Contract, history: Mapping[str, WindowFigures], state: State,
           window: str) -> dict[str, Any]:
    """The performance on the window's labels, and on those
    of the windows before; what is not known is None."""
    known = {start: figures.performance for start, figures in history.items() if figures.performance}
    mine, policy, estimate = known.get(window), contract.drift, history[window].estimate
    spans = {start: (one.low, one.high) for start, one in known.items() if one.low is not None
             and one.high is not None}
    return {
        "mine": mine, "span": spans.get(window), "limit": policy.label_gap, "least": policy.min_labels,
        "estimate": {name: value for name, value in as_json(estimate).items() if value is not None}
        if estimate else {},
        "classes": [Bar(name, mine.expected[name], mine.observed[name])
                    for name in _in_order(contract, mine.observed)] if mine else [],
        "log_loss": line(history, state, {start: one.log_loss for start, one in known.items()}, spans=spans),
        "gap": line(history, state, {start: one.gap for start, one in known.items()}, limit=policy.label_gap)}


def _in_order(contract: Contract, names: Iterable[str]) -> list[str]:
    """The contract's order of the classes; one that it no longer has comes last."""
    return sorted(names, key=[*contract.label.classes, *names].index)


def followed(context: ModelContext, window: str) -> list[dict[str, str]]:
    """The ledger's events about the window, its alerts' among
    them, and about the version that its retraining made."""
    state, events = context.ledger.state(), context.ledger.events()
    claim = state.claims.get(window)
    about = [event for event in events if _names(event, window)
             or (claim and claim.version and getattr(event.data, "version", None) == claim.version)]
    return [{"at": event.at[:19], "kind": event.kind.replace("_", " "), "about": _about(state, event)}
            for event in about]


def _names(event: Event, window: str) -> bool:
    return any(window in str(getattr(event.data, name, "")) for name in ("key", "window", "over"))


def _about(state: State, event: Event) -> str:
    data, verdict = event.data, getattr(event.data, "verdict", None)
    version = getattr(data, "version", None)
    words = [getattr(data, name, None) for name in ("kind", "state", "outcome", "why", "doing", "ended")]
    words += [getattr(verdict, name, None) for name in ("outcome", "kind")]
    is_window = isinstance(data, WindowJudged)  # its reasons are at the top of the page
    reasons = verdict.reasons if verdict and not is_window else ()
    parts = [named(state, version) if version else "", *words]
    return "; ".join(str(part) for part in (*dict.fromkeys(parts), *reasons) if part)
