"""The data check and the gate: a row that passes, a row that fails, and the empty row."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from contracts.core.classification import calibration_error, class_distance, classification_metrics
from contracts.core.digests import canonical_json
from contracts.core.gate import gate, paired_difference
from contracts.core.policies import Gate
from contracts.core.validation import check_batch
from contracts.core.verdict import Example, as_json
from contracts.flights import contract as flights
from contracts.pumps import contract as pumps


@pytest.fixture(scope="module")
def week() -> pd.DataFrame:
    return flights.source(datetime(2013, 1, 1), datetime(2013, 1, 8))


def spoiled(rows, **values):
    """The rows with one bad value a column, each in another row."""
    rows = rows.copy()
    for row, (name, value) in enumerate(values.items(), start=10):
        rows.loc[row, name] = value
    return rows


def test_real_flights_pass(week):
    checked = check_batch(flights, week)
    assert checked.verdict.passed and len(checked.good) == len(week) and checked.bad.empty
    assert list(checked.good) == list(flights.columns)


def test_bad_rows_are_set_aside_with_their_reasons(week):
    checked = check_batch(flights, spoiled(week, temp=500.0, dep_time=np.nan, distance=20.0, carrier="lower"))
    assert checked.verdict.passed
    assert len(checked.good) + len(checked.bad) == len(week) and len(checked.bad) == 4
    text = "\n".join(checked.bad["reasons"])
    assert "temp: less_than_or_equal_to(130)" in text
    assert "an arrival needs a departure" in text
    assert "distance fits its route" in text
    assert "carrier: str_matches" in text
    assert checked.bad["temp"].max() == 500


def test_both_sides_of_the_limit_of_bad_rows(week):
    rows = week.head(200).copy()
    rows.loc[:1, "temp"] = 500.0
    assert check_batch(flights, rows).verdict.passed  # 2 of 200: the limit of 1 % itself
    rows.loc[:2, "temp"] = 500.0
    verdict = check_batch(flights, rows).verdict
    assert verdict.outcome == "failed"
    assert any("temp" in reason and "3 rows" in reason and "500.0" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(lambda rows: rows.drop(columns="temp"), "temp: column missing"),
     (lambda rows: rows.assign(temp="warm"), "temp: type"),
     (lambda rows: rows.assign(carrier=7), "carrier: type str, found int64, 6099 rows, such as 7"),
     (lambda rows: rows.assign(departs=rows["departs"].astype("int64")),
      "departs: type datetime without a zone, found int64"),
     (lambda rows: rows.assign(temp=rows["departs"]), "temp: type float, found datetime64[us]"),
     (lambda rows: rows.assign(flight=rows["flight"] + 0.5), "flight: type int, found float64")])
def test_a_batch_of_another_shape_is_refused_whole(week, spoil, said):
    checked = check_batch(flights, spoil(week))
    assert checked.verdict.outcome == "failed" and checked.good.empty
    assert any(reason.startswith(said) for reason in checked.verdict.reasons)


def test_a_changed_unit_is_refused_whole(week):
    celsius = week.assign(temp=(week["temp"] - 32) / 1.8)
    celsius.attrs["units"] = {"temp": "°C"}
    verdict = check_batch(flights, celsius).verdict
    assert verdict.outcome == "failed" and verdict.reasons == ("temp: unit '°C', rule: '°F'",)


def test_text_that_reads_as_its_type_is_read(week):
    checked, plain = check_batch(flights, week.astype(str).where(week.notna())), check_batch(flights, week)
    assert checked.verdict.passed and checked.good.equals(plain.good)


def test_both_sides_of_a_changed_type(week):
    rows = week.head(100).astype({"distance": object})
    rows.loc[:49, "distance"] = "far"
    verdict = check_batch(replace(flights, bad_rows=0.5), rows).verdict
    assert verdict.passed and verdict.figures.by_rule[0].examples[0] == Example(row=0, value="far")
    rows.loc[:50, "distance"] = "far"
    verdict = check_batch(replace(flights, bad_rows=1), rows).verdict
    assert (verdict.outcome == "failed" and verdict.reasons == ("distance: type float, found object, 51 "
                                                                "rows, such as far, far, far",))


def test_an_empty_batch_is_insufficient(week):
    assert check_batch(flights, week.head(0)).verdict.outcome == "insufficient"


def test_whole_numbers_pass_for_floats_and_an_all_empty_column_where_it_may_be_empty(week):
    rows = week.head(50).assign(distance=lambda r: r["distance"].astype(int), wind_gust=None)
    assert check_batch(flights, rows).verdict.passed


LIMITS = Gate(window=flights.gate.window, log_loss=0.65, auc=0.7, calibration_error=0.2,
              recall={"stops": 0.3}, slices=("starts",), slice_margin=0.05, slice_rows=100, min_rows=500)
CONTRACT = replace(pumps, gate=LIMITS)
FINE = {"latency_ms": 1.0, "size_mb": 1.0, "disagreement": 0.0, "refit_shift": 0.0}


def world(n=2_000, seed=0):
    """Labels, the probabilities of a good model, and a slice column."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n)
    labels = (rng.random(n) < truth).astype(int)
    return labels, np.column_stack([1 - truth, truth]).astype(np.float32), rng.choice(["north", "south"], n)


