"""Data that does not come: from when a person is told, what is said, and when it is over."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from contracts.core.policies import Schedule
from flows.ingest import ingest_batch
from flows.monitoring.alerts import unsent
from flows.monitoring.staleness import record_stale_alert, staleness
from registry.clock import set_clock
from registry.context import open_model
from registry.settings import CLOCK
from tests.conftest import PUMPS

START = datetime(2024, 1, 1)
SCHEDULE = Schedule(since=START, stale_after=timedelta(days=2))


@pytest.fixture
def context(addresses, monkeypatch):
    """The pumps, whose labels mature within 12 hours and whose clock the test sets."""
    monkeypatch.setenv(CLOCK, str(addresses / "clock"))
    opened = open_model(PUMPS)
    return replace(opened, contract=replace(opened.contract, schedule=SCHEDULE))


def at(days: float) -> None:
    set_clock((START + timedelta(days=days)).replace(tzinfo=UTC))


def alerts(context) -> list[tuple[str, str]]:
    return [(alert.since[:10], str(alert.state)) for alert in unsent(PUMPS, context.ledger.state())]


def test_a_history_without_one_row_is_told_once_it_is_older_than_allowed(context):
    at(2.4)
    assert staleness(context) is None
    at(2.6)
    said = staleness(context)
    assert said.since == START
    assert said.reason.startswith("not one row since 2024-01-01 00:00:00 was found, 2 days, 14:24:00 ago; "
                                  "2 days, 12:00:00 is allowed")


def test_without_a_start_of_history_nothing_is_stale(context):
    at(30)
    unstated = replace(context.contract, schedule=replace(SCHEDULE, since=None))
    assert staleness(replace(context, contract=unstated)) is None


def test_it_is_told_once_and_ended_once_rows_come(context):
    at(3)
    record_stale_alert(context)
    record_stale_alert(context)
    assert alerts(context) == [("2024-01-01", "raised")]
    ingest_batch(context, START, START + timedelta(days=2))
    assert record_stale_alert(context) is None
    assert alerts(context) == [("2024-01-01", "raised"), ("2024-01-01", "over")]
    at(6)
    assert record_stale_alert(context).reason.startswith("no newer row than that of 2024-01-02 23:")
    assert alerts(context)[2:] == [("2024-01-02", "raised")]


def test_newer_rows_that_are_too_old_as_well_do_not_end_it(context):
    at(9)
    record_stale_alert(context)
    ingest_batch(context, START, START + timedelta(days=2))
    assert record_stale_alert(context).since > START
    assert alerts(context) == [("2024-01-01", "raised")]
