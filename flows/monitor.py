"""The flow that judges windows of traffic and decides what follows."""

import logging
from typing import TypedDict

from prefect import flow, task

from contracts.core.digests import JsonObject
from contracts.core.retraining import is_provisional
from contracts.core.verdict import Action, WindowVerdict, as_json
from flows.monitoring.alerts import update_alerts, update_claim_alerts
from flows.monitoring.claims import claim_first_training
from flows.monitoring.decision import record_and_decide
from flows.monitoring.evaluation import evaluate_window
from flows.monitoring.faults import RunFault, tell_of_failure, tell_of_success
from flows.monitoring.windows import closed, due, is_outdated, known_labels
from flows.orchestration.events import RETRAIN, begin_run, emit, run_name
from flows.orchestration.steps import RETRIED
from flows.recalibration.due import ask_for_recalibration
from flows.reporting import window_report
from flows.reporting.artifacts import show_window
from flows.reporting.pages import report
from registry import data
from registry.context import open_model
from registry.store import put
from registry.traffic import ship

log = logging.getLogger("perennial.monitor")


class MonitorResult(TypedDict):
    """The verdict on the window, as JSON, and what follows from it."""

    verdict: JsonObject
    action: str


@flow(name="monitor", flow_run_name=run_name)
def monitor(model: str, window: str | None = None, cause: str | None = None) -> dict[str, MonitorResult]:
    """Judge the window of traffic that starts at `window` (ISO time), or all that are due, and emit an event
    with the action of each; where no version serves, ask for a first training, and where a recalibration of
    the champion is due, for that. `cause`: what started this run, for its page in Prefect."""
    begin_run(model, cause)
    judged = {start: judge_and_tell(model, start) for start in ([window] if window else due_windows(model))}
    ask_for_first_training(model)
    ask_for_recalibration(model)
    return judged


monitor.on_failure(tell_of_failure(RunFault.MONITOR))
monitor.on_completion(tell_of_success(RunFault.MONITOR))


@task(task_run_name="windows of {model} to judge", **RETRIED)
def due_windows(model: str) -> list[str]:
    """The starts of the windows that are due."""
    context = open_model(model)
    ship(context)
    return [start.isoformat() for start in due(context)] if data.versions(context.store, model) else []


def judge_and_tell(model: str, window: str) -> MonitorResult:
    """Judge one window, act on it, and show it in Prefect."""
    verdict, action = judge_window(model, window)
    announce(model, window, verdict, action)
    update_alerts(open_model(model), window, verdict, action)
    drawn = draw_window(model, window, return_state=True)
    show_window(model, window, verdict, action, drawn.result() if drawn.is_completed() else None)
    drawn.result()  # if it could not be drawn the run fails, but only now that all else is done
    return {"verdict": as_json(verdict), "action": str(action)}


@task(task_run_name="judge window {window} of {model}", **RETRIED)
def judge_window(model: str, window: str) -> tuple[WindowVerdict, Action]:
    """The window's verdict, judged now if there is none or it may change, and the action."""
    context = open_model(model)
    ship(context)
    start, judged = closed(context, window), context.ledger.state().windows.get(window)
    if judged and not is_outdated(context, judged) and not is_provisional(judged.verdict,
                                                                          context.contract.drift):
        action = record_and_decide(context, start, judged.verdict, judged.labels)
    else:
        labels = known_labels(context)
        action = record_and_decide(context, start, evaluate_window(context, start), labels)
    return context.ledger.state().windows[window].verdict, action


@task(task_run_name="draw window {window} of {model}", **RETRIED)
def draw_window(model: str, window: str) -> str:
    """Store the window's report, replacing an earlier one; returns its address."""
    context = open_model(model)
    key = window_report.key(context, window)
    put(context.store, key, report(context, window))
    return f"{context.store.address}/{key}"


def announce(model: str, window: str, verdict: WindowVerdict, action: Action) -> None:
    """Emit the window's event; that of a retraining only while no run works on it and it is not finished, as
    the event has one begin."""
    if action is Action.RETRAIN and not open_model(model).ledger.state().claims[window].is_waiting:
        return
    emit(model, f"perennial.window.{action}", f"{window}/{action}", {
        "window": window, "kind": str(verdict.kind), "reason": "; ".join(verdict.reasons)})


def ask_for_first_training(model: str) -> None:
    """Emit the event that has a first version trained, if none serves and the ledger grants it."""
    context = open_model(model)
    claim = claim_first_training(context)
    if claim and claim.is_waiting:
        emit(model, RETRAIN, claim.key, {"window": claim.key, "kind": "no champion", "reason": claim.reason})
    update_claim_alerts(context)
