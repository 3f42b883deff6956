"""Granted retrainings: the first one, those that nobody runs, and the alerts about them."""

from contracts.core.retraining import GAVE_UP, Claim, ClaimFault, RefusalRule
from flows.monitoring.windows import labelled_until
from registry import data
from registry.alerts import Alert
from registry.clock import machine_time
from registry.context import ModelContext
from registry.events import AlertOver, AlertRaised
from registry.state import State


def claim_first_training(context: ModelContext) -> Claim | None:
    """Ask for a first training where there is data and no champion; None if there is nothing to ask for."""
    if context.ledger.state().champion or not data.versions(context.store, context.name):
        return None
    until = labelled_until(context)
    key = f"first {context.contract.window_of(until)[0].isoformat()}"
    return context.ledger.claim_first_training(key, now=until, reason="no version serves yet",
                                               drift=context.contract.drift)


def record_claim_alerts(context: ModelContext) -> None:
    """Record the alerts about granted retrainings that nobody runs or that failed, and which are over."""
    while context.ledger.decide(lambda state: _new_alert(context, state) or _ended_alert(context, state)):
        pass


def _new_alert(context: ModelContext, state: State) -> AlertRaised | None:
    if _has_no_first_version(context, state):
        kind, window = str(RefusalRule.CIRCUIT_BREAKER), max(state.claims, default="")
        return AlertRaised(key=f"{kind} {window}", kind=kind, window=window, since=window, drift_scores={},
                           message=f"{state.refusals} trainings in a row were refused, and no version serves",
                           response=f"nothing trains any more: look at the verdicts with: perennial history "
                                    f"{context.name}; correct the cause, then run: perennial train "
                                    f"{context.name}", version="")
    for claim in state.claims.values():
        fault = _fault_of(context, claim)
        if fault and f"{fault} {claim.key}" not in state.alerts:
            return AlertRaised(key=f"{fault} {claim.key}", kind=fault, window=claim.key, since=claim.key,
                               message=_message(claim, fault), response=_remedy(context, fault),
                               drift_scores={}, version=state.champion or "")
    return None


def _has_no_first_version(context: ModelContext, state: State) -> bool:
    """Whether first trainings have stopped, as too many were refused, and nobody was told."""
    is_told = any(alert.kind == RefusalRule.CIRCUIT_BREAKER for alert in state.open_alerts)
    return not state.champion and state.refusals >= context.contract.drift.refusals and not is_told


def _fault_of(context: ModelContext, claim: Claim) -> ClaimFault | None:
    if claim.is_overdue(machine_time(), context.contract.training):
        return ClaimFault.NOT_STARTED
    return ClaimFault.GAVE_UP if claim.outcome == GAVE_UP else None


def _message(claim: Claim, fault: ClaimFault) -> str:
    if fault is ClaimFault.NOT_STARTED:
        return (f"the retraining for {claim.key} was granted at {claim.at:%Y-%m-%d %H:%M} UTC and no run "
                f"works on it")
    return f"the retraining for {claim.key} failed: {claim.why}"


def _remedy(context: ModelContext, fault: ClaimFault) -> str:
    if fault is ClaimFault.NOT_STARTED:
        return "nothing trains: look whether a worker runs, with: perennial doctor"
    return (f"nothing trains until the next window asks: correct the cause, then run: perennial train "
            f"{context.name}")


def _ended_alert(context: ModelContext, state: State) -> AlertOver | None:
    for alert in state.open_alerts:
        ended = _why_over(context, state, alert)
        if ended:
            return AlertOver(key=alert.key, ended_by=alert.window, ended=ended)
    return None


def _why_over(context: ModelContext, state: State, alert: Alert) -> str | None:
    claim = state.claims.get(alert.window)
    if alert.kind == ClaimFault.NOT_STARTED and claim and not claim.is_overdue(machine_time(),
                                                                             context.contract.training):
        return "a run works on it" if claim.is_granted else "it is finished"
    if alert.kind == ClaimFault.GAVE_UP and not state.refusals:
        return "a version was promoted"
    return None
