"""Alerts about the gate: a champion that breaks its limits, and a gate that can't judge any more."""

from datetime import datetime, timedelta

import pytest

from contracts.core.gate_verdict import GateFigures, GateVerdict
from contracts.core.metrics import Metrics
from contracts.core.verdict import Outcome
from flows.monitoring.alerts import record_alerts, unsent
from flows.monitoring.claims import record_claim_alerts
from flows.monitoring.gate_alerts import champion_limits, record_gate_alerts
from registry.events import WindowJudged
from tests.conftest import PUMPS
from tests.verdicts import gate_verdict, window_verdict, with_champion

WEEKS = [(datetime(2024, 1, 1) + index * timedelta(days=7)).isoformat() for index in range(8)]
BREAKS, STALLED = "champion breaks limits", "gate stalled"


@pytest.fixture
def context(addresses):
    """A model whose version v1 is champion."""
    return with_champion(PUMPS, "v1")


def metrics(rows=200, recall=0.5, log_loss=0.5):
    """The limits of pumps: log loss 0.69, AUC 0.6, calibration error 0.2, recall of stops 0.2, 200 rows."""
    return Metrics(rows=rows, log_loss=log_loss, auc=0.8, calibration_error=0.1, recall={"stops": recall})


def week(context, at, *, version="v1", **figures):
    """The alerts that are raised and over after the monitor has judged this week so."""
    verdict = window_verdict("fine", version=version, metrics=metrics(**figures) if figures else None)
    context.ledger.window_judged(WindowJudged(key=WEEKS[at], verdict=verdict), lambda kept: True)
    record_alerts(context, WEEKS[at], verdict, "fine")
    return told(context)


def gate(context, version, at, outcome="insufficient", against="v1", reason="no labelled row of class stops",
         **champion):
    """The alerts after the gate has judged a challenger on the rows from this week on."""
    figures = GateFigures(challenger=metrics(), champion=metrics(**champion) if champion else None,
                          since=WEEKS[at])
    context.ledger.judged(version, GateVerdict(outcome=Outcome(outcome), figures=figures,
                                               reasons=() if outcome == "passed" else (reason,)), against)
    record_gate_alerts(context)
    return told(context)


def told(context):
    return [(alert.kind, alert.window, alert.ended_by) for alert in context.ledger.state().alerts.values()]


def test_a_champion_that_breaks_a_limit_is_told_once_and_its_end_once(context):
    assert week(context, 0, recall=0.2) == []
    assert week(context, 1, recall=0.19) == [(BREAKS, WEEKS[1], None)]
    [alert] = context.ledger.state().open_alerts
    assert alert.message == "the champion breaks limits of the gate: recall of stops 0.1900 is below 0.2"
    assert alert.version == "v1" and "perennial train pumps" in alert.response
    assert [(message.kind, message.state) for message in unsent(PUMPS, context.ledger.state())] == [
        (BREAKS, "raised")]
    assert week(context, 2, log_loss=0.7) == [(BREAKS, WEEKS[1], None)]  # another limit
    assert week(context, 3, recall=0.2, log_loss=0.69) == [(BREAKS, WEEKS[1], WEEKS[3])]
    length = len(context.ledger.events())
    record_gate_alerts(context)
    record_claim_alerts(context)
    assert len(context.ledger.events()) == length
    assert week(context, 4, recall=0.1)[1:] == [(BREAKS, WEEKS[4], None)]


def test_a_window_with_too_few_labels_tells_nothing_and_ends_nothing(context):
    assert week(context, 0, rows=199, recall=0.0) == []
    assert week(context, 1, rows=200, recall=0.0) == [(BREAKS, WEEKS[1], None)]
    assert week(context, 2) == week(context, 3, rows=199) == [(BREAKS, WEEKS[1], None)]
    assert week(context, 4, rows=200) == [(BREAKS, WEEKS[1], WEEKS[4])]


