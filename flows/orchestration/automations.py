"""The Prefect automations that watch runs and workers: runs without a heartbeat, runs and retrainings that
no worker begins, and a work pool without a worker."""

from datetime import timedelta
from uuid import UUID

from prefect.automations import AutomationCore, EventTrigger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import Posture

from contracts.core.contract import Contract
from deployments.prefect_server import POOL
from flows.monitoring.alerts import AlertMessage
from flows.monitoring.notifications import actions_for
from flows.orchestration.events import RETRAIN, STARTED
from flows.orchestration.runs import BEGINS_WITHIN
from registry.events import AlertState

HEARTBEAT = 30  # seconds between two heartbeats of a run: the least that Prefect allows
OUR_POOL: dict[str, str | list[str]] = {"prefect.resource.id": "prefect.work-pool.*",
                                        "prefect.resource.name": POOL}
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
    the run would hold its deployment's only place.

    A heartbeat shows, too, that a run has begun: a server on SQLite loses an event for good where the
    database is locked for some milliseconds, and without its Running a healthy run would be crashed.
    """
    began = {f"prefect.flow-run.{state}"
             for state in ("Running", "AwaitingConcurrencySlot", "Scheduled", "heartbeat")}
    trigger = EventTrigger(
        after={"prefect.flow-run.Pending", "prefect.flow-run.Submitting"}, expect={*began, *ENDED},
        match={"prefect.resource.id": "prefect.flow-run.*"}, for_each={"prefect.resource.id"},
        posture=Posture.Proactive, threshold=1, within=BEGINS_WITHIN)
    return AutomationCore(name="perennial: a run that does not begin has crashed", trigger=trigger, actions=[
        ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, force=False,
                           message=f"a worker took it, and it did not begin within {BEGINS_WITHIN}")])


def reconcile_if_not_started(contract: Contract, reconciler: UUID) -> AutomationCore:
    """Have the reconciler look if no run begins a granted retraining in the time that the contract states: it
    tells a person. `reconciler`: its deployment."""
    limit, model = contract.training.start_within, contract.name
    trigger = EventTrigger(
        after={RETRAIN}, expect={STARTED}, match={"prefect.resource.id": f"perennial.model.{model}"},
        for_each={"prefect.resource.id"}, posture=Posture.Proactive, threshold=1, within=limit)
    return AutomationCore(name=f"perennial: a retraining did not start: {model}", trigger=trigger,
                          description=f"granted, and no run began within {limit}",
                          actions=[RunDeployment(source="selected", deployment_id=reconciler,
                                                 parameters=None, job_variables=None)])


def page_if_no_worker(limit: timedelta) -> AutomationCore:
    """Tell a person, once, if the work pool has had no worker for `limit`. Prefect's server does it, as
    nothing else runs then."""
    trigger = EventTrigger(
        after={"prefect.work-pool.not-ready"}, expect={"prefect.work-pool.ready"}, match=OUR_POOL,
        for_each={"prefect.resource.id"}, posture=Posture.Proactive, threshold=1, within=limit)
    return AutomationCore(
        name="perennial: no worker begins runs", trigger=trigger,
        actions=actions_for(_no_worker(
            AlertState.RAISED, f"the work pool {POOL} has had no worker for {limit}",
            "no data is looked for, nothing is judged or trained: start a worker; perennial doctor looks")))


def tell_of_worker() -> AutomationCore:
    """Tell a person that the work pool has a worker again."""
    trigger = EventTrigger(
        after={"prefect.work-pool.not-ready"}, expect={"prefect.work-pool.ready"}, match=OUR_POOL,
        for_each={"prefect.resource.id"}, posture=Posture.Reactive, threshold=1, within=timedelta(0))
    return AutomationCore(
        name="perennial: a worker begins runs again", trigger=trigger,
        actions=actions_for(_no_worker(AlertState.OVER, f"the work pool {POOL} has a worker",
                                       "runs that waited begin now")))


def _no_worker(state: AlertState, message: str, response: str) -> AlertMessage:
    return AlertMessage(model="all models", kind="no worker", state=state, message=message, drift_scores={},
                        since="", window="", version="", response=response)


def set_automation(automation: AutomationCore) -> None:
    """Create an automation, or bring the one of its name up to date."""
    with get_client(sync_client=True) as client:
        existing = client.read_automations_by_name(automation.name)
        if existing:
            client.update_automation(existing[0].id, automation)
        else:
            client.create_automation(automation)
