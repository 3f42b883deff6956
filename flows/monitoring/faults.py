"""Runs that fail and models that can't be opened: told once, and once more when it is over."""

import logging
from enum import StrEnum
from typing import Any

from prefect import State
from prefect.client.schemas import FlowRun
from prefect.flows import FlowStateHook
from prefect.variables import Variable

from contracts.core.errors import Stale
from flows.monitoring.alerts import AlertMessage, key_of, send, send_event, unsent
from registry.alerts import Alert
from registry.clock import machine_time
from registry.context import open_ledger, open_model
from registry.events import AlertOver, AlertRaised, AlertState
from registry.state import State as LedgerState

RESPONSE = "it is tried again as scheduled: correct what is named"
log = logging.getLogger("perennial.flows")


class RunFault(StrEnum):
    """What a person is told of; a failed training has its own alert."""

    OPEN = "model can't be opened"
    INGEST = "ingestion failed"
    MONITOR = "judging failed"
    RELEASE = "release failed"
    RECALIBRATE = "recalibration failed"


def tell_of_failure(fault: RunFault) -> FlowStateHook[..., Any]:
    """A hook for a flow whose runs failed: raise the alert, unless a person started the run and sees it."""

    def hook(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
        error: Any = state.result(raise_on_failure=False)
        if _is_by_itself(flow_run) and not isinstance(error, Stale):  # which has an alert of its own
            model = flow_run.parameters["model"]
            raise_fault(model, fault if _can_be_opened(model) else RunFault.OPEN, str(error))

    return hook


def tell_of_success(fault: RunFault) -> FlowStateHook[..., Any]:
    """A hook for a flow whose runs succeed again: end the alert."""

    def hook(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
        end_fault(flow_run.parameters["model"], fault)

    return hook


def _can_be_opened(model: str) -> bool:
    try:
        open_model(model).ledger.state()
    except Exception as error:  # of the contract, the ledger, the store: whatever it is, nothing can be done
        log.error("%s: %s", model, error, extra={"model": model})
        return False
    return True


def _is_by_itself(run: FlowRun) -> bool:
    return bool(run.deployment_id or run.parent_task_run_id)


def raise_fault(model: str, fault: RunFault, message: str) -> None:
    """Alert a person once of what goes wrong with a model, until it no longer does.

    Where the ledger can't be written, Prefect's server remembers that the alert was sent.
    """
    log.error("%s: %s: %s", model, fault, message, extra={"model": model, "event": str(fault)})
    window = machine_time().isoformat(timespec="seconds")

    def decision(state: LedgerState) -> AlertRaised | None:
        if _open(state, fault):
            return None
        return AlertRaised(key=key_of(fault, window), kind=fault, window=window, since=window,
                           message=message, drift_scores={}, version=state.champion or "", response=RESPONSE)

    try:
        ledger = open_ledger(model)
        ledger.decide(decision)
        alerts = unsent(model, ledger.state())
    except Exception as error:  # of the ledger, or a store that does not answer
        log.error("%s: the alert is in no ledger: %s", model, error, extra={"model": model})
        _send_unrecorded(model, fault, message, window)
    else:
        send(ledger, alerts)


def _send_unrecorded(model: str, fault: RunFault, message: str, since: str) -> None:
    """Send an alert that no ledger holds, unless it was sent before."""
    if Variable.get(_variable(model, fault)) is None:
        send_event(_message(model, fault, AlertState.RAISED, since, message, RESPONSE))
        Variable.set(_variable(model, fault), since, overwrite=True)


def _message(model: str, fault: RunFault, state: AlertState, since: str, message: str,
             response: str) -> AlertMessage:
    return AlertMessage(model=model, kind=fault, state=state, message=message, drift_scores={}, since=since,
                        window=since, version="", response=response)


def _variable(model: str, fault: RunFault) -> str:
    """The name of Prefect's variable that says since when an alert is sent that no ledger holds."""
    return f"perennial_unrecorded_{model}_{fault.name.lower()}"


def end_fault(model: str, fault: RunFault) -> None:
    """End the alert, if there is one."""
    ledger = open_ledger(model)
    since = Variable.get(_variable(model, fault))
    if since is not None:
        send_event(_message(model, fault, AlertState.OVER, str(since), "its ledger can be written again",
                            "it went well again"))
        Variable.unset(_variable(model, fault))

    def decision(state: LedgerState) -> AlertOver | None:
        alert = _open(state, fault)
        now = machine_time().isoformat(timespec="seconds")
        return AlertOver(key=alert.key, ended_by=now, ended="it went well again") if alert else None

    if ledger.decide(decision):
        send(ledger, unsent(model, ledger.state()))


def _open(state: LedgerState, fault: RunFault) -> Alert | None:
    return next((alert for alert in state.open_alerts if alert.kind == fault), None)
