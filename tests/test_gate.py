"""The gate beside a champion that breaks its limits, what each check came to, and classes that are absent."""

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product

import numpy as np
import pandas as pd
import pytest
from msgspec import convert
from sklearn.metrics import roc_auc_score

from contracts.core.absent_classes import CHANCE, ClassHistory, absent_classes, absent_reasons
from contracts.core.classification import calibration_error
from contracts.core.gate import gate
from contracts.core.gate_verdict import GateVerdict
from contracts.core.limits import broken_limits
from contracts.core.metrics import Metrics
from contracts.core.policies import Gate
from contracts.core.relative_limits import auc_by_row, calibration_error_by_row, recall_behind
from contracts.core.verdict import CheckOutcome, as_json
from contracts.pumps import contract as pumps
from contracts.pumps import readings
from flows.ingest import ingest_batch
from flows.training.class_history import class_history
from registry import data
from registry.context import open_model

FINE = {"latency_ms": 1.0, "size_mb": 1.0, "disagreement": 0.0, "refit_shift": 0.0}
LIMITS = Gate(window=timedelta(days=7), log_loss=2.0, auc=0.0, calibration_error=1.0, recall={"stops": 0.3},
              min_rows=500)
START = datetime(2024, 3, 1)
BETTER_RULE = "better than the champion"
ABSENT = "no labelled row of class stops in the newest 7 days, so that AUC and recall are undefined"


def judged(labels, challenger, champion=None, limits=LIMITS, **besides):
    slices = {"starts": np.full(len(labels), "north")}
    return gate(replace(pumps, gate=limits), labels, challenger, champion, slices, **(FINE | besides))


def answers(labels, hits, *, sure, unsure, otherwise=0.2):
    """Probabilities: of the rows that stop the share `hits` is given `sure`, the rest of them `unsure`, and a
    row that runs `otherwise`."""
    stops, probability = np.flatnonzero(labels), np.full(len(labels), otherwise)
    probability[stops] = unsure
    probability[stops[:round(hits * len(stops))]] = sure
    return np.column_stack([1 - probability, probability])


LABELS = np.arange(2_000) % 2
CHAMPION = answers(LABELS, 0.04, sure=0.6, unsure=0.1)  # log loss 0.78 or so, and it hardly sees a stop
BETTER = answers(LABELS, 0.16, sure=0.6, unsure=0.45)


def check(verdict, name):
    [found] = [one for one in verdict.figures.checks if one.name == name]
    return found


def test_a_better_challenger_may_break_what_the_champion_breaks_and_says_so():
    verdict = judged(LABELS, BETTER, CHAMPION)
    assert verdict.passed
    assert verdict.reasons == (
        "recall of stops 0.1600 is below 0.3, as is the champion's 0.0400: forgiven, as the challenger is "
        "better and no worse in this",)
    [both] = verdict.figures.broken_by_both
    assert both.forgiven and (both.challenger, both.champion, both.limit) == (0.16, 0.04, 0.3)
    assert both.behind == pytest.approx(-0.12) and both.low <= both.behind < both.high < 0
    assert check(verdict, "recall of stops").outcome == "passed"
    assert convert(as_json(verdict), GateVerdict) == verdict


def test_strict_is_the_rule_that_every_challenger_keeps_every_limit():
    verdict = judged(LABELS, BETTER, CHAMPION, replace(LIMITS, absolute="strict"))
    assert verdict.outcome == "failed"
    assert verdict.reasons == ("recall of stops 0.1600 is below 0.3, as is the champion's 0.0400",)
    assert judged(LABELS, BETTER, CHAMPION, replace(LIMITS, absolute="strict", recall={"stops": 0.16})).passed


@pytest.mark.parametrize(("least", "passes"), [(0.041, True), (0.04, False)])
def test_a_limit_that_the_champion_keeps_is_forgiven_to_nobody(least, passes):
    challenger, champion = answers(LABELS, 0.037, sure=0.6, unsure=0.45), CHAMPION
    limits = replace(LIMITS, recall={"stops": least})
    verdict = judged(LABELS, challenger, champion, limits)
    assert (verdict.passed, len(verdict.figures.broken_by_both)) == (passes, passes)


def test_one_limit_that_the_champion_keeps_refuses_though_another_is_forgiven():
    limits = replace(LIMITS, calibration_error=0.3)
    champion = answers(LABELS, 0.04, sure=0.6, unsure=0.4, otherwise=0.45)
    challenger = answers(LABELS, 0.16, sure=0.6, unsure=0.3, otherwise=0.05)
    verdict = judged(LABELS, challenger, champion, limits)
    assert check(verdict, "recall of stops").outcome == "passed"
    assert check(verdict, BETTER_RULE).outcome == "passed"
    assert verdict.outcome == "failed"
    assert verdict.reasons[0] == "calibration error 0.3510 is above 0.3"


