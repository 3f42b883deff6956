"""The flow that recalibrates: once for the same labels, resumed after a kill, never beside a retraining."""


import pytest

import flows.recalibrate
import flows.recalibration.due
from flows.ingest import ingest_batch
from flows.orchestration.events import RECALIBRATE
from flows.recalibrate import recalibrate
from flows.recalibration.due import ask_for_recalibration
from flows.reconcile import recalibrate_champion
from registry.context import ModelContext
from tests.test_recalibration import TRAINED, WEEK, claim
from tests.verdicts import gate_verdict


@pytest.fixture
def context(server, january) -> ModelContext:
    """January's model of the flights as champion, and two weeks of labels since."""
    ingest_batch(january, TRAINED, TRAINED + 2 * WEEK)
    return january


@pytest.fixture
def released(context, monkeypatch) -> list[str]:
    """The versions that were released; the gate passes what it is asked about."""
    versions = []

    def release(model, version):
        context.ledger.promote(version, expect=context.ledger.state().champion)
        versions.append(version)
        return {"outcome": "released", "canary": None}

    monkeypatch.setattr(flows.recalibrate, "evaluate_recalibrated", lambda *_: gate_verdict())
    monkeypatch.setattr(flows.recalibrate, "release_flow", release)
    return versions


def test_it_releases_what_passed_once_for_the_same_labels(context, released, monkeypatch):
    emitted = []
    monkeypatch.setattr(flows.recalibration.due, "emit", lambda *given: emitted.append(given))
    ask_for_recalibration("flights")
    ask_for_recalibration("flights")
    [(model, event, key, _), again] = emitted
    assert (model, event) == ("flights", RECALIBRATE) and again[2] == key  # Prefect drops the second

    done = recalibrate("flights")
    assert done == {"outcome": "released", "version": context.ledger.state().champion, "why": []}
    for by_hand in (False, True):
        assert recalibrate("flights", by_hand)["outcome"] == "nothing to do"
    assert released == [done["version"]]
    kinds = [event.kind for event in context.ledger.events()]
    assert kinds[-3:] == ["registered", "judged", "promoted"]
    ask_for_recalibration("flights")
    assert len(emitted) == 2


def test_a_killed_run_goes_on_behind_what_it_had_done(context, released, monkeypatch):
    fits, whole = [], flows.recalibrate.save_recalibrated
    monkeypatch.setattr(flows.recalibrate, "save_recalibrated",
                        lambda *given: fits.append(1) or whole(*given))
    with monkeypatch.context() as patch:
        patch.setattr(flows.recalibrate, "record_recalibrated", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recalibrate("flights")
    assert context.ledger.state().champion not in context.ledger.state().layers
    assert recalibrate("flights")["outcome"] == "released" and fits == [1]


def test_one_that_the_gate_refuses_is_not_released_and_is_over(context, released, monkeypatch):
    monkeypatch.setattr(flows.recalibrate, "evaluate_recalibrated", lambda *_: gate_verdict("failed", "no"))
    done = recalibrate("flights")
    assert (done["outcome"], done["why"], released) == ("failed", ["no"], [])
    assert recalibrate("flights")["outcome"] == "nothing to do"


def test_a_retraining_comes_first(context, released, monkeypatch):
    """Granted before, nothing is done; granted meanwhile, nothing is released until it has ended."""
    whole = flows.recalibrate.record_recalibrated
    with monkeypatch.context() as patch:
        patch.setattr(flows.recalibrate, "record_recalibrated",
                      lambda *given: (whole(*given), claim(context)))
        done = recalibrate("flights")
    assert done["outcome"] == "passed" and "retraining is under way" in done["why"][0] and released == []
    assert recalibrate("flights")["outcome"] == "nothing to do"
    context.ledger.retrain_finished("2013-02-11T00:00:00", "failed", "")
    assert recalibrate("flights")["outcome"] == "released" and released == [done["version"]]


def test_the_reconciler_finds_one_that_nobody_runs(context, released):
    result = {"recalibrated": False}
    recalibrate_champion("flights", result)
    assert result["recalibrated"] and len(released) == 1
    result = {"recalibrated": False}
    recalibrate_champion("flights", result)
    assert not result["recalibrated"] and len(released) == 1
