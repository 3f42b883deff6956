"""The Prefect automations that need no worker: runs without a heartbeat, retrainings and other runs that no
worker begins."""

import json
from datetime import timedelta

from prefect.automations import AutomationCore, CallWebhook, EventTrigger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, DoNothing
from prefect.events.schemas.automations import Posture

from contracts.core.contract import Contract
from contracts.core.retraining import ClaimFault
from deployments.prefect_server import POOL
from flows.monitoring.notifications import alert_webhook_block
from flows.orchestration.events import RETRAIN, STARTED
from flows.orchestration.runs import BEGINS_WITHIN
from registry.events import AlertState

HEARTBEAT = 30  # seconds between two heartbeats of a run: the least that Prefect allows
ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")}


def crashed_without_heartbeat() -> AutomationCore:
    """Mark a run as crashed whose process or machine died: three heartbeats have not come."""
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"}, expect={"prefect.flow-run.heartbeat", *ENDED},
        match={"prefect.resource.id": "prefect.flow-run.*"}, for_each={"prefect.resource.id"},
        posture=Posture.Proactive, threshold=1, within=timedelta(seconds=3 * HEARTBEAT))
    return AutomationCore(name="perennial: a run without a heartbeat has crashed", trigger=trigger, actions=[
        ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, force=False,
                           message="no heartbeat: its process or machine is gone")])


def crashed_before_it_began() -> AutomationCore:
    """Mark a run as crashed that a worker took and did not begin: the worker died between the two. Until then
    the run would hold its deployment's only place."""
    began = {f"prefect.flow-run.{state}" for state in ("Running", "AwaitingConcurrencySlot", "Scheduled")}
    trigger = EventTrigger(
        after={"prefect.flow-run.Pending", "prefect.flow-run.Submitting"}, expect={*began, *ENDED},
        match={"prefect.resource.id": "prefect.flow-run.*"}, for_each={"prefect.resource.id"},
        posture=Posture.Proactive, threshold=1, within=BEGINS_WITHIN)
    return AutomationCore(name="perennial: a run that does not begin has crashed", trigger=trigger, actions=[
        ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, force=False,
                           message=f"a worker took it, and it did not begin within {BEGINS_WITHIN}")])


def page_if_not_started(contract: Contract) -> AutomationCore:
    """Tell a person if no run begins a granted retraining in the time that the contract states. Prefect's
    server does it, so that it works where no worker does; it posts where alerts go."""
    limit, model = contract.training.start_within, contract.name
    trigger = EventTrigger(
        after={RETRAIN}, expect={STARTED}, match={"prefect.resource.id": f"perennial.model.{model}"},
        for_each={"prefect.resource.id"}, posture=Posture.Proactive, threshold=1, within=limit)
    return AutomationCore(
        name=f"perennial: a retraining did not start: {model}", trigger=trigger,
        description=f"granted, and no run began within {limit}; does a worker run?",
        actions=_page(model, ClaimFault.NOT_STARTED, f"a retraining was granted and no run began it within "
                                                     f"{limit}", "nothing trains"))


def page_if_no_worker(limit: timedelta) -> AutomationCore:
    """Tell a person if a run of any flow is late and no run of its work pool begins for `limit`."""
    trigger = EventTrigger(
        after={"prefect.flow-run.Late"}, expect={"prefect.flow-run.Pending", "prefect.flow-run.Running"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.name": POOL, "prefect.resource.role": "work-pool"},
        for_each={"related:work-pool:prefect.resource.id"}, posture=Posture.Proactive, threshold=1,
        within=limit)
    return AutomationCore(
        name="perennial: no worker begins runs", trigger=trigger,
        description=f"a run is late, and none has begun for {limit}; does a worker run?",
        actions=_page("", "no worker", f"runs of the work pool {POOL} are late, and none has begun for "
                                       f"{limit}", "no data is looked for, nothing is judged or trained"))


def _page(model: str, kind: str, what: str, doing: str) -> list[ActionTypes]:
    """Post to where alerts go; if they go nowhere, the automation only shows among the events."""
    block = alert_webhook_block()
    text = json.dumps({"model": model, "kind": kind, "state": AlertState.RAISED, "what": what,
                       "doing": f"{doing}: look whether a worker runs, with: perennial doctor"})
    return [CallWebhook(block_document_id=block, payload=text) if block else DoNothing()]


def set_automation(automation: AutomationCore) -> None:
    """Create an automation, or bring the one of its name up to date."""
    with get_client(sync_client=True) as client:
        existing = client.read_automations_by_name(automation.name)
        if existing:
            client.update_automation(existing[0].id, automation)
        else:
            client.create_automation(automation)