def test_a_first_version_keeps_every_limit():
    assert judged(LABELS, BETTER).outcome == "failed"
    assert judged(LABELS, BETTER).reasons == ("recall of stops 0.1600 is below 0.3",)
    assert judged(LABELS, BETTER, limits=replace(LIMITS, recall={"stops": 0.16})).passed


@pytest.mark.parametrize("unsure", [0.1, 0.09])
def test_a_challenger_that_is_equal_or_worse_is_forgiven_nothing(unsure):
    verdict = judged(LABELS, answers(LABELS, 0.04, sure=0.6, unsure=unsure), CHAMPION)
    assert verdict.outcome == "failed"
    assert check(verdict, "recall of stops").outcome == check(verdict, BETTER_RULE).outcome == "failed"


@pytest.mark.parametrize(("unsure", "passes"), [(0.1001, True), (0.1, False), (0.0999, False)])
def test_with_a_margin_a_challenger_within_it_may_take_over_but_is_forgiven_nothing_unless_it_is_better(
        unsure, passes):
    challenger = answers(LABELS, 0.04, sure=0.6, unsure=unsure)
    verdict = judged(LABELS, challenger, CHAMPION, replace(LIMITS, margin=0.05))
    assert check(verdict, BETTER_RULE).outcome == "passed"
    assert verdict.passed is passes


@pytest.mark.parametrize(("hits", "passes"), [(0.25, True), (0.24, True), (0.15, False)])
def test_a_limit_that_both_break_may_not_be_broken_further_than_by_chance(hits, passes):
    champion = answers(LABELS, 0.25, sure=0.6, unsure=0.1)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(1_000)  # which stops the challenger sees is another matter
    challenger = answers(LABELS, hits, sure=0.6, unsure=0.45)
    challenger[1::2] = challenger[1::2][shuffled]
    verdict = judged(LABELS, challenger, champion)
    [both] = verdict.figures.broken_by_both
    assert verdict.figures.paired.high < 0 and both.forgiven is passes is verdict.passed
    assert ("the challenger is behind it by 0.1" in "".join(verdict.reasons)) is not passes


@pytest.mark.parametrize(("limit", "said"),
                         [({"log_loss": 0.3}, "log loss"), ({"auc": 0.95}, "AUC"),
                          ({"calibration_error": 0.0}, "calibration error"),
                          ({"recall": {"runs": 0.99}}, "recall of runs")])
def test_each_limit_on_metrics_is_forgiven_where_both_break_it(limit, said):
    limits = replace(LIMITS, **{"recall": {}} | limit)
    rng = np.random.default_rng(1)
    truth = rng.random(2_000)
    labels = (rng.random(2_000) < truth).astype(int)
    challenger = np.column_stack([1 - truth, truth])
    champion = challenger / 2 + 0.25  # pulled to the middle
    verdict = judged(labels, challenger, champion, limits)
    assert verdict.passed and [both.name for both in verdict.figures.broken_by_both] == [said]
    assert judged(labels, challenger, champion, replace(limits, absolute="strict")).outcome == "failed"
    assert judged(labels, champion, challenger, limits).outcome == "failed"


@pytest.mark.parametrize("cost", [{"latency_ms": 50.1}, {"size_mb": 50.1}, {"disagreement": 1e-9},
                                  {"refit_shift": 0.101}])
def test_a_cost_is_never_forgiven(cost):
    verdict = judged(LABELS, BETTER, CHAMPION, **cost)
    assert verdict.outcome == "failed" and "forgiven" not in verdict.reasons[0]


def test_the_parts_of_a_metric_by_row_have_it_as_their_mean():
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet((1, 1, 1), 700).round(2)  # with ties
    labels = np.array([rng.choice(3, p=row / row.sum()) for row in probabilities])
    areas = [roc_auc_score(labels == index, probabilities[:, index]) for index in range(3)]
    assert auc_by_row(labels, probabilities).mean() == pytest.approx(np.mean(areas))
    assert calibration_error_by_row(labels, probabilities).mean() == pytest.approx(
        calibration_error(labels, probabilities))


