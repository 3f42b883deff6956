"""Record a window's verdict and decide: retrain, page, watch, wait, or nothing."""

from datetime import datetime

from contracts.core.policies import Drift
from contracts.core.retraining import is_provisional, needs_person, persists, wants_retraining
from contracts.core.verdict import Verdict
from flows.monitoring.windows import _labels_held
from registry import data, models
from registry.context import ModelContext
from registry.ledger import BROKEN, State


def record_and_decide(memory: ModelContext, start: datetime, verdict: Verdict) -> str:
    """Write the Verdict down, ask for a retraining where it is a cause for one, and say what follows from the one that the ledger keeps."""
    window, drifted = start.isoformat(), memory.contract.drift
    facts = {"champion": memory.ledger.state().champion, "labels": _labels_held(memory)}
    verdict = memory.ledger.window_judged(window, verdict, facts, again=lambda held: is_provisional(held, drifted))
    judged = sorted((key, one["verdict"]) for key, one in memory.ledger.state().windows.items() if key <= window)
    if wants_retraining(verdict, drifted) and persists([Verdict.from_json(one) for _, one in judged], drifted):
        memory.ledger.claim_retraining(window, now=start + drifted.window, reason="; ".join(verdict.reasons), drift=drifted,
                                       fresh=fresh_rows(memory))
    return decided(memory.ledger.state(), window, drifted)


def decided(state: State, window: str, policy: Drift) -> str:
    """What follows from a judged window: retrain (the ledger granted it), page, watch (it must persist first), wait (cooldown
    or budget), noted (no cause to retrain under this contract), insufficient or fine."""
    verdict, claim = Verdict.from_json(state.windows[window]["verdict"]), state.claims.get(window)
    if needs_person(verdict):
        return "page"
    if not wants_retraining(verdict, policy):
        return {"passed": "fine", "failed": "noted"}.get(verdict.outcome, "insufficient")
    if claim is None:
        return "watch"
    if claim["state"] != "refused":
        return "retrain"
    return "page" if claim["why"].startswith(BROKEN) else "wait"


def fresh_rows(memory: ModelContext) -> int:
    """The labelled rows that came since the champion was trained."""
    trained = models.manifest(memory.store, memory.name, models.resolve(memory.ledger, "champion"))["rows"]
    return data.newest(memory.store, memory.name).rows - trained
