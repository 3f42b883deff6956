"""Runs that fail and models that can't be opened: told once, and once more when it is over."""

import logging
from enum import StrEnum
from typing import Any

from prefect import State
from prefect.client.schemas import FlowRun
from prefect.flows import FlowStateHook

from contracts.core.errors import ContractError, Corrupt, PerennialError, Stale
from flows.monitoring.alerts import AlertMessage, key_of, send, send_event, unsent
from registry.clock import machine_time
from registry.context import open_ledger
from registry.events import AlertOver, AlertRaised, AlertState
from registry.state import Alert
from registry.state import State as LedgerState

RESPONSE = "it is tried again as scheduled: correct what is named"
log = logging.getLogger("perennial.flows")


class RunFault(StrEnum):
    """What a person is told of; a failed training has its own alert."""

    OPEN = "model can't be opened"
    INGEST = "ingestion failed"
    MONITOR = "judging failed"
    RELEASE = "release failed"


def tell_of_failure(fault: RunFault) -> FlowStateHook[..., Any]:
    """A hook for a flow whose runs failed: raise the alert, unless a person started the run and sees it."""

    def hook(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
        error: Any = state.result(raise_on_failure=False)
        if _is_by_itself(flow_run) and not isinstance(error, Stale):  # which has an alert of its own
            of = RunFault.OPEN if isinstance(error, (ContractError, Corrupt)) else fault
            raise_fault(flow_run.parameters["model"], of, str(error))

    return hook


def tell_of_success(fault: RunFault) -> FlowStateHook[..., Any]:
    """A hook for a flow whose runs succeed again: end the alert."""

    def hook(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
        end_fault(flow_run.parameters["model"], fault)

    return hook


def _is_by_itself(run: FlowRun) -> bool:
    return bool(run.deployment_id or run.parent_task_run_id)


def raise_fault(model: str, fault: RunFault, message: str) -> None:
    """Alert a person once of what goes wrong with a model, until it no longer does."""
    log.error("%s: %s: %s", model, fault, message, extra={"model": model, "event": str(fault)})
    ledger, window = open_ledger(model), machine_time().isoformat(timespec="seconds")

    def decision(state: LedgerState) -> AlertRaised | None:
        if _open(state, fault):
            return None
        return AlertRaised(key=key_of(fault, window), kind=fault, window=window, since=window,
                           message=message, drift_scores={}, version=state.champion or "", response=RESPONSE)

    try:
        ledger.decide(decision)
        send(ledger, unsent(model, ledger.state()))
    except PerennialError as error:  # of the ledger: Prefect drops what it has had of the same id
        log.error("%s: the alert is in no ledger: %s", model, error, extra={"model": model})
        send_event(AlertMessage(
            model=model, kind=fault, state=AlertState.RAISED, message=message, drift_scores={}, since=window,
            window="", version="", response=RESPONSE))


def end_fault(model: str, fault: RunFault) -> None:
    """End the alert, if there is one."""
    ledger = open_ledger(model)

    def decision(state: LedgerState) -> AlertOver | None:
        alert = _open(state, fault)
        now = machine_time().isoformat(timespec="seconds")
        return AlertOver(key=alert.key, ended_by=now, ended="it went well again") if alert else None

    if ledger.decide(decision):
        send(ledger, unsent(model, ledger.state()))


def _open(state: LedgerState, fault: RunFault) -> Alert | None:
    return next((alert for alert in state.open_alerts if alert.kind == fault), None)