def test_the_scatter_of_the_parts_is_that_of_the_area_under_the_curve():
    estimated, areas = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 400)
        scores = 1 / (1 + np.exp(-rng.normal(labels - 0.5, 1)))
        rows = auc_by_row(labels, np.column_stack([1 - scores, scores]))
        areas.append(rows.mean())
        estimated.append(rows.std() / len(rows) ** 0.5)
    assert np.mean(estimated) == pytest.approx(np.std(areas), rel=0.12)


@pytest.mark.parametrize(("lost", "won", "is_worse", "is_better"), [
    (0, 0, False, False), (5, 0, False, False), (6, 0, True, False), (0, 5, False, False),
    (0, 6, False, True), (30, 30, False, False), (60, 30, True, False), (40, 30, False, False)])
def test_recalls_are_told_apart_by_an_exact_test_on_the_rows_that_differ(lost, won, is_worse, is_better):
    """Six of six to one side are a chance of 3 % (0.5 ** 5); five of five one of 6 %."""
    champion = np.repeat([True, False, True, False], [lost, won, 100, 100])
    challenger = np.repeat([False, True, True, False], [lost, won, 100, 100])
    behind = recall_behind(challenger, champion, 0.95)
    assert behind.difference == pytest.approx(champion.mean() - challenger.mean())
    assert (behind.low > 0, behind.high < 0) == (is_worse, is_better)


def test_a_check_is_passed_failed_or_not_run_and_the_outcome_follows_from_them():
    """Over every combination: failed if and only if a check failed, and passed only if nothing that should
    have been checked was not."""
    good = answers(LABELS, 0.5, sure=0.7, unsure=0.45)
    invalid, few = good * 2, slice(0, 400)
    absent = np.zeros_like(LABELS)
    seen = set()
    for challenger, champion, labels, rows, slow in product(
            (good, BETTER, invalid), (None, CHAMPION, good, invalid), (LABELS, absent), (slice(None), few),
            (1.0, 99.0)):
        limits = replace(LIMITS, slices=("starts",), slice_rows=100)
        verdict = judged(labels[rows], challenger[rows], None if champion is None else champion[rows], limits,
                         latency_ms=slow)
        outcomes = {one.name: one.outcome for one in verdict.figures.checks}
        assert len(outcomes) == len(verdict.figures.checks) == 11 or challenger is invalid
        assert {"log loss", "AUC", "calibration error", "recall of stops", "latency", "size",
                BETTER_RULE, "slices of starts"} <= {*outcomes}
        assert all(one.why for one in verdict.figures.checks if one.outcome is not CheckOutcome.PASSED)
        assert (verdict.outcome == "failed") == (CheckOutcome.FAILED in outcomes.values())
        compares = {BETTER_RULE, "slices of starts"} if champion is None else set()
        not_run = {name for name, outcome in outcomes.items() if outcome is CheckOutcome.NOT_RUN} - compares
        assert (verdict.outcome == "passed") <= (not not_run)
        assert (verdict.outcome == "insufficient") <= bool(not_run)
        assert (champion is None) == (verdict.figures.champion is None)
        seen.add(verdict.outcome)
    assert seen == {"passed", "failed", "insufficient"}


def test_a_check_that_was_not_run_says_why():
    first = judged(LABELS, BETTER, limits=replace(LIMITS, slices=("starts",)))
    assert (check(first, BETTER_RULE).why == check(first, "slices of starts").why
            == "no champion yet")
    few = judged(LABELS[:499], BETTER[:499], CHAMPION[:499])
    assert check(few, "log loss").why == "499 labelled rows, at least 500 are needed"
    assert check(few, "latency").outcome == "passed" and few.figures.champion.rows == 499
    limits = replace(LIMITS, slices=("starts",), slice_rows=1_000)
    shops = np.repeat(["north", "south"], [1_001, 999])
    verdict = gate(replace(pumps, gate=limits), LABELS, BETTER, CHAMPION, {"starts": shops}, **FINE)
    assert verdict.passed and check(verdict, "slices of starts").outcome == "passed"
    assert check(verdict, "slice starts=(others)").why == "999 rows, 1000 are needed"


GOOD = Metrics(rows=500, log_loss=0.5, auc=0.8, calibration_error=0.05, recall={"stops": 0.5, "runs": 0.9})


