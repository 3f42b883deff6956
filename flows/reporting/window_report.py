"""The contents of a window's report: sentences, tables and trends."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import takewhile

from contracts.core.classification import is_output
from contracts.core.contract import Contract
from contracts.core.digests import JsonObject
from contracts.core.errors import NotFound
from contracts.core.policies import Drift
from contracts.core.reference import BinnedComparison
from contracts.core.retraining import Claim, ClaimState
from contracts.core.verdict import Action, CheckKind, WindowFigures, WindowKind, WindowVerdict, as_json
from contracts.core.window_verdict import all_missing
from flows.reporting.charts import Bar, Line, bars, line, named
from flows.reporting.outcome_report import outcome_section, results, share_threshold
from registry import layout
from registry.context import ModelContext
from registry.events import Event, WindowJudged
from registry.state import State

Report = JsonObject
MAX_TRENDS = 6  # columns whose history is shown
MAX_EARLIER = 26  # windows shown before this one: half a year of weeks
CHECKS = {CheckKind.VALUES: "distance of values", CheckKind.MISSING: "missing, share apart",
          CheckKind.NEW: "never seen, share"}
HEADLINES = {
    WindowKind.FINE: "The traffic is like the training data",
    WindowKind.INSUFFICIENT: "There are too few records or labels to judge",
    WindowKind.BROKEN_CONTRACT: "The data breaks its contract",
    WindowKind.SKEW: "Callers send other values than training reads",
    WindowKind.STALE: "Traffic or labels are missing",
    WindowKind.DECAYED: "The model does worse on labels than it promised, or than it did at training",
    WindowKind.WORSE_ON_LABELS: "The observed class shares differ from those that the model expected",
    WindowKind.INPUT_DRIFT: "Inputs have drifted from the training data",
    WindowKind.PREDICTION_DRIFT: "Predictions have drifted from the training data"}
RESULTS = {"released": "which was released", "passed": "which passed the gate and was not released",
           "failed": "which the gate refused", "insufficient": "which the gate had too little to judge by",
           "refused": "which the canary refused"}


def key(context: ModelContext, window: str) -> str:
    """The key of the window's page in the store."""
    return layout.window_page(context.name, datetime.fromisoformat(window))


def newest(context: ModelContext) -> str:
    """The newest judged window; raises NotFound."""
    windows = context.ledger.state().windows
    if not windows:
        raise NotFound(f"no window of {context.name} was judged in {context.store.address}; run: perennial "
                       f"monitor {context.name}")
    return max(windows)


def judged(context: ModelContext, window: str) -> WindowVerdict:
    """A window's verdict in the ledger; raises NotFound."""
    windows = context.ledger.state().windows
    if window not in windows:
        start = context.contract.window_of(datetime.fromisoformat(window))[0].isoformat()
        judged_so_far = f"{len(windows)} are, the last {max(windows)}" if windows else "none is"
        raise NotFound(f"no window of {context.name} that starts at {window} was judged, {judged_so_far}; "
                       f"name a start that `perennial history {context.name}` lists, or run: perennial "
                       f"monitor {context.name} --window {start}")
    return windows[window].verdict


def window_report(context: ModelContext, window: str, action: Action, compared: BinnedComparison) -> Report:
    """The values of the page's template; `compared`: the counts behind the verdict."""
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
                       | _trend(history, state, column["name"]) for column in columns[:MAX_TRENDS]],
            "outcomes": outcome_section(figures), "results": results(figures),
            "scores": scores(context.contract, history, state, window),
            "followed": consequences(context, window)}


def _trend(history: Mapping[str, WindowFigures], state: State, column: str) -> Line:
    return line(history, state,
                {start: figures.drift_scores.get(column) for start, figures in history.items()}, limit=1.0)


def _cumulative(figures: WindowFigures) -> dict[str, float]:
    """The columns above their threshold against the first champion's training data, the highest first."""
    scores = figures.cumulative
    return {name: scores[name] for name in sorted(scores, key=lambda name: -scores[name]) if scores[name] > 1}


def headline(state: State, window: str, action: Action, policy: Drift) -> str:
    """One sentence: what was found, how large it is, since when, and what is done about it."""
    verdict = state.windows[window].verdict
    first, sentence = _first_of_kind(state, window), HEADLINES[verdict.kind] + _how_much(verdict)
    since = "" if first == window else f", in every window since {first.removesuffix('T00:00:00')}"
    return f"{sentence}{since}: {_response(state, window, action, policy)}."


def _how_much(verdict: WindowVerdict) -> str:
    if verdict.kind is WindowKind.WORSE_ON_LABELS and verdict.figures.performance:
        limit = share_threshold(verdict.figures)
        return (f", by {verdict.figures.performance.gap:.3f} nats"
                + ("" if limit is None else f", the limit is {limit:.3g}"))
    if verdict.kind is WindowKind.DECAYED and (outcomes := verdict.figures.outcomes) and outcomes.failed:
        worst = outcomes.failed[0]
        return f": {worst.measure} by {worst.effect:.3f} more than is ordinary"
    of_outputs = {WindowKind.INPUT_DRIFT: False, WindowKind.PREDICTION_DRIFT: True}.get(verdict.kind)
    scores = {name: score for name, score in verdict.figures.drift_scores.items()
              if is_output(name) is of_outputs}
    if scores:
        return (f", {max(scores, key=lambda name: scores[name])} the most, {max(scores.values()):.1f} times "
                f"its threshold")
    return "" if verdict.kind in (WindowKind.FINE, WindowKind.INSUFFICIENT) else f" ({verdict.reasons[0]})"


