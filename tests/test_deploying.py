"""What `perennial deploy` registers, on a real Prefect server without a worker: what changes, what is paused,
and who is told that nothing runs."""

import os
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.states import Pending

from contracts.core.errors import ContractError, Unavailable
from contracts.core.loading import known_models, load_contract
from contracts.core.policies import Schedule
from contracts.flights import contract as flights
from contracts.pumps import contract as pumps
from deployments.prefect_server import POOL
from flows.monitoring.notifications import to_pagerduty
from flows.orchestration.automations import (
    crashed_before_it_began,
    page_if_no_worker,
    reconcile_if_not_started,
    set_automation,
    tell_of_worker,
)
from flows.orchestration.deploying import deploy
from flows.orchestration.deployments import WITHOUT_CONTRACT
from flows.orchestration.events import RETRAIN, STARTED, resource_of
from flows.orchestration.steps import RETRIED
from registry.settings import ALERT_WEBHOOK
from tests.conftest import PUMPS

pytestmark = pytest.mark.usefixtures("server")
FLOWS = ("ingest", "monitor", "release", "train")
SHORT = timedelta(seconds=10)  # the least that Prefect takes for an event that stays away


def told(models=None, dry_run=False) -> dict[str, str]:
    """What `perennial deploy` says of each deployment."""
    return {change.deployment: change.what for change in deploy(models, dry_run).changes}


def deployment(name: str):
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


def enabled(name: str) -> set[bool]:
    """Whether the automations that run a deployment are enabled."""
    with get_client(sync_client=True) as client:
        resource = f"prefect.deployment.{deployment(name).id}"
        return {automation.enabled for automation in client.read_resource_related_automations(resource)}


def use(monkeypatch, **changed) -> None:
    """Have these contracts be loaded, by their names, in place of their files'."""
    monkeypatch.setattr("flows.orchestration.deploying.load_contract",
                        lambda model: changed.get(model) or load_contract(model))


def until(done, seconds: float):
    deadline = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


@pytest.mark.timeout(300)
def test_a_dry_run_changes_nothing_and_the_second_deploy_neither():
    # Of the contracts flights alone asks for recalibrations.
    expected = {f"{flow}/{model}" for flow in FLOWS for model in known_models()} | {
        "reconcile/reconcile", "recalibrate/flights"}
    assert told(dry_run=True) == dict.fromkeys(expected, "new")
    with get_client(sync_client=True) as client:
        assert client.read_deployments() == client.read_automations() == []
    assert told() == dict.fromkeys(expected, "new")
    assert told() == dict.fromkeys(expected, "unchanged")


def test_a_models_deployments_have_its_schedule_its_tag_and_its_triggers():
    found = deployment("ingest/flights")
    [schedule] = found.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == (flights.schedule.data, "America/New_York")
    assert {"perennial", "model:flights"} <= {*found.tags} and found.parameters == {"model": "flights"}
    assert found.global_concurrency_limit.limit == 1
    assert enabled("train/flights") == enabled("monitor/flights") == {True}


def test_a_changed_schedule_is_shown_as_before_and_after(monkeypatch):
    use(monkeypatch, pumps=replace(pumps, schedule=replace(pumps.schedule, data="5 4 * * *")))
    [change] = [change for change in deploy(dry_run=True).changes if change.what != "unchanged"]
    assert (change.deployment, change.what) == ("ingest/pumps", "changed")
    assert change.details.endswith(" → 5 4 * * * UTC")
    deploy()
    assert deployment("ingest/pumps").schedules[0].schedule.cron == "5 4 * * *"
    monkeypatch.undo()
    assert told()["ingest/pumps"] == "changed"


def test_what_has_no_contract_any_more_is_paused_and_resumed_when_it_has_one_again():
    gone = [f"{flow}/flights" for flow in (*FLOWS, "recalibrate")]
    done = told([PUMPS])
    assert {done[name] for name in gone} == {"paused"}
    assert deployment("train/flights").paused and WITHOUT_CONTRACT in deployment("train/flights").tags
    assert enabled("train/flights") == {False}
    assert not {*gone} & {*told([PUMPS])}  # it is told once
    done = told()
    assert {done[name] for name in gone} == {"resumed"}
    assert not deployment("train/flights").paused
    assert WITHOUT_CONTRACT not in deployment("train/flights").tags
    assert enabled("train/flights") == {True}


def test_one_that_comes_back_with_another_schedule_is_resumed_too(monkeypatch):
    told([PUMPS])
    changed_flights = replace(flights, schedule=replace(flights.schedule, data="1 2 * * *"))
    use(monkeypatch, flights=changed_flights)
    assert told()["ingest/flights"] == "changed"
    found = deployment("ingest/flights")
    assert not found.paused and found.schedules[0].active and WITHOUT_CONTRACT not in found.tags


@pytest.mark.parametrize("data", ["0 1 * * *", "0 3 * * *"])
def test_what_a_person_has_paused_stays_so(monkeypatch, data):
    """Whether or not its contract changes."""
    told()
    with get_client(sync_client=True) as client:
        client.pause_deployment(deployment("ingest/pumps").id)
    use(monkeypatch, pumps=replace(pumps, schedule=Schedule(data=data)))
    deploy()
    [change] = [change for change in deploy().changes if change.deployment == "ingest/pumps"]
    assert (change.what, change.details) == ("unchanged", "a person has paused it")
    assert deployment("ingest/pumps").paused
    with get_client(sync_client=True) as client:
        client.resume_deployment(deployment("ingest/pumps").id)