def worse(probabilities, by=0.5):
    """The same model, pulled to the middle."""
    return (probabilities * (1 - by) + by / 2).astype(np.float32)


def judged(labels, challenger, champion=None, shops=None, **costs):
    shops = np.full(len(labels), "north") if shops is None else shops
    return gate(CONTRACT, labels, challenger, champion, {"starts": shops}, **(FINE | costs))


def test_the_first_model_passes_on_the_absolute_limits_alone():
    labels, good, _ = world()
    verdict = judged(labels, good)
    assert verdict.passed and verdict.figures.paired is None


@pytest.mark.parametrize(("limit", "said"),
                         [({"log_loss": 0.3}, "log loss"), ({"auc": 0.95}, "AUC"),
                          ({"calibration_error": 0.0}, "calibration error"),
                          ({"recall": {"runs": 0.99}}, "recall of runs")])
def test_each_absolute_limit_can_refuse(limit, said):
    labels, good, shops = world()
    verdict = gate(replace(CONTRACT, gate=replace(LIMITS, **limit)), labels, good, None, {"starts": shops},
                   **FINE)
    assert verdict.outcome == "failed" and len(verdict.reasons) == 1 and verdict.reasons[0].startswith(said)


@pytest.mark.parametrize(("cost", "at", "above"),
                         [("latency_ms", 50.0, 50.1), ("size_mb", 50.0, 50.1), ("disagreement", 0.0, 1e-9),
                          ("refit_shift", 0.1, 0.101)])
def test_both_sides_of_each_cost(cost, at, above):
    labels, good, _ = world()
    assert judged(labels, good, **{cost: at}).passed
    assert judged(labels, good, **{cost: above}).outcome == "failed"
    assert judged(labels, good, **{cost: float("nan")}).outcome == "failed"


def test_all_reasons_are_collected():
    labels, good, _ = world()
    verdict = judged(labels, good[:, ::-1], latency_ms=99.0, size_mb=99.0)
    assert len(verdict.reasons) >= 4


def test_a_better_challenger_passes_and_a_worse_or_equal_one_does_not():
    labels, good, shops = world()
    assert judged(labels, good, worse(good), shops).passed
    assert judged(labels, worse(good, 0.1), good, shops).outcome == "failed"
    assert "not better than the champion" in judged(labels, good, good, shops).reasons[0]


def test_a_gain_that_could_be_luck_does_not_pass():
    labels, good, _ = world(n=500)
    noise = np.random.default_rng(1).normal(0, 0.1, len(labels)).astype(np.float32)
    champion = np.clip(good + np.column_stack([noise, -noise]), 0.01, 0.99)
    difference = paired_difference(LIMITS, labels, champion, worse(champion, 0.02))
    assert difference.low < 0 < difference.high


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says():
    inside = 0
    truth = None
    for seed in range(60):
        labels, good, _ = world(n=400, seed=seed)
        if truth is None:
            many, best, _ = world(n=200_000, seed=999)
            truth = paired_difference(replace(LIMITS, confidence=0.5), many[:20_000], best[:20_000],
                                      worse(best)[:20_000]).difference
        found = paired_difference(LIMITS, labels, good, worse(good))
        inside += found.low <= truth <= found.high
    assert 50 <= inside <= 60


