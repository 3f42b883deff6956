"""Labels that do not come: the alert about windows whose checks on labels could not run."""

from contracts.core.verdict import WindowFigures
from registry.context import ModelContext
from registry.events import AlertOver, AlertRaised
from registry.state import State

TOO_FEW_LABELS = "too few labels"  # the alert's kind
LASTING = 3  # windows in a row after which a person is paged


def record_missing_labels(context: ModelContext) -> None:
    """Record the alert that no check on labels could run for LASTING windows, or its end."""
    context.ledger.decide(lambda state: _new_alert(context.name, state) or _ended_alert(state))


def _could_not_run(figures: WindowFigures) -> bool:
    return figures.outcomes is not None and not figures.outcomes.checks


def _new_alert(model: str, state: State) -> AlertRaised | None:
    newest = sorted(state.windows)[-LASTING:]
    figures = [state.windows[window].verdict.figures for window in newest]
    is_told = any(alert.kind == TOO_FEW_LABELS for alert in state.alerts.values()
                  if alert.ended_by is None or alert.ended_by >= newest[-1])
    if len(newest) < LASTING or is_told or not all(map(_could_not_run, figures)):
        return None
    last = figures[-1].outcomes
    why = last.not_run[0].why if last and last.not_run else "no label came"
    return AlertRaised(
        key=f"{TOO_FEW_LABELS} {newest[-1]}", kind=TOO_FEW_LABELS, window=newest[-1], since=newest[0],
        message=f"no check on labels could run in the last {LASTING} windows: {why}", drift_scores={},
        version=figures[-1].version or "",
        response=f"nothing would show that the model decays: look why labels do not come with: perennial "
                 f"status {model}; or set Drift(min_labels=…) or a longer Drift(window=…)")


def _ended_alert(state: State) -> AlertOver | None:
    newest = max(state.windows, default=None)
    if newest is None or _could_not_run(state.windows[newest].verdict.figures):
        return None
    for alert in state.open_alerts:
        if alert.kind == TOO_FEW_LABELS:
            return AlertOver(key=alert.key, ended_by=newest, ended=f"the labels of {newest} could be checked")
    return None
