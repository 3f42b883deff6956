"""Recalibration: the layer that labels ask for, a version like any other, and when it is due."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
from msgspec import structs

from contracts.core.calibration import Calibration
from contracts.core.classification import is_output, row_losses
from contracts.core.errors import Conflict, ContractError
from contracts.core.policies import Recalibration
from contracts.core.recalibration import LabelledAnswers, cross_fitted, fit_layer, is_due
from contracts.core.reference import decode_references
from contracts.core.retraining import Claim
from contracts.core.verdict import Outcome
from contracts.flights import contract as flights
from contracts.flights import source
from flows.ingest import ingest_batch
from flows.recalibration.due import DueRecalibration, NotDue, due_recalibration
from flows.recalibration.evidence import labelled_answers
from flows.recalibration.judging import evaluate_recalibrated, record_recalibrated
from flows.recalibration.version import register_recalibrated, save_recalibrated
from flows.training.judging import calibrated_before, champion_probabilities
from registry import data, models
from registry.context import ModelContext, fetch_version
from registry.events import Registered
from registry.traffic import ship
from service.model import load_model
from tests.test_outcomes import answer
from tests.verdicts import gate_verdict

WEEK, TRAINED = timedelta(days=7), datetime(2013, 2, 1)
POLICY = flights.recalibration
NOON = datetime(2013, 3, 1)


# What follows from labelled answers.

def answers_of(days: int, per_day: int = 400, bias: float = 0.5, seed: int = 0) -> LabelledAnswers:
    """Answers of a model that says too seldom what happens: its odds are e^bias too low."""
    rng = np.random.default_rng(seed)
    right = rng.beta(2, 5, days * per_day)
    labels = (rng.random(len(right)) < right).astype(np.int64)
    said = 1 / (1 + (1 - right) / right * np.exp(bias))
    times = np.datetime64(NOON, "s") - np.sort(rng.integers(1, days * 86_400, len(right)))[::-1]
    return LabelledAnswers(times, labels, np.stack([1 - said, said], axis=1).astype(np.float32), {})


def test_a_layer_follows_the_newer_labels():
    older, newer = answers_of(21, bias=-0.8), answers_of(7, bias=0.8)
    older = replace(older, times=older.times - np.timedelta64(7, "D"))
    both = LabelledAnswers(*(np.concatenate([getattr(older, name), getattr(newer, name)])
                             for name in ("times", "labels", "probabilities")), {})
    quick, slow = (fit_layer(both, NOON, replace(POLICY, prior_rows=0, half_life=timedelta(days=days)))
                   for days in (2, 1_000))
    assert quick.bias[1] > 0.05 > -0.05 > slow.bias[1]


def test_shrinkage_holds_for_any_number_of_labels():
    biases = [fit_layer(answers_of(14, per_day), NOON, replace(POLICY, prior_rows=0)).bias[1]
              for per_day in (300, 3_000)]
    free = fit_layer(answers_of(14, 3_000), NOON, replace(POLICY, prior_rows=0, shrinkage=0)).bias[1]
    assert biases[0] == pytest.approx(biases[1], abs=0.05) and 0.3 < biases[1] / free < 0.8
    few = fit_layer(answers_of(1, 20), NOON, POLICY)
    assert max(map(abs, few.bias)) < 0.02


def test_each_day_is_judged_by_a_layer_that_has_not_seen_it():
    answers = answers_of(14)
    judged, before = cross_fitted(answers, NOON, WEEK, POLICY)
    assert (judged == (answers.times >= np.datetime64(NOON - WEEK))).all()
    last = answers.times >= np.datetime64(NOON - timedelta(days=1))
    turned = replace(answers, labels=np.where(last, 1 - answers.labels, answers.labels))
    _, after = cross_fitted(turned, NOON, WEEK, POLICY)
    own = last[judged]
    assert np.array_equal(before[own], after[own])  # the day's own labels change nothing of its answers
    assert not np.array_equal(before[~own], after[~own])


def test_a_layer_that_learns_nothing_is_no_better_on_what_it_has_not_seen():
    """Fitted to noise alone, it wins on the rows that it was fitted to, and not where it is judged."""
    policy = replace(POLICY, shrinkage=0, prior_rows=0, half_life=timedelta(days=1_000))
    seen, unseen = [], []
    for seed in range(40):
        answers = answers_of(7, 40, bias=0, seed=seed)
        none = row_losses(answers.labels, answers.probabilities).mean()
        fitted = fit_layer(answers, NOON, policy).apply(answers.probabilities)
        seen.append(row_losses(answers.labels, fitted).mean() - none)
        unseen.append(row_losses(answers.labels, cross_fitted(answers, NOON, WEEK, policy)[1]).mean() - none)
    assert max(seen) <= 1e-6 and np.mean(unseen) > 0


def test_it_is_due_on_both_sides_of_the_interval():
    assert is_due(NOON, NOON + WEEK, POLICY)
    assert is_due(NOON, NOON + WEEK - timedelta(hours=16), POLICY)  # a look that was early
    assert not is_due(NOON, NOON + WEEK - timedelta(hours=17), POLICY)


@pytest.mark.parametrize(("wrong", "said"), [({"every": timedelta(0)}, "recalibration.every"),
                                             ({"half_life": -WEEK}, "recalibration.half_life"),
                                             ({"shrinkage": -0.1}, "recalibration.shrinkage is -0.1"),
                                             ({"prior_rows": -1}, "recalibration.prior_rows")])
def test_a_contract_is_held_to_sound_settings(wrong, said):
    with pytest.raises(ContractError, match=said):
        replace(flights, recalibration=Recalibration(**wrong))
    assert replace(flights, recalibration=Recalibration(shrinkage=0, prior_rows=0)).recalibration


# The version, on real flights: January's model, whose answers to February are seen to have been wrong.

@pytest.fixture
def context(january) -> ModelContext:
    """January's model as champion, and the events of the first two weeks of February."""
    ingest_batch(january, TRAINED, TRAINED + 2 * WEEK)
    return january


