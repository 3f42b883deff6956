"""What the reconciler starts, ends and tells of, on a real Prefect server whose worker is away: the tests say
how each run went."""

from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Completed, Crashed, Running

from contracts.pumps import contract
from flows.orchestration.deploying import deploy
from flows.orchestration.runs import find_run, set_state, waiting_runs
from flows.reconcile import reconcile_model, tell_crashes
from flows.release import TIME_LIMIT
from registry.clock import machine_time, set_clock
from registry.context import open_model
from registry.settings import CLOCK
from tests.conftest import PUMPS

pytestmark = pytest.mark.usefixtures("server")
WINDOW, EARLIER = "2024-02-05T00:00:00", "2024-01-29T00:00:00"  # a window's runs are started once a server


@pytest.fixture(scope="module", autouse=True)
def deployed(server):
    deploy([PUMPS])


@pytest.fixture
def context(addresses, monkeypatch):
    monkeypatch.setenv(CLOCK, str(addresses / "clock"))
    set_clock(datetime(2024, 2, 20, tzinfo=UTC))
    return open_model(PUMPS)


@pytest.fixture(autouse=True)
def no_runs_left():
    yield
    for flow in ("ingest", "train"):
        for run in waiting_runs(f"{flow}/{PUMPS}"):
            set_state(str(run.id), Completed())


def grant(context, window: str) -> None:
    assert context.ledger.claim_retraining(window, now=datetime(2024, 2, 12), reason="heat",
                                           drift=contract.drift, new_rows=1_000).is_granted


def looks() -> list:
    """The runs of ingest/pumps that do not end by themselves, without those of the schedule to come."""
    return [run for run in waiting_runs(f"ingest/{PUMPS}") if run.expected_start_time <= machine_time()]


def pause(name: str, is_paused: bool) -> None:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(name).id
        (client.pause_deployment if is_paused else client.resume_deployment)(deployment)


def test_an_overdue_look_for_data_is_a_run_of_its_own_and_one_is_enough(context):
    assert reconcile_model(PUMPS)["looked"]
    [run] = looks()
    assert run.parameters == {"model": PUMPS}
    assert not reconcile_model(PUMPS)["looked"] and looks() == [run]
    set_state(str(run.id), Running())
    assert not reconcile_model(PUMPS)["looked"]


def test_what_a_person_has_paused_is_not_looked_for(context):
    pause(f"ingest/{PUMPS}", True)
    try:
        assert not reconcile_model(PUMPS)["looked"] and looks() == []
    finally:
        pause(f"ingest/{PUMPS}", False)


def test_runs_that_die_before_the_ledger_knows_of_them_count_and_the_training_is_given_up(context):
    grant(context, WINDOW)
    for failures in range(contract.training.attempts):
        assert context.ledger.state().claims[WINDOW].failures == failures
        [run] = reconcile_model(PUMPS)["trainings"]
        set_state(run, Crashed(message="killed for memory"))
        assert reconcile_model(PUMPS)["trainings"] == []  # it learns of it
    claim = context.ledger.state().claims[WINDOW]
    assert claim.outcome == "gave up" and "Crashed: killed for memory" in claim.why
    assert "training failed" in [alert.kind for alert in context.ledger.state().open_alerts]


def test_a_training_that_never_ends_is_cancelled_and_counts_once_it_is_dead(context, monkeypatch):
    grant(context, EARLIER)
    [run] = reconcile_model(PUMPS)["trainings"]
    set_state(run, Running())
    assert context.ledger.start_retraining(EARLIER, run, lambda _: False)
    late = machine_time() + contract.training.time + TIME_LIMIT
    monkeypatch.setattr("flows.reconcile.machine_time", lambda: late - timedelta(minutes=1))
    reconcile_model(PUMPS)
    assert find_run(run).state.is_running()
    monkeypatch.setattr("flows.reconcile.machine_time", lambda: late + timedelta(minutes=1))
    reconcile_model(PUMPS)
    assert find_run(run).state.is_cancelling() and context.ledger.state().claims[EARLIER].failures == 0
    reconcile_model(PUMPS)
    assert find_run(run).state.is_crashed() and context.ledger.state().claims[EARLIER].failures == 1


def test_two_killed_runs_in_a_row_are_told_once_and_one_is_not(context):
    told = []
    for _ in range(3):
        reconcile_model(PUMPS)
        [run] = looks()
        set_state(str(run.id), Running())
        set_state(str(run.id), Crashed(message="no heartbeat"))
        tell_crashes(PUMPS, {})
        told.append([alert.message for alert in context.ledger.state().open_alerts
                     if alert.kind == "ingestion failed"])
    assert told == [[], ["the last two runs were killed, the last: Crashed: no heartbeat"], *told[1:2]]
