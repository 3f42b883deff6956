"""Alerts: one a cause and one when it is over, whatever comes twice, late or never."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from contracts.core.errors import PerennialError, Unavailable
from contracts.core.verdict import Verdict
from contracts.pumps import contract
from flows.monitoring.alerts import Alert, event_of, record_alerts, sent, update_alerts
from flows.monitoring.notifications import to_webhook
from flows.reporting.status import facts, table
from registry.context import open_model
from tests.conftest import PUMPS

WEEKS = [(datetime(2024, 1, 1) + index * timedelta(days=7)).isoformat() for index in range(8)]
DRIFT, BROKEN, STALE, FINE, FEW = "input drift", "broken contract", "stale", "fine", "insufficient"
ACTIONS = {DRIFT: "retrain", BROKEN: "page", STALE: "page", FINE: "fine", FEW: "insufficient"}


@pytest.fixture
def memory(addresses):
    return open_model(PUMPS)


def verdict_of(kind, *besides, **figures):
    checks = {"heat": {"values": {"effect": 0.3, "floor": 0.1, "chance": 0.0, "drifted": True}}} if kind == DRIFT else {}
    return Verdict("drift", {FINE: "passed", FEW: "insufficient"}.get(kind, "failed"), () if kind == FINE else (f"why {kind}",), kind=kind,
                   figures={"checks": checks, "version": "v1", "kinds": [kind, *besides], **figures})


def week(memory, at, kind, *besides, action=None, **figures):
    """The alerts to send after this week was judged so; whoever asks gets them, and Prefect is taken to have them."""
    verdict = verdict_of(kind, *besides, **figures)
    memory.ledger.window_judged(WEEKS[at], verdict, {}, again=lambda held: held.kind in (FEW, STALE))
    return sending(memory, record_alerts(memory, WEEKS[at], verdict.as_json(), action or ACTIONS[kind]))


def sending(memory, alerts):
    for alert in alerts:
        memory.ledger.decide(lambda state, alert=alert: sent(state, alert))
    return [(alert.kind, alert.state) for alert in alerts]


def test_a_cause_is_told_once_and_its_end_once(memory):
    assert week(memory, 0, FINE) == []
    assert week(memory, 1, DRIFT) == [(DRIFT, "raised")]
    assert week(memory, 1, DRIFT) == week(memory, 2, DRIFT, action="wait") == []
    assert week(memory, 3, FINE) == [(DRIFT, "over")]
    assert week(memory, 3, FINE) == week(memory, 1, DRIFT) == week(memory, 4, FINE) == []
    assert week(memory, 5, DRIFT) == [(DRIFT, "raised")]  # a new cause
    kinds = [event.kind for event in memory.ledger.events()]
    assert (kinds.count("alert_raised"), kinds.count("alert_over"), kinds.count("alert_sent")) == (2, 1, 3)


def test_an_alert_says_what_how_much_since_when_of_which_version_and_what_is_done(memory):
    verdict = verdict_of(DRIFT, since=WEEKS[0]).as_json()
    [alert] = record_alerts(memory, WEEKS[1], verdict, "retrain")
    assert alert == Alert("pumps", DRIFT, "raised", "why input drift", {"heat": 3.0}, WEEKS[0], WEEKS[1], "v1", "a retraining was started")
    event = event_of(alert)
    assert (event.event, event.id, event.payload["id"]) == ("perennial.alert.raised", alert.id, str(alert.id))
    assert replace(alert, state="over").id != alert.id == replace(alert, what="said otherwise").id


@pytest.mark.parametrize(("kind", "action", "raises"), [
    (BROKEN, "page", True), (DRIFT, "retrain", True), (DRIFT, "wait", True), ("any other kind", "page", True),
    (DRIFT, "watch", False), (DRIFT, "noted", False), (FEW, "insufficient", False), (FINE, "fine", False)])
def test_only_what_asks_for_a_person_or_a_retraining_is_told(memory, kind, action, raises):
    assert week(memory, 0, kind, action=action) == ([(kind, "raised")] if raises else [])


def test_what_tells_nothing_ends_nothing(memory):
    week(memory, 2, BROKEN)
    assert week(memory, 3, FEW) == []  # an insufficient window
    assert week(memory, 1, FINE) == []  # an older one
    assert week(memory, 4, "noted kind", BROKEN, action="noted") == []  # a graver finding in front of it
    assert week(memory, 5, DRIFT, action="watch") == [(BROKEN, "over")]


def test_one_kind_in_place_of_another_is_told_with_the_end_of_the_first(memory):
    week(memory, 0, BROKEN)
    assert week(memory, 1, DRIFT) == [(BROKEN, "over"), (DRIFT, "raised")]


def test_a_window_judged_again_when_its_labels_came_ends_what_it_raised(memory):
    assert week(memory, 0, STALE) == [(STALE, "raised")]
    assert week(memory, 0, FINE) == [(STALE, "over")]
    assert week(memory, 0, STALE) == []


def test_late_news_is_told_and_ends_with_what_came_after(memory):
    week(memory, 3, FINE)
    assert week(memory, 2, BROKEN) == [(BROKEN, "raised"), (BROKEN, "over")]
    assert week(memory, 1, BROKEN) == []  # the same kind, told of since


def test_what_died_unsent_is_sent_by_the_next_run_of_any_window(memory):
    for _ in range(2):
        [alert] = record_alerts(memory, WEEKS[0], verdict_of(BROKEN).as_json(), "page")
    assert alert.state == "raised"
    again = record_alerts(memory, WEEKS[1], verdict_of(FEW).as_json(), "insufficient")
    assert [one.id for one in again] == [alert.id]
    assert sending(memory, again) == [(BROKEN, "raised")]
    assert record_alerts(memory, WEEKS[0], verdict_of(BROKEN).as_json(), "page") == []


@pytest.mark.parametrize("seed", range(20))
def test_any_order_and_any_number_of_times_tells_no_cause_twice(memory, seed):
    """Windows of one kind in a row are one cause; what a window says never changes, and each is told of up to three times."""
    kinds = [random.Random(seed).choice([DRIFT, FINE, FEW, BROKEN]) for _ in WEEKS]
    order = [at for at in range(len(WEEKS)) for _ in range(3)]
    random.Random(seed).shuffle(order)
    said = [one for at in order for one in week(memory, at, kinds[at])]
    for kind in (DRIFT, BROKEN):
        raised, over = said.count((kind, "raised")), said.count((kind, "over"))
        answered = [one for one in kinds if one != FEW]
        causes = sum(one == kind and before != kind for before, one in zip([None, *answered], answered))
        assert raised <= causes and raised - over == (answered[-1:] == [kind]) and (raised > 0) == (causes > 0)


def test_of_many_who_tell_at_once_one_raises_and_all_may_send(memory):
    """Whoever sends sends under one id."""
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda _: record_alerts(open_model(PUMPS), WEEKS[0], verdict_of(BROKEN).as_json(), "page"), range(8)))
    assert len({alert.id for alerts in given for alert in alerts}) == 1 and all(given)
    assert [event.kind for event in memory.ledger.events()] == ["alert_raised"]


def test_an_open_circuit_breaker_is_a_cause_of_its_own_until_a_promotion(memory):
    ledger, policy = memory.ledger, replace(contract.drift, refusals=1)
    for at in (0, 1):
        ledger.claim_retraining(WEEKS[at], now=datetime.fromisoformat(WEEKS[at]), reason="drift", drift=policy, fresh=1_000)
        ledger.retrain_finished(WEEKS[at], "refused", {})
    assert week(memory, 0, DRIFT) == [(DRIFT, "raised")]
    assert week(memory, 1, DRIFT, action="page") == [("circuit breaker", "raised")]
    [_, breaker] = ledger.state().open_alerts
    assert "1 challengers in a row were refused" in breaker["doing"] and "why input drift" in breaker["what"]
    assert week(memory, 2, FINE) == [(DRIFT, "over")]
    ledger.judged("v2", Verdict("gate", "passed"), None, {})
    ledger.promote("v2", expect=None)
    assert week(memory, 3, FINE) == [("circuit breaker", "over")]


def test_a_wait_says_until_when(memory):
    for at in (0, 1):
        memory.ledger.claim_retraining(WEEKS[at], now=datetime.fromisoformat(WEEKS[at]), reason="drift", drift=contract.drift, fresh=1_000)
        memory.ledger.retrain_finished(WEEKS[at], "passed", {})
    [alert] = record_alerts(memory, WEEKS[1], verdict_of(DRIFT).as_json(), "wait")
    assert alert.doing.startswith("no retraining starts yet: cooldown until 2024-01")


def test_status_shows_open_alerts(memory):
    week(memory, 0, BROKEN)
    found = facts(PUMPS)
    assert [one["kind"] for one in found["open_alerts"]] == [BROKEN]
    cells = [cell for column in table(found).columns for cell in column.cells]
    assert any(cell.startswith(f"broken contract since {WEEKS[0]}: nothing retrains: look at") for cell in cells)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(PerennialError, match=r"PERENNIAL_ALERT_WEBHOOK is 'hooks.example.org'.*begins with https://"):
        to_webhook("hooks.example.org")


def test_an_alert_that_prefect_did_not_take_stays_to_be_sent(memory):
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(Unavailable, match="next monitor or reconcile"):
        update_alerts(memory, WEEKS[0], verdict_of(BROKEN).as_json(), "page")
    [alert] = record_alerts(memory, WEEKS[1], verdict_of(FEW).as_json(), "insufficient")
    assert (alert.kind, alert.state) == (BROKEN, "raised")