def test_a_contract_that_can_not_be_loaded_is_told_and_its_deployments_are_left(monkeypatch):
    def broken(model):
        if model == "flights":
            raise ContractError("contracts.flights can't be imported: SyntaxError: line 3")
        return load_contract(model)

    told()
    monkeypatch.setattr("flows.orchestration.deploying.load_contract", broken)
    done = deploy()
    assert done.faults == ["contracts.flights can't be imported: SyntaxError: line 3"]
    assert not deployment("train/flights").paused and not deployment("train/pumps").paused
    # The reconciler goes on to tell of it.
    assert {*deployment("reconcile/reconcile").parameters["names"]} == {*known_models()}


def test_a_server_with_hundreds_of_flows_of_others():
    with get_client(sync_client=True) as client:
        for number in range(205):
            client.create_flow_from_name(f"other-{number}")
    assert {*told().values()} <= {"unchanged", "changed"}
    assert {*told().values()} == {"unchanged"}


def reconciling() -> list[FlowRun]:
    """The reconciler's runs that an automation started."""
    reconciler = deployment("reconcile/reconcile").id
    with get_client(sync_client=True) as client:
        return [run for run in client.read_flow_runs(limit=200) if run.deployment_id == reconciler
                and run.created_by and run.created_by.type == "AUTOMATION"]


def test_a_granted_retraining_that_no_run_begins_has_the_reconciler_look():
    before = len(reconciling())
    for model in ("pumps", "flights"):
        limits = replace(pumps.training, start_within=SHORT)
        set_automation(reconcile_if_not_started(replace(load_contract(model), training=limits),
                                                deployment("reconcile/reconcile").id))
        emit_event(RETRAIN, resource_of(model), payload={"model": model})
    time.sleep(1)
    emit_event(STARTED, resource_of("flights"), payload={"model": "flights"})
    new = until(lambda: reconciling()[:-before or None], 60)
    time.sleep(15)
    assert len(new) == 1 and len(reconciling()) == before + 1
    assert "did not start: pumps" in new[0].created_by.display_value


@pytest.mark.timeout(300)
def test_a_pool_without_a_worker_is_told_once_and_its_end_once_wherever_alerts_go(posts):
    """A worker's heartbeats are what the server knows of it."""
    to_pagerduty("a key", os.environ[ALERT_WEBHOOK])
    for automation in (page_if_no_worker(SHORT), tell_of_worker()):
        set_automation(automation)

    def told() -> list[tuple[str, str]]:
        return ([(post["kind"], post["state"]) for post in posts if post.get("kind") == "no worker"]
                + [(post["dedup_key"], post["event_action"]) for post in posts if "dedup_key" in post])

    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat(POOL, "a worker", heartbeat_interval_seconds=1)
        until(lambda: client.read_work_pool(POOL).status == "READY", 10)
        assert until(lambda: len(told()) == 2, 120)
        raised = [("all models no worker ", "trigger"), ("no worker", "raised")]
        assert sorted(told()) == raised
        run_deployment("reconcile/reconcile", timeout=0)
        time.sleep(20)
        assert sorted(told()) == raised  # once, whatever waits
        client.send_worker_heartbeat(POOL, "a worker")
        assert until(lambda: len(told()) == 4, 30)
    assert sorted(told()) == sorted([*raised, ("all models no worker ", "resolve"), ("no worker", "over")])
    [post, *_] = [post for post in posts if post.get("kind") == "no worker"]
    assert "has had no worker for 0:00:10" in post["what"] and "perennial doctor" in post["doing"]


def test_a_run_whose_worker_died_before_it_began_is_given_up_and_the_reconciler_comes(monkeypatch):
    monkeypatch.setattr("flows.orchestration.automations.BEGINS_WITHIN", SHORT)
    set_automation(crashed_before_it_began())
    taken, begun = (run_deployment(name, timeout=0, as_subflow=False)
                    for name in ("ingest/pumps", "train/pumps"))
    with get_client(sync_client=True) as client:
        before = len(reconciling())
        for run in (begun, taken):
            client.set_flow_run_state(run.id, Pending(name="Submitting"))
        emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{begun.id}"})
        assert until(lambda: client.read_flow_run(taken.id).state.is_crashed(), 60)
        assert "it did not begin within 0:00:10" in client.read_flow_run(taken.id).state.message
        assert until(lambda: len(reconciling()) > before, 30)
        # Of this one the Running was lost, a heartbeat came.
        assert client.read_flow_run(begun.id).state.is_pending()


def test_a_step_that_fails_by_the_network_is_run_again_and_another_is_not():
    attempts = []

    @task(**RETRIED | {"retry_delay_seconds": 0, "retry_jitter_factor": None})
    def step(error):
        attempts.append(error)
        if len(attempts) < 3:
            raise error
        return "done"

    @flow
    def steps(error):
        return step(error)

    assert steps(Unavailable("the store")) == "done" and len(attempts) == 3
    attempts.clear()
    with pytest.raises(ValueError, match="wrong"):
        steps(ValueError("wrong"))
    assert len(attempts) == 1