def test_a_promotion_ends_it_and_the_new_champion_is_judged_by_its_own_windows(context):
    week(context, 1, recall=0.1)
    context.ledger.judged("v2", gate_verdict(), "v1")
    context.ledger.promote("v2", expect="v1")
    assert week(context, 2, recall=0.1) == [(BREAKS, WEEKS[1], WEEKS[1])]  # v1 answered most of it
    assert week(context, 3, version="v2", recall=0.1)[1:] == [(BREAKS, WEEKS[3], None)]


def test_a_window_judged_again_when_more_labels_came_ends_what_it_raised(context):
    assert week(context, 1, recall=0.1) == [(BREAKS, WEEKS[1], None)]
    assert week(context, 1, recall=0.3) == [(BREAKS, WEEKS[1], WEEKS[1])]


def test_the_gates_figures_of_the_champion_are_evidence_too(context):
    assert gate(context, "v2", 1, "failed", recall=0.3) == []
    assert gate(context, "v3", 2, "failed", recall=0.1) == [(BREAKS, WEEKS[2], None)]
    assert gate(context, "v4", 3, "failed", against="v0", recall=0.9) == [(BREAKS, WEEKS[2], None)]
    assert week(context, 1, recall=0.9) == [(BREAKS, WEEKS[2], None)]  # older rows
    assert str(champion_limits(context.contract, context.ledger.state())).startswith("recall of stops 0.1000")
    assert week(context, 3, recall=0.9) == [(BREAKS, WEEKS[2], WEEKS[3])]


def test_before_there_is_evidence_nothing_is_known_of_the_champions_limits(context):
    assert champion_limits(context.contract, context.ledger.state()) is None
    week(context, 0, recall=0.3)
    assert champion_limits(context.contract, context.ledger.state()).broken == []


def test_three_windows_that_the_gate_could_not_judge_are_told_once(context):
    assert gate(context, "v2", 1) == gate(context, "v3", 2) == []
    assert gate(context, "v4", 3) == [(STALLED, WEEKS[3], None)]
    [alert] = context.ledger.state().open_alerts
    assert (alert.since, alert.message) == (WEEKS[1], "no labelled row of class stops")
    assert "3 windows in a row" in alert.response
    assert gate(context, "v5", 4) == [(STALLED, WEEKS[3], None)]
    assert gate(context, "v6", 5, "failed") == [(STALLED, WEEKS[3], WEEKS[3])]
    assert gate(context, "v7", 5) == gate(context, "v8", 6) == [(STALLED, WEEKS[3], WEEKS[3])]
    assert gate(context, "v9", 7)[1:] == [(STALLED, WEEKS[7], None)]


@pytest.mark.parametrize("outcome", ["passed", "failed"])
def test_a_verdict_between_begins_the_count_anew(context, outcome):
    gate(context, "v2", 1)
    gate(context, "v3", 2)
    gate(context, "v4", 3, outcome)
    assert gate(context, "v5", 4) == gate(context, "v6", 5) == []
    assert gate(context, "v7", 6) == [(STALLED, WEEKS[6], None)]


def test_several_challengers_of_one_window_are_one(context):
    for version in ("v2", "v3", "v4", "v5"):
        assert gate(context, version, 1) == []
    assert gate(context, "v6", 2) == []
    assert gate(context, "v7", 3) == [(STALLED, WEEKS[3], None)]


def test_verdicts_without_a_window_count_each(context):
    for version in ("v2", "v3", "v4"):
        context.ledger.judged(version, gate_verdict("insufficient", "too few"), "v1")
    record_gate_alerts(context)
    assert told(context) == [(STALLED, "v4", None)]


def test_a_gate_that_can_not_judge_opens_no_circuit_breaker(context):
    for index, version in enumerate(("v2", "v3", "v4", "v5", "v6"), 1):
        gate(context, version, index)
    assert context.ledger.state().refusals == 0
    assert [alert.kind for alert in context.ledger.state().open_alerts] == [STALLED]
