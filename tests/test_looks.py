"""Looks for data: when one is overdue, and that one which found nothing was one all the same."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from contracts.core.errors import CheckFailed, NotFound, SourceFailed
from contracts.core.policies import Schedule
from contracts.pumps import readings
from flows.ingest import ingest_batch
from flows.orchestration.recurrence import is_look_overdue
from registry.clock import set_clock
from registry.context import ModelContext, open_model
from registry.looks import looked_until, record_look
from registry.settings import CLOCK
from tests.conftest import PUMPS
from tests.test_registry import moto, s3, store  # noqa: F401  fixtures

START, DAILY = datetime(2024, 1, 1), "0 13 * * *"
LAST = START + timedelta(days=3)  # of the source's rows


@pytest.fixture
def context(addresses, monkeypatch) -> ModelContext:
    """The pumps, looked for at 13:00, whose source has rows of three days; the test sets the clock."""
    monkeypatch.setenv(CLOCK, str(addresses / "clock"))
    return scheduled(DAILY, until_last)


def until_last(start: datetime, end: datetime) -> pd.DataFrame:
    return readings(start, max(start, min(end, LAST)))


def scheduled(when: str | timedelta | None, source, since: datetime | None = START) -> ModelContext:
    opened = open_model(PUMPS)
    return replace(opened, contract=replace(opened.contract, source=source,
                                            schedule=Schedule(data=when, since=since)))


def at(day: int, hour: int, minute: int = 0) -> None:
    set_clock(datetime(2024, 1, day, hour, minute, tzinfo=UTC))


def test_a_look_that_finds_nothing_new_is_overdue_at_the_next_scheduled_time_alone(context):
    at(5, 13)
    ingest_batch(context)
    for day in (6, 7):
        at(day, 13, 15)
        assert not is_look_overdue(context)  # its own run may begin yet
        at(day, 13, 16)
        assert is_look_overdue(context)
        assert ingest_batch(context)[1].reasons == ("no new row was found",)
        for hour in (14, 23):
            at(day, hour)
            assert not is_look_overdue(context)


def test_a_look_at_a_source_without_any_row_was_one(context):
    at(5, 14)
    empty = scheduled(DAILY, lambda start, end: readings(start, start))
    with pytest.raises(NotFound, match="gives no row"):
        ingest_batch(empty)
    assert not is_look_overdue(empty)
    at(6, 13, 16)
    assert is_look_overdue(empty)


@pytest.mark.parametrize(("source", "error"), [
    (lambda start, end: {}["x"], SourceFailed),
    (lambda start, end: readings(start, end).assign(vibration=-1.0), CheckFailed)])
def test_a_look_that_fails_is_overdue_still(source, error, context):
    at(5, 14)
    failing = scheduled(DAILY, source)
    with pytest.raises(error):
        ingest_batch(failing)
    assert looked_until(context.store, PUMPS) is None and is_look_overdue(failing)


def test_a_first_look_is_overdue_but_when_the_schedule_may_begin_it(context):
    for hour, minute, is_overdue in ((12, 59, True), (13, 0, False), (13, 14, False), (13, 16, True)):
        at(5, hour, minute)
        assert is_look_overdue(context) == is_overdue
    assert not is_look_overdue(scheduled(DAILY, until_last, since=None))
    assert not is_look_overdue(scheduled(None, until_last))
    assert is_look_overdue(scheduled(timedelta(hours=1), until_last))


def test_what_a_person_ingests_is_no_look(context):
    at(5, 14)
    ingest_batch(context, START, START + timedelta(days=1))
    assert looked_until(context.store, PUMPS) is None and is_look_overdue(context)


def test_a_look_reaches_no_further_back_than_another(store):  # noqa: F811
    for until in (START, LAST, START):
        record_look(store, PUMPS, until)
    assert looked_until(store, PUMPS) == LAST
