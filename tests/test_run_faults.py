"""Runs that fail and models that can't be opened, on a real Prefect server: told once, and at their end."""

import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import EndpointConnectionError
from prefect import flow

import contracts
from contracts.core.errors import PerennialError, SourceFailed
from contracts.pumps import contract as pumps
from flows.ingest import ingest, ingest_batch
from flows.monitoring.faults import RunFault, end_fault, raise_fault
from flows.reconcile import reconcile, reconcile_model
from registry import data
from registry.clock import set_clock
from registry.context import open_ledger, open_model
from registry.settings import CLOCK
from tests.conftest import PUMPS

pytestmark = pytest.mark.usefixtures("server")
GOOD = "from dataclasses import replace\nfrom contracts.pumps import contract as pumps\n"


@pytest.fixture(autouse=True)
def clock(addresses, monkeypatch):
    """January 2024, in which there are readings of the pumps."""
    monkeypatch.setenv(CLOCK, str(addresses / "clock"))
    set_clock(datetime(2024, 1, 20, tzinfo=UTC))


@flow
def by_a_parent(model):
    return ingest(model)


@pytest.fixture
def broken_source():
    """Have each source raise, until it is undone."""
    def failing(*_):
        raise SourceFailed("pumps: the source readings failed: KeyError: 'x'; correct it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.ingest.read_source", failing)
        yield patch


def alerts(model) -> list[tuple[str, str, tuple[str, ...]]]:
    """Each alert's kind and state, and those of its states that Prefect has."""
    return [(alert.kind, alert.state, alert.sent) for alert in open_ledger(model).state().alerts.values()]


def test_a_source_that_raises_is_told_once_and_its_end_once(broken_source, posts):
    for _ in range(2):
        with pytest.raises(SourceFailed):
            by_a_parent(PUMPS)
    assert alerts(PUMPS) == [("ingestion failed", "raised", ("raised",))]
    broken_source.undo()
    by_a_parent(PUMPS)
    by_a_parent(PUMPS)
    assert alerts(PUMPS) == [("ingestion failed", "over", ("raised", "over"))]
    time.sleep(3)
    told = [(post["kind"], post["state"]) for post in posts if post["model"] == PUMPS]
    assert told == [("ingestion failed", "raised"), ("ingestion failed", "over")]


def test_a_person_who_starts_a_run_sees_its_fault_and_is_not_paged(broken_source):
    with pytest.raises(SourceFailed):
        ingest(PUMPS)
    assert alerts(PUMPS) == []


def test_a_contract_that_can_not_be_loaded_is_told_once_with_its_line_and_others_go_on(tmp_path, monkeypatch):
    """C16."""
    file = tmp_path / "late.py"
    file.write_text("contract = (\n")
    monkeypatch.setattr(contracts, "__path__", [*contracts.__path__, str(tmp_path)])
    for _ in range(2):
        with pytest.raises(PerennialError, match=r"late.py, line 1"):
            reconcile(["late", PUMPS])
    assert alerts("late") == [("model can't be opened", "raised", ("raised",))]
    assert "ingestion failed" not in str(alerts(PUMPS))
    file.write_text(GOOD + "contract = replace(pumps, name='late', source=None)\n")
    sys.modules.pop("contracts.late", None)
    assert reconcile_model("late")["faults"] == []
    assert alerts("late") == [("model can't be opened", "over", ("raised", "over"))]


def test_a_ledger_that_can_not_be_read_is_told_all_the_same(addresses, posts):
    raise_fault("torn", RunFault.INGEST, "once")
    end_fault("torn", RunFault.INGEST)
    [first, *_] = sorted((addresses / "store").rglob("ledger/torn/*"))
    first.write_text("{")
    for _ in range(2):
        raise_fault("torn", RunFault.OPEN, "its ledger can't be read")
    time.sleep(3)
    opened = [post for post in posts if (post["kind"], post["model"]) == (RunFault.OPEN, "torn")]
    assert len(opened) == 1


def test_a_store_that_does_not_answer_is_told_once_and_its_end_once_and_others_go_on(monkeypatch, posts):
    """The ledger, in which alerts are recorded, is in that store."""
    def unreachable(model):
        if model == "far":
            raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9")
        return open_ledger(model)

    with monkeypatch.context() as patch:
        patch.setattr("flows.monitoring.faults.open_ledger", unreachable)
        patch.setattr("flows.reconcile.open_model", lambda model: unreachable(model) and open_model(model))
        for _ in range(2):
            with pytest.raises(PerennialError, match="far: Could not connect"):
                reconcile(["far", PUMPS])
    assert RunFault.OPEN not in str(alerts(PUMPS))
    end_fault("far", RunFault.OPEN)
    end_fault("far", RunFault.OPEN)
    time.sleep(3)
    told = [(post["kind"], post["state"]) for post in posts if post["model"] == "far"]
    assert told == [(RunFault.OPEN, "raised"), (RunFault.OPEN, "over")]


def test_a_failing_run_of_a_model_that_can_not_be_opened_has_the_fault_of_the_model(monkeypatch):
    monkeypatch.setattr("flows.monitoring.faults.open_model", lambda model: open_ledger("no such").nothing)
    monkeypatch.setattr("flows.ingest.read_source", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        by_a_parent(PUMPS)
    assert alerts(PUMPS) == [("model can't be opened", "raised", ("raised",))]


@pytest.mark.timeout(60, method="thread")  # pytest's other method takes the signal that ends a step
def test_a_source_that_hangs_is_ended_after_the_contracts_time(monkeypatch):
    schedule = replace(pumps.schedule, time_limit=timedelta(seconds=1))
    monkeypatch.setattr("flows.ingest.open_model", lambda model: replace(
        open_model(model), contract=replace(pumps, schedule=schedule)))
    monkeypatch.setattr("flows.ingest.read_source", lambda *_: time.sleep(60))
    begun = time.monotonic()
    with pytest.raises(SourceFailed, match=r"was ended after 0:00:01, the schedule.time_limit"):
        by_a_parent(PUMPS)
    assert time.monotonic() - begun < 30
    assert alerts(PUMPS) == [("ingestion failed", "raised", ("raised",))]


def test_a_version_that_a_killed_run_made_is_announced_by_the_next_look(monkeypatch):
    announced = []
    monkeypatch.setattr("flows.ingest.announce_data", lambda model, version: announced.append(version.digest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.ingest.record_version", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            ingest_batch(open_model(PUMPS))
    made = data.newest(open_model(PUMPS).store, PUMPS)
    assert [ingest(PUMPS)["outcome"] for _ in range(2)] == ["ingested", "nothing new"]
    assert announced == [made.digest]