@pytest.mark.parametrize(("metrics", "broken"), [
    ({}, []), ({"log_loss": 0.6}, []), ({"log_loss": 0.601}, ["log loss 0.6010 is above 0.6"]),
    ({"auc": 0.7}, []), ({"auc": 0.69}, ["AUC 0.6900 is below 0.7"]), ({"auc": None}, []),
    ({"calibration_error": 0.1}, []), ({"calibration_error": 0.11},
                                       ["calibration error 0.1100 is above 0.1"]),
    ({"recall": {"stops": 0.3}}, []), ({"recall": {"stops": 0.29}}, ["recall of stops 0.2900 is below 0.3"]),
    ({"recall": {"stops": None}}, []), ({"recall": {}}, []),
    ({"log_loss": None, "auc": 0.1, "recall": {"stops": 0.0}},
     ["AUC 0.1000 is below 0.7", "recall of stops 0.0000 is below 0.3"])])
def test_both_sides_of_each_limit_that_a_model_may_break(metrics, broken):
    limits = Gate(window=timedelta(days=7), log_loss=0.6, auc=0.7, calibration_error=0.1,
                  recall={"stops": 0.3})
    metrics = Metrics(**{name: getattr(GOOD, name) for name in GOOD.__struct_fields__} | metrics)
    assert [str(limit) for limit in broken_limits(replace(pumps, gate=limits), metrics)] == broken


def history(stops, runs=10_000, days_before=30):
    newest = {"runs": START - timedelta(hours=1)}
    if stops:
        newest["stops"] = START - timedelta(days=days_before)
    return ClassHistory(START, {"runs": runs} | ({"stops": stops} if stops else {}), newest)


def test_an_absent_class_is_named_with_how_long_to_wait_for_it():
    labels, probabilities = np.zeros(700, int), BETTER[:700]
    verdict = judged(labels, probabilities, since=START, history=history(20, 9_980))
    assert verdict.outcome == "insufficient" and verdict.figures.since == START.isoformat()
    assert verdict.reasons == (
        f"{ABSENT}: one in 500 of the 10,000 rows before has it; expect one within 1,497 more rows "
        "(15 days), by a chance of 95%, or widen Gate.window to 37 days, which holds the last one",)
    assert check(verdict, "AUC").why == verdict.reasons[0]
    [absent] = verdict.figures.absent
    assert absent.days_until == pytest.approx(14.97) and convert(as_json(verdict), GateVerdict) == verdict
    assert judged(np.array([*labels[1:], 1]), probabilities, history=None).figures.absent == []


@pytest.mark.parametrize(("stops", "runs"), [(1, 10), (1, 100_000), (300, 700), (5, 0)])
def test_the_wait_is_the_shortest_that_brings_a_row_by_that_chance(stops, runs):
    [absent] = absent_classes(pumps, np.zeros(500, int), history(stops, runs))

    def chance(rows):
        return 1 - (1 - stops / (stops + runs)) ** rows

    assert chance(absent.rows_until - 1) < CHANCE <= chance(absent.rows_until)
    assert absent.days_until == pytest.approx(absent.rows_until / 500 * 7)


def test_the_window_that_is_proposed_holds_the_newest_row_of_the_class():
    [absent] = absent_classes(pumps, np.zeros(500, int), history(5, days_before=30))
    assert absent.window_days == 37  # the window's own seven days, and what was before
    [absent] = absent_classes(pumps, np.zeros(500, int), history(5, days_before=30.01))
    assert absent.window_days == 38


@pytest.mark.parametrize(("known", "said"), [
    (None, ABSENT), (history(0, 0), ABSENT),
    (history(0, 9_000), f"{ABSENT}: none of the 9,000 rows before has it either; wait for the first, or take "
     "it out of the label's classes")])
def test_what_is_not_known_of_an_absent_class_is_not_guessed(known, said):
    assert absent_reasons(pumps, absent_classes(pumps, np.zeros(500, int), known)) == [said]


def test_rows_of_both_classes_are_none_absent():
    assert absent_classes(pumps, np.array([0, 1]), None) == []
    assert [one.name for one in absent_classes(pumps, np.zeros(0, int), None)] == ["runs", "stops"]


def test_the_history_of_classes_is_counted_in_the_data_version(addresses):
    context = open_model("pumps")
    begin, until = datetime(2024, 1, 1), datetime(2024, 1, 10)
    ingest_batch(context, begin, datetime(2024, 1, 15))
    found = class_history(context, data.newest(context.store, context.name), until)
    expected = readings(begin, until)
    names = np.asarray(pumps.label.classes)[pumps.labels_of(expected)]
    assert found.rows == pd.Series(names).value_counts().to_dict()
    assert found.newest == {name: times.max() for name, times in expected["measured_at"].groupby(names)}
    nothing = class_history(context, data.newest(context.store, context.name), begin)
    assert (nothing.rows, nothing.newest) == ({}, {})
