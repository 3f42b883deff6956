"""The flow that judges one window of traffic and decides what follows."""

import logging
from typing import TypedDict
from uuid import NAMESPACE_URL, uuid5

from prefect import flow, task
from prefect.events import emit_event

from contracts.core.digests import JsonObject
from contracts.core.retraining import is_provisional
from contracts.core.verdict import Action, WindowVerdict, as_json
from flows.monitoring.alerts import update_alerts
from flows.monitoring.decision import record_and_decide
from flows.monitoring.evaluation import evaluate_window
from flows.monitoring.windows import closed
from flows.reporting import window_report
from flows.reporting.artifacts import show_window, tag_run
from flows.reporting.pages import report
from registry.context import open_model
from registry.store import put
from registry.traffic import ship

log = logging.getLogger("perennial.monitor")


class MonitorResult(TypedDict):
    """The verdict on the window, as JSON, and what follows from it."""

    verdict: JsonObject
    action: str


@flow(name="monitor", flow_run_name="{model} {window}")
def monitor(model: str, window: str) -> MonitorResult:
    """Judge the window of traffic that starts at `window` (ISO time), and emit one event with its action."""
    tag_run(model)
    verdict, action = judge_window(model, window)
    announce(model, window, verdict, action)
    update_alerts(open_model(model), window, verdict, action)
    drawn = draw_window(model, window, return_state=True)
    show_window(model, window, verdict, action, drawn.result() if drawn.is_completed() else None)
    drawn.result()  # if it could not be drawn the run fails, but only now that all else is done
    return {"verdict": as_json(verdict), "action": str(action)}


@task(task_run_name="judge window {window} of {model}")
def judge_window(model: str, window: str) -> tuple[WindowVerdict, Action]:
    """The window's verdict, judged now if there is none or it is provisional, and the action."""
    context = open_model(model)
    ship(context)
    start = closed(context, window)
    judged = context.ledger.state().windows.get(window)
    is_final = judged and not is_provisional(judged.verdict, context.contract.drift)
    action = record_and_decide(context, start,
                               judged.verdict if judged and is_final else evaluate_window(context, start))
    return context.ledger.state().windows[window].verdict, action


@task(task_run_name="draw window {window} of {model}")
def draw_window(model: str, window: str) -> str:
    """Store the window's report, replacing an earlier one; returns its address."""
    context = open_model(model)
    key = window_report.key(context, window)
    put(context.store, key, report(context, window))
    return f"{context.store.address}/{key}"


def announce(model: str, window: str, verdict: WindowVerdict, action: Action) -> None:
    """Emit the window's event; its id follows from window and action, so that Prefect drops repetitions."""
    emit_event(event=f"perennial.window.{action}",
               resource={"prefect.resource.id": f"perennial.model.{model}"},
               id=uuid5(NAMESPACE_URL, f"perennial/{model}/{window}/{action}"),
               payload={"model": model, "window": window, "kind": str(verdict.kind),
                        "reason": "; ".join(verdict.reasons)})
