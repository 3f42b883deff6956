"""Record a window's verdict and decide: retrain, page, watch, wait, or nothing."""

from datetime import datetime

from contracts.core.policies import Drift
from contracts.core.retraining import action, is_provisional, persists, wants_retraining
from contracts.core.verdict import Action, WindowVerdict
from flows.monitoring.windows import is_outdated
from registry import data, models
from registry.context import ModelContext
from registry.events import WindowJudged
from registry.state import State


def record_and_decide(context: ModelContext, start: datetime, verdict: WindowVerdict,
                      labels: str | None) -> Action:
    """Record the verdict, ask for a retraining if it is a cause for one, and return the action that follows
    from the verdict in the ledger. `labels`: those that were in before the window was evaluated, as
    `known_labels` names them: what came meanwhile has it judged again."""
    window, policy, ledger = start.isoformat(), context.contract.drift, context.ledger
    judged = WindowJudged(key=window, verdict=verdict, champion=ledger.state().champion, labels=labels)
    earlier_verdict = ledger.state().windows.get(window)
    is_changed = earlier_verdict is not None and is_outdated(context, earlier_verdict)

    def is_replaceable(earlier: WindowVerdict) -> bool:
        return is_changed or is_provisional(earlier, policy)

    recorded = ledger.window_judged(judged, is_replaceable=is_replaceable)
    history = [judged.verdict for key, judged in sorted(ledger.state().windows.items()) if key <= window]
    if wants_retraining(recorded, policy) and persists(history, policy):
        ledger.claim_retraining(window, now=start + policy.window, reason="; ".join(recorded.reasons),
                                drift=policy, new_rows=new_rows(context))
    return decided(ledger.state(), window, policy)


def decided(state: State, window: str, policy: Drift) -> Action:
    """The action that follows from a judged window."""
    return action(state.windows[window].verdict, state.claims.get(window), policy)


def new_rows(context: ModelContext) -> int:
    """The number of labelled rows that the champion was not trained on."""
    champion = models.resolve(context.ledger, "champion")
    trained_on = models.manifest(context.store, context.name, champion)["rows"]
    return data.newest(context.store, context.name).rows - int(trained_on)