@pytest.fixture
def base(flights_version) -> str:
    return flights_version[1]


def begin(context: ModelContext, **options) -> DueRecalibration:
    due = due_recalibration(context, **options)
    assert isinstance(due, DueRecalibration), due
    return due


def recalibrated(context: ModelContext, outcome: str = "passed") -> str:
    """A recalibrated version in the ledger, with this verdict, promoted if it passed."""
    due = begin(context)
    version = register_recalibrated(context, save_recalibrated(context, due))
    record_recalibrated(context, version, due.champion, gate_verdict(outcome))
    if outcome == "passed":
        context.ledger.promote(version, expect=due.champion)
    return version


def test_it_has_the_same_booster_and_a_layer_of_its_own(context, base):
    due = begin(context)
    assert (due.champion, due.base, due.start, due.until) == (base, base, TRAINED, TRAINED + 2 * WEEK)
    version = save_recalibrated(context, due)
    before, after = fetch_version(context, base), fetch_version(context, version)
    kept = ("model.ubj", "contract.json")
    assert all((before / name).read_bytes() == (after / name).read_bytes() for name in kept)
    assert {file.name for file in after.iterdir()} - {file.name for file in before.iterdir()} == {
        "calibration.json"}
    manifest = models.manifest(context.store, "flights", version)
    layer = manifest["layer"]
    model = load_model(context.contract, after)
    assert model.calibration == Calibration(tuple(layer["bias"]), layer["temperature"])
    assert layer["rows"] == len(source(TRAINED, TRAINED + 2 * WEEK)) and layer["before"] == base
    assert manifest["data"] == models.manifest(context.store, "flights", base)["data"]
    assert save_recalibrated(context, due) == version  # the same labels, the same version


def test_what_follows_from_its_answers_is_its_own(context, base):
    version = save_recalibrated(context, begin(context))
    before, after = fetch_version(context, base), fetch_version(context, version)
    samples, old = (json.loads((folder / "samples.json").read_bytes()) for folder in (after, before))
    assert samples["records"] == old["records"] and samples["probabilities"] != old["probabilities"]
    references, known = (decode_references((folder / "reference.json").read_bytes())
                         for folder in (after, before))
    assert {*references} == {*known}
    for name, reference in references.items():
        is_same = reference.as_json() == known[name].as_json()
        assert is_same != is_output(name) or name == "prediction", name


def test_answers_of_any_version_are_predicted_again_by_the_booster_alone(context, base):
    """A layer is not laid on another: what a recalibrated version answered counts as its booster said it."""
    booster = load_model(context.contract, fetch_version(context, base))
    start = TRAINED
    without_log = labelled_answers(context, booster, start, start + 2 * WEEK)
    version = recalibrated(context)
    monday = datetime(2013, 2, 4)
    rows = source(monday, monday + WEEK)
    answer(context, base, rows.iloc[::2], "old")
    answer(context, version, rows.iloc[1::2], "new")
    ship(context)
    with_log = labelled_answers(context, booster, start, start + 2 * WEEK)
    assert len(with_log.labels) == len(without_log.labels)

    def in_order(answers):
        order = np.lexsort((*answers.probabilities.T, answers.times))
        return answers.rows(order)
    old, new = in_order(without_log), in_order(with_log)
    assert np.array_equal(old.probabilities, new.probabilities) and np.array_equal(old.labels, new.labels)


def test_the_gate_judges_it_on_days_that_it_was_not_fitted_to(context, base):
    version = register_recalibrated(context, save_recalibrated(context, begin(context)))
    verdict = evaluate_recalibrated(context, version, base)
    figures = verdict.figures
    assert figures.challenger.rows == figures.champion.rows == len(source(TRAINED + WEEK, TRAINED + 2 * WEEK))
    assert figures.disagreement == 0 and 0 < figures.refit_shift < 0.05
    assert figures.paired.difference == pytest.approx(
        figures.challenger.log_loss - figures.champion.log_loss, abs=1e-6)
    assert verdict.passed == (figures.paired.high <= 0)


