"""Alerts: one a cause and one when it is over, whatever comes twice, late or never."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from msgspec import structs
from prefect.settings import PREFECT_API_URL, temporary_settings

from contracts.core.errors import PerennialError, Unavailable
from contracts.core.verdict import Action, ColumnCheck
from contracts.pumps import contract
from flows.monitoring.alerts import (
    AlertMessage,
    confirmation,
    event_of,
    record_alerts,
    unsent,
    update_alerts,
    update_claim_alerts,
)
from flows.monitoring.claims import record_claim_alerts
from flows.monitoring.notifications import to_webhook
from flows.reporting.status import facts, table
from registry.context import open_model
from registry.events import WindowJudged
from tests.conftest import PUMPS
from tests.verdicts import gate_verdict, window_verdict

WEEKS = [(datetime(2024, 1, 1) + index * timedelta(days=7)).isoformat() for index in range(8)]
DRIFT, BROKEN, STALE, FINE, FEW = "input drift", "broken contract", "stale", "fine", "insufficient"
ACTIONS = {DRIFT: "retrain", BROKEN: "page", STALE: "page", FINE: "fine", FEW: "insufficient"}


@pytest.fixture
def context(addresses):
    return open_model(PUMPS)


def verdict_of(kind, *besides, **figures):
    check = ColumnCheck(effect=0.3, threshold=0.1, p_value=0.0, drifted=True)
    checks = {"heat": {"values": check}} if kind == DRIFT else {}
    reasons = () if kind == FINE else (f"why {kind}",)
    return window_verdict(kind, *reasons, checks=checks, version="v1", kinds=[kind, *besides], **figures)


def week(context, at, kind, *besides, action=None, **figures):
    """The alerts to send after this week was judged so; whoever
    asks gets them, and Prefect is taken to have them."""
    verdict = verdict_of(kind, *besides, **figures)
    context.ledger.window_judged(WindowJudged(key=WEEKS[at], verdict=verdict),
                                 lambda kept: kept.kind in (FEW, STALE))
    return sending(context, record_alerts(context, WEEKS[at], verdict, Action(action or ACTIONS[kind])))


def sending(context, alerts):
    for alert in alerts:
        context.ledger.decide(lambda state, alert=alert: confirmation(state, alert))
    return [(alert.kind, alert.state) for alert in alerts]


def test_a_cause_is_told_once_and_its_end_once(context):
    assert week(context, 0, FINE) == []
    assert week(context, 1, DRIFT) == [(DRIFT, "raised")]
    assert week(context, 1, DRIFT) == week(context, 2, DRIFT, action="wait") == []
    assert week(context, 3, FINE) == [(DRIFT, "over")]
    assert week(context, 3, FINE) == week(context, 1, DRIFT) == week(context, 4, FINE) == []
    assert week(context, 5, DRIFT) == [(DRIFT, "raised")]  # a new cause
    kinds = [event.kind for event in context.ledger.events()]
    assert (kinds.count("alert_raised"), kinds.count("alert_over"), kinds.count("alert_sent")) == (2, 1, 3)


def test_an_alert_says_what_how_much_since_when_of_which_version_and_what_is_done(context):
    verdict = verdict_of(DRIFT, since=WEEKS[0])
    [alert] = record_alerts(context, WEEKS[1], verdict, Action.RETRAIN)
    assert (alert
            == AlertMessage(model="pumps", kind=DRIFT, state="raised", message="why input drift",
                            drift_scores={"heat": 3.0}, since=WEEKS[0], window=WEEKS[1], version="v1",
                            response="a retraining was started"))
    event = event_of(alert)
    assert (event.event, event.id, event.payload["id"]) == ("perennial.alert.raised", alert.id, str(alert.id))
    assert (structs.replace(alert, state="over").id != alert.id
            == structs.replace(alert, message="said otherwise").id)


@pytest.mark.parametrize(("kind", "action", "raises"), [
    (BROKEN, "page", True), (DRIFT, "retrain", True), (DRIFT, "wait", True), (STALE, "page", True),
    (DRIFT, "watch", False), (DRIFT, "noted", False), (FEW, "insufficient", False), (FINE, "fine", False)])
def test_only_what_asks_for_a_person_or_a_retraining_is_told(context, kind, action, raises):
    assert week(context, 0, kind, action=action) == ([(kind, "raised")] if raises else [])


def test_what_tells_nothing_ends_nothing(context):
    week(context, 2, BROKEN)
    assert week(context, 3, FEW) == []  # an insufficient window
    assert week(context, 1, FINE) == []  # an older one
    # A graver finding in front of it.
    assert week(context, 4, "worse on labels", BROKEN, action="noted") == []
    assert week(context, 5, DRIFT, action="watch") == [(BROKEN, "over")]


def test_one_kind_in_place_of_another_is_told_with_the_end_of_the_first(context):
    week(context, 0, BROKEN)
    assert week(context, 1, DRIFT) == [(BROKEN, "over"), (DRIFT, "raised")]


def test_a_window_judged_again_when_its_labels_came_ends_what_it_raised(context):
    assert week(context, 0, STALE) == [(STALE, "raised")]
    assert week(context, 0, FINE) == [(STALE, "over")]
    assert week(context, 0, STALE) == []


def test_late_news_is_told_and_ends_with_what_came_after(context):
    week(context, 3, FINE)
    assert week(context, 2, BROKEN) == [(BROKEN, "raised"), (BROKEN, "over")]
    assert week(context, 1, BROKEN) == []  # the same kind, told of since


def test_what_died_unsent_is_sent_by_the_next_run_of_any_window(context):
    for _ in range(2):
        [alert] = record_alerts(context, WEEKS[0], verdict_of(BROKEN), Action.PAGE)
    assert alert.state == "raised"
    again = record_alerts(context, WEEKS[1], verdict_of(FEW), Action.INSUFFICIENT)
    assert [one.id for one in again] == [alert.id]
    assert sending(context, again) == [(BROKEN, "raised")]
    assert record_alerts(context, WEEKS[0], verdict_of(BROKEN), Action.PAGE) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_order_and_any_number_of_times_tells_no_cause_twice(context, seed):
    """Windows of one kind in a row are one cause; what a window
    says never changes, and each is told of up to three times."""
    kinds = [random.Random(seed).choice([DRIFT, FINE, FEW, BROKEN]) for _ in WEEKS]
    order = [at for at in range(len(WEEKS)) for _ in range(3)]
    random.Random(seed).shuffle(order)
    said = [one for at in order for one in week(context, at, kinds[at])]
    for kind in (DRIFT, BROKEN):
        raised, over = said.count((kind, "raised")), said.count((kind, "over"))
        answered = [one for one in kinds if one != FEW]
        causes = sum(one == kind and before != kind for before, one in zip([None, *answered], answered))
        assert (raised <= causes and raised - over == (answered[-1:] == [kind])
                and (raised > 0) == (causes > 0))


def test_of_many_who_tell_at_once_one_raises_and_all_may_send(context):
    """Whoever sends sends under one id."""
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda _: record_alerts(open_model(PUMPS), WEEKS[0], verdict_of(BROKEN),
                                                      Action.PAGE), range(8)))
    assert len({alert.id for alerts in given for alert in alerts}) == 1 and all(given)
    assert [event.kind for event in context.ledger.events()] == ["alert_raised"]


def test_an_open_circuit_breaker_is_a_cause_of_its_own_until_a_promotion(context):
    ledger, policy = context.ledger, replace(contract.drift, refusals=1)
    for at in (0, 1):
        ledger.claim_retraining(WEEKS[at], now=datetime.fromisoformat(WEEKS[at]), reason="drift",
                                drift=policy, new_rows=1_000)
        ledger.retrain_finished(WEEKS[at], "refused", "v2")
    assert week(context, 0, DRIFT) == [(DRIFT, "raised")]
    assert week(context, 1, DRIFT, action="page") == [("circuit breaker", "raised")]
    [_, breaker] = ledger.state().open_alerts
    assert "1 challengers in a row were refused" in breaker.response and "why input drift" in breaker.message
    assert week(context, 2, FINE) == [(DRIFT, "over")]
    ledger.judged("v2", gate_verdict(), None)
    ledger.promote("v2", expect=None)
    assert week(context, 3, FINE) == [("circuit breaker", "over")]


def test_first_trainings_that_are_refused_again_and_again_are_told_once_until_one_is_promoted(context):
    policy = contract.drift
    for at in range(policy.refusals):
        assert sending(context, unsent_claim_alerts(context)) == []
        assert context.ledger.claim_first_training(WEEKS[at], now=datetime.fromisoformat(WEEKS[at]),
                                                   reason="no version serves yet", drift=policy)
        context.ledger.retrain_finished(WEEKS[at], "refused", "v1")
    [told] = unsent_claim_alerts(context)
    assert told.kind == "circuit breaker" and told.message.startswith(f"{policy.refusals} trainings in a row")
    assert "perennial train pumps" in told.response
    assert sending(context, [told]) == [("circuit breaker", "raised")]
    assert unsent_claim_alerts(context) == []
    context.ledger.judged("v1", gate_verdict(), None)
    context.ledger.promote("v1", expect=None)
    with pytest.raises(Unavailable), temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        update_claim_alerts(context)
    assert [(alert.kind, alert.state) for alert in unsent("pumps", context.ledger.state())] == [
        ("circuit breaker", "over")]


def unsent_claim_alerts(context) -> list[AlertMessage]:
    record_claim_alerts(context)
    return unsent("pumps", context.ledger.state())


def test_a_wait_says_until_when(context):
    for at in (0, 1):
        context.ledger.claim_retraining(WEEKS[at], now=datetime.fromisoformat(WEEKS[at]), reason="drift",
                                        drift=contract.drift, new_rows=1_000)
        context.ledger.retrain_finished(WEEKS[at], "passed", "v2")
    [alert] = record_alerts(context, WEEKS[1], verdict_of(DRIFT), Action.WAIT)
    assert alert.response.startswith("no retraining starts yet: cooldown until 2024-01")


def test_status_shows_open_alerts(context):
    week(context, 0, BROKEN)
    found = facts(PUMPS)
    assert [one["kind"] for one in found["open_alerts"]] == [BROKEN]
    cells = [cell for column in table(found).columns for cell in column.cells]
    assert (any(cell.startswith(f"broken contract since {WEEKS[0]}: nothing retrains: look at")
                for cell in cells))


def test_an_address_that_is_none_is_refused():
    with pytest.raises(PerennialError,
                       match=r"PERENNIAL_ALERT_WEBHOOK is 'hooks.example.org'.*begins with https://"):
        to_webhook("hooks.example.org")


def test_an_alert_that_prefect_did_not_take_stays_to_be_sent(context):
    with temporary_settings(
            {PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(Unavailable,
                                                                        match="next monitor or reconcile"):
        update_alerts(context, WEEKS[0], verdict_of(BROKEN), Action.PAGE)
    [alert] = record_alerts(context, WEEKS[1], verdict_of(FEW), Action.INSUFFICIENT)
    assert (alert.kind, alert.state) == (BROKEN, "raised")