def test_a_slice_that_falls_behind_refuses_what_is_better_on_the_whole():
    labels, good, shops = world(4_000)
    north = (shops == "north")[:, None]
    champion = np.where(north, worse(good, 0.8), good)
    challenger = np.where(north, good, worse(good, 0.6))
    verdict = judged(labels, challenger, champion, shops)
    assert (verdict.outcome == "failed"
            and any("starts=south falls behind" in reason for reason in verdict.reasons))
    assert judged(labels, good, champion, shops).passed


@pytest.mark.parametrize("broken", [np.nan, np.inf, -0.2, 0.2])
def test_what_are_no_probabilities_is_a_verdict(broken):
    labels, good, shops = world()
    bad = good.copy()
    bad[5, 0] = broken if not np.isfinite(broken) else bad[5, 0] + broken
    verdict = judged(labels, bad, good, shops, refit_shift=float("nan"))
    assert verdict.outcome == "failed" and "the challenger answers 1 of 2000 rows with" in verdict.reasons[0]
    assert verdict.figures.challenger.log_loss is None and canonical_json(as_json(verdict))
    verdict = judged(labels, good, bad, shops)
    assert verdict.outcome == "insufficient" and "the champion answers 1 of 2000" in verdict.reasons[0]
    assert canonical_json(as_json(verdict))


def test_a_model_of_other_classes_is_a_verdict():
    labels, good, shops = world()
    three = np.column_stack([good * 0.5, np.full(len(good), 0.5)])
    assert (judged(labels, good, three, shops).reasons == ("the champion answers 3 classes, the contract "
                                                           "has 2: nothing to compare with",))
    assert judged(labels, good, three, shops).outcome == "insufficient"
    assert judged(labels, three, good, shops).outcome == "failed"


@pytest.mark.parametrize(("behind", "name"),
                         [(np.array([None] * 100), "(missing)"), (np.arange(100).astype(object), "(others)")])
def test_rows_without_a_value_and_those_of_small_slices_are_slices_too(behind, name):
    labels, good, _ = world()
    champion, challenger = worse(good), good.copy()
    champion[:100], challenger[:100] = good[:100], worse(good[:100])
    shops = np.concatenate([behind, np.full(1_900, "north", object)])
    verdict = judged(labels, challenger, champion, shops)
    assert verdict.outcome == "failed" and verdict.reasons[0].startswith(f"starts={name} falls behind")
    shops[0] = "north"  # 99 rows are too few to judge, but are shown
    verdict = judged(labels, challenger, champion, shops)
    assert verdict.passed and (name, 99) in [(one.value, one.rows) for one in verdict.figures.slices]


def test_a_slice_column_without_values_is_insufficient():
    labels, good, _ = world()
    verdict = judged(labels, good, worse(good), np.full(len(labels), None))
    assert verdict.outcome == "insufficient" and verdict.reasons == ("no slice of starts has 100 rows",)


def test_undefined_figures_are_insufficient_and_never_a_pass():
    labels, good, shops = world()
    assert judged(np.zeros_like(labels), good).outcome == "insufficient"
    assert judged(labels[:499], good[:499]).outcome == "insufficient"
    assert judged(labels[:0], good[:0]).outcome == "insufficient"
    many = np.arange(len(labels)).astype(str)
    verdict = judged(labels, good, worse(good), many)
    assert verdict.outcome == "insufficient" and "no slice of starts" in verdict.reasons[0]
    assert judged(labels[:499], good[:499], latency_ms=99.0).outcome == "failed"


def test_scores_of_known_predictions():
    labels = np.array([0, 1, 1, 0])
    certain = np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]])
    found = classification_metrics(CONTRACT, labels, certain)
    assert found.auc == 1 and found.recall == {"runs": 1.0, "stops": 1.0}
    assert found.log_loss == pytest.approx(-np.log(0.9))
    assert calibration_error(labels, certain) == pytest.approx(0.1)


def test_how_far_apart_two_models_name_the_classes():
    sure = np.eye(2)[np.array([0] * 8 + [1] * 2)]
    assert class_distance(pumps, sure, sure) == 0
    assert class_distance(pumps, sure, np.eye(2)[np.array([0] * 5 + [1] * 5)]) == pytest.approx(0.3)