def test_a_slice_that_callers_do_not_send_is_not_judged(context, base):
    context = replace(context, contract=replace(context.contract, gate=replace(
        context.contract.gate, slices=("carrier", "arr_time"))))
    monday = datetime(2013, 2, 4)
    for start in (TRAINED, monday, monday + WEEK):
        answer(context, base, source(start, min(start + WEEK, TRAINED + 2 * WEEK)), f"of {start:%d}")
    ship(context)
    version = register_recalibrated(context, save_recalibrated(context, begin(context)))
    verdict = evaluate_recalibrated(context, version, base)
    assert {part.column for part in verdict.figures.slices} == {"carrier"}


def test_it_is_due_after_so_many_labels_and_then_after_as_many_more(context):
    version = recalibrated(context)
    late = due_recalibration(context)
    assert isinstance(late, NotDue) and "2013-02-22" in late.why
    assert isinstance(due_recalibration(context, by_hand=True), NotDue)  # there are no newer labels
    ingest_batch(context, TRAINED + 2 * WEEK, TRAINED + 2 * WEEK + timedelta(days=3))
    assert isinstance(due_recalibration(context), NotDue)
    assert begin(context, by_hand=True).until == datetime(2013, 2, 18)
    ingest_batch(context, TRAINED + 2 * WEEK + timedelta(days=3), TRAINED + 3 * WEEK)
    due = begin(context)
    assert (due.champion, due.until) == (version, TRAINED + 3 * WEEK)
    assert due.base == models.manifest(context.store, "flights", version)["layer"]["base"]


def test_one_that_was_killed_is_finished_and_one_that_was_refused_is_over(context, base):
    due = begin(context)
    version = register_recalibrated(context, save_recalibrated(context, due))
    assert begin(context) == due  # registered, not judged
    record_recalibrated(context, version, base, gate_verdict("passed"))
    assert begin(context) == due  # judged, not promoted
    context.ledger.promote(version, expect=base)
    assert isinstance(due_recalibration(context), NotDue)
    context.ledger.roll_back("a test", base)
    assert isinstance(due_recalibration(context), NotDue)  # what a person took back stays so


def test_a_refused_one_is_over(context):
    recalibrated(context, "failed")
    assert isinstance(due_recalibration(context), NotDue)


def test_nothing_is_due_without_a_policy_or_while_a_retraining_is_under_way(context):
    without = replace(context, contract=replace(context.contract, recalibration=None))
    assert "recalibration=" in due_recalibration(without).why
    claim(context)
    assert "retraining is under way" in due_recalibration(context).why


def claim(context: ModelContext) -> Claim:
    return context.ledger.claim_retraining("2013-02-11T00:00:00", now=TRAINED + 3 * WEEK, reason="a test",
                                           drift=replace(context.contract.drift, new_rows=0), new_rows=1)


def test_a_retraining_that_was_granted_meanwhile_comes_first(context, base):
    version = register_recalibrated(context, save_recalibrated(context, begin(context)))
    record_recalibrated(context, version, base, gate_verdict("passed"))
    claim(context)
    with pytest.raises(Conflict, match="a retraining is under way"):
        context.ledger.promote(version, expect=base)
    context.ledger.retrain_finished("2013-02-11T00:00:00", str(Outcome.FAILED), base)
    context.ledger.promote(version, expect=base)
    state = context.ledger.state()
    assert state.champion == version and state.base_of(version) == base == state.previous
    assert state.refusals == 1  # of trainings: that a layer passed closes no circuit breaker


def test_of_two_runs_on_the_same_labels_one_is_recorded(context, base):
    version = register_recalibrated(context, save_recalibrated(context, begin(context)))
    layer = context.ledger.state().layers[version]
    other, later = structs.replace(layer, rows=1), structs.replace(layer, until="2013-03-01T00:00:00")
    assert context.ledger.registered(Registered(version="f" * 64, layer=other)) is None
    assert context.ledger.registered(Registered(version="e" * 64, layer=later))
    assert [*context.ledger.state().layers] == [version, "e" * 64]


def test_a_challenger_meets_the_champion_as_it_was_before_the_labels_of_the_judged_rows(context, base):
    version = recalibrated(context)
    until = TRAINED + 2 * WEEK
    assert calibrated_before(context, version, until) == version
    assert calibrated_before(context, version, until - WEEK) == base
    rows = data.read(context.store, data.newest(context.store, "flights"), until - WEEK)
    booster = load_model(context.contract, fetch_version(context, base))
    assert np.array_equal(champion_probabilities(context, version, rows),
                          booster.probabilities(context.contract.columns_of(rows)))
