"""Record a window's verdict and decide: retrain, page, watch, wait, or nothing."""

from datetime import datetime

from contracts.core.policies import Drift
from contracts.core.retraining import action, is_provisional, persists, wants_retraining
from contracts.core.verdict import Action, WindowVerdict
from flows.monitoring.windows import known_labels
from registry import data, models
from registry.context import ModelContext
from registry.events import WindowJudged
from registry.state import State


def record_and_decide(context: ModelContext, start: datetime, verdict: WindowVerdict) -> Action:
    """Record the verdict, ask for a retraining where it is a cause for
    one, and give what follows from the verdict that the ledger keeps."""
    window, policy, ledger = start.isoformat(), context.contract.drift, context.ledger
    judged = WindowJudged(
        key=window, verdict=verdict, champion=ledger.state().champion, labels=known_labels(context))
    kept = ledger.window_judged(judged, is_replaceable=lambda known: is_provisional(known, policy))
    history = [judged.verdict for key, judged in sorted(ledger.state().windows.items()) if key <= window]
    if wants_retraining(kept, policy) and persists(history, policy):
        ledger.claim_retraining(window, now=start + policy.window, reason="; ".join(kept.reasons),
                                drift=policy, new_rows=new_rows(context))
    return decided(ledger.state(), window, policy)


def decided(state: State, window: str, policy: Drift) -> Action:
    """What follows from a judged window, by the ledger's state."""
    return action(state.windows[window].verdict, state.claims.get(window), policy)


def new_rows(context: ModelContext) -> int:
    """The labelled rows that came since the champion was trained."""
    trained = models.manifest(context.store, context.name, models.resolve(context.ledger, "champion"))["rows"]
    return data.newest(context.store, context.name).rows - int(trained)
