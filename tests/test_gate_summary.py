"""What is said of the gate in `perennial status`, in the history, and on a run's page in Prefect."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from contracts.core.gate import gate
from contracts.pumps import contract as pumps
from flows.cli import app
from flows.reporting import artifacts
from flows.reporting.gate_summary import not_run
from flows.reporting.overview import overview
from flows.reporting.status import events
from registry.events import WindowJudged
from tests.conftest import PUMPS
from tests.test_gate import BETTER, CHAMPION, FINE, LABELS, START, answers
from tests.verdicts import window_verdict, with_champion

SOUND = answers(LABELS, 1.0, sure=0.85, unsure=0.5, otherwise=0.15)
FORGIVEN = "recall of stops 0.1600 is below 0.2, as is the champion's 0.0400: forgiven"


def judged(challenger=BETTER, champion=CHAMPION, labels=LABELS):
    return gate(pumps, labels, challenger, champion, {}, since=START, **FINE)


@pytest.fixture
def context(addresses):
    """A model whose version "one" is champion."""
    return with_champion(PUMPS, "one")


def words(*command):
    """What a command says, without its table's borders: where lines break depends on the terminal."""
    answer = CliRunner().invoke(app, [*command])
    assert answer.exit_code == 0, answer.output
    return " ".join(answer.output.replace("│", " ").split())


def status():
    return json.loads(CliRunner().invoke(app, ["status", PUMPS, "--json"]).output), words("status", PUMPS)


def last_event(context):
    length = context.ledger.length
    return events(context.ledger, length - 1, length)[0]["about"]


def test_checks_that_were_not_run_are_told_with_their_cause_once():
    first = gate(pumps, LABELS, SOUND, None, {}, **FINE)
    assert first.passed and not_run(first) == ["not run: better than the champion (no champion yet)"]
    few = judged(labels=LABELS[:100], challenger=BETTER[:100], champion=CHAMPION[:100])
    assert few.reasons == ("100 labelled rows, at least 200 are needed",)
    assert not_run(few) == ["not run: log loss, AUC, calibration error, recall of stops, better than the "
                            "champion"]


def test_what_is_forgiven_is_in_the_history_and_the_status(context):
    verdict = judged()
    assert verdict.passed and FORGIVEN in verdict.reasons[1]
    context.ledger.judged("two", verdict, "one")
    assert FORGIVEN in last_event(context)
    facts, shown = status()
    assert facts["last_gate"]["verdict"]["figures"]["broken_by_both"][0]["forgiven"] is True
    assert "two: passed; checks: 10 passed" in shown and FORGIVEN in shown
    assert "breaks: " in facts["limits"] and facts["champion_limits"]["broken"] == [
        {"name": "log loss", "value": pytest.approx(1.227, abs=1e-3), "limit": 0.69},
        {"name": "AUC", "value": pytest.approx(0.04), "limit": 0.6},
        {"name": "calibration error", "value": pytest.approx(0.54), "limit": 0.2},
        {"name": "recall of stops", "value": 0.04, "limit": 0.2}]
    context.ledger.promote("two", expect="one")
    assert FORGIVEN in status()[0]["limits"].removeprefix("the champion took over with: ")


def test_status_says_whether_the_champion_keeps_the_limits(context):
    assert status()[0]["limits"] == "not known: 200 labels of the champion's answers are needed"
    for start, model, said in (("2024-01-01", SOUND, "keeps all limits of the gate"),
                               ("2024-01-08", CHAMPION, "breaks: log loss 1.2270 is above 0.69; AUC")):
        metrics = judged(model, None).figures.challenger
        context.ledger.window_judged(WindowJudged(key=f"{start}T00:00:00", verdict=window_verdict(
            "fine", version="one", metrics=metrics)), lambda kept: True)
        assert f"on the rows from {start}T00:00:00 on the champion {said}" in status()[0]["limits"]
    [row] = overview([PUMPS])
    assert row["broken_limits"][0] == "log loss 1.2270 is above 0.69" and len(row["broken_limits"]) == 4
    assert "breaks a limit: log loss 1.2270" in words("status")


def test_status_says_what_the_gate_waits_for(context):
    verdict = judged(labels=np.zeros(2_000, int))
    context.ledger.judged("two", verdict, "one")
    [row] = overview([PUMPS])
    assert [wait for wait in row["waits"] if wait.startswith("gate, of two: no labelled row of class stops")]
    assert "not run: log loss, AUC" in last_event(context)
    context.ledger.judged("three", judged(), "one")
    assert not [wait for wait in overview([PUMPS])[0]["waits"] if wait.startswith("gate")]


def test_the_gates_page_has_every_check(monkeypatch):
    shown = []
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda text, key: shown.append(text))
    artifacts.show_gate(PUMPS, "two", judged())
    artifacts.show_gate(PUMPS, "one", gate(pumps, LABELS, BETTER, None, {}, **FINE))
    artifacts.show_gate(PUMPS, "three", judged(labels=LABELS[:9], challenger=BETTER[:9], champion=None))
    assert f"| recall of stops | ✅ passed | {FORGIVEN}" in shown[0] and f"- {FORGIVEN}" in shown[0]
    assert "| better than the champion | ❔ not run | no champion yet |" in shown[1]
    assert "| recall of stops | ❌ failed | recall of stops 0.1600 is below 0.2 |" in shown[1]
    assert "| log loss | ❔ not run | 9 labelled rows, at least 200 are needed |" in shown[2]