def _first_of_kind(state: State, window: str) -> str:
    """The start of the unbroken run of windows of the same kind that ends with this one."""
    kinds = {start: judged.verdict.kind for start, judged in state.windows.items() if start <= window}
    return min(takewhile(lambda start: kinds[start] is kinds[window], sorted(kinds, reverse=True)))


def _response(state: State, window: str, action: Action, policy: Drift) -> str:
    enough, of = policy.persist
    if window in state.claims:
        return _retraining_result(state, state.claims[window])
    return {
        Action.FINE: "nothing is to be done", Action.INSUFFICIENT: "it is judged again when there is more",
        Action.PAGE: "a person must look, and nothing is trained on it",
        Action.NOTED: "under this contract that starts no retraining",
        Action.WATCH: f"a retraining starts once {enough} of {of} windows show it",
    }[action]


def _retraining_result(state: State, claim: Claim) -> str:
    """The result of the retraining that a window asked for, as part of a sentence."""
    if claim.state is ClaimState.REFUSED:
        return f"no retraining was granted ({claim.why})"
    if claim.state is ClaimState.CLAIMED:
        failed = f", and {claim.failures} of its runs failed" if claim.failures else ""
        return f"a retraining was granted{failed}"
    if claim.version is None:
        return f"a retraining was granted and failed ({claim.why})"
    result = RESULTS.get(str(claim.outcome), claim.outcome)
    return f"a retraining was granted and made v{state.number(claim.version)}, {result}"


def ranked(figures: WindowFigures, compared: BinnedComparison) -> list[JsonObject]:
    """Each judged column with its checks and its chart, the highest drift score first."""
    scores = figures.drift_scores

    def column(name: str) -> JsonObject:
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
    """The figures of the window and of up to MAX_EARLIER before it, oldest first."""
    starts = sorted(start for start in state.windows if start <= window)
    return {start: state.windows[start].verdict.figures for start in starts[-MAX_EARLIER - 1:]}


def scores(contract: Contract, history: Mapping[str, WindowFigures], state: State,
           window: str) -> JsonObject:
    """The performance on the window's labels and on those of the windows before; None where unknown."""
    performances = {start: figures.performance for start, figures in history.items() if figures.performance}
    own, policy, estimate = performances.get(window), contract.drift, history[window].estimate
    spans = {start: (performance.low, performance.high) for start, performance in performances.items()
             if performance.low is not None and performance.high is not None}
    log_losses = {start: performance.log_loss for start, performance in performances.items()}
    gaps = {start: performance.gap for start, performance in performances.items()}
    limit = share_threshold(history[window]) or policy.label_gap
    return {
        "mine": own, "span": spans.get(window), "limit": limit, "least": policy.min_labels,
        "estimate": {name: value for name, value in as_json(estimate).items() if value is not None}
        if estimate else {},
        "classes": [Bar(name, own.expected[name], own.observed[name])
                    for name in _in_order(contract, own.observed)] if own else [],
        "log_loss": line(history, state, log_losses, spans=spans),
        "gap": line(history, state, gaps, limit=limit)}


def _in_order(contract: Contract, names: Iterable[str]) -> list[str]:
    """The names in the contract's order of classes; those it no longer has come last."""
    return sorted(names, key=[*contract.label.classes, *names].index)


def consequences(context: ModelContext, window: str) -> list[dict[str, str]]:
    """The ledger's events about the window, its alerts, and the version that its retraining made."""
    state = context.ledger.state()
    claim = state.claims.get(window)
    events = context.ledger.events_with(window, *([claim.version] if claim and claim.version else ()))
    related = [event for event in events if _mentions(event, window)
             or (claim and claim.version and getattr(event.data, "version", None) == claim.version)]
    return [{"at": event.at[:19], "kind": event.kind.replace("_", " "), "about": _about(state, event)}
            for event in related]


def _mentions(event: Event, window: str) -> bool:
    return any(window in str(getattr(event.data, name, "")) for name in ("key", "window", "ended_by"))


def _about(state: State, event: Event) -> str:
    data, verdict = event.data, getattr(event.data, "verdict", None)
    version = getattr(data, "version", None)
    words = [getattr(data, name, None) for name in ("kind", "state", "outcome", "why", "response", "ended")]
    words += [getattr(verdict, name, None) for name in ("outcome", "kind")]
    is_window = isinstance(data, WindowJudged)  # its reasons are at the top of the page
    reasons = verdict.reasons if verdict and not is_window else ()
    parts = [named(state, version) if version else "", *words]
    return "; ".join(str(part) for part in (*dict.fromkeys(parts), *reasons) if part)
