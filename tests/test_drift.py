"""drift(): both sides of every limit, and which finding is the gravest."""

import json
from dataclasses import replace

import numpy as np
import pytest

from contracts.contract import Drift, Verdict
from contracts.drift import Compared, Scores, distance, drift, pages, scored, wants_retraining
from tests.pumps import contract as PUMPS

POLICY = Drift(min_rows=100, distance=0.25, features=1, label_gap=0.02, null_share=0.5)
EVEN = np.array([0.25, 0.25, 0.25, 0.25, 0.0])


def column(current=EVEN, reference=EVEN, n=1_000):
    return Compared(
        (*tuple("abcd"), "(missing)"), np.asarray(reference), np.asarray(current), reference[-1], current[-1], n)


def moved(target: float) -> Compared:
    """A column whose distance is about `target`."""
    low, high = 0.0, 0.25
    for _ in range(60):
        middle = (low + high) / 2
        near = distance(EVEN, EVEN + np.array([middle, -middle, 0, 0, 0]) * 0.99) < target
        low, high = (middle, high) if near else (low, middle)
    return column(EVEN + np.array([low, -low, 0, 0, 0]) * 0.99)


def without(share: float, reference: float = 0.0, n: int = 1_000) -> Compared:
    def missing(part):
        return np.array([1 - part, 0, 0, 0, part])
    return column(missing(share), missing(reference), n)


def judged(rows=1_000, scores=None, policy=POLICY, **compared) -> Verdict:
    return drift(compared, policy, rows=rows, scores=scores)


def test_distance_is_zero_for_equals_symmetric_and_finite_with_empty_bins():
    other = np.array([0.0, 0.5, 0.5, 0.0, 0.0])
    assert distance(EVEN, EVEN) == 0
    assert distance(EVEN, other) == pytest.approx(distance(other, EVEN))
    assert 1 < distance(EVEN, other) < 10
    assert distance(np.array([0.5, 0.5]), np.array([0.6, 0.4])) == pytest.approx(0.1 * np.log(1.2) - 0.1 * np.log(0.8))


def test_the_same_world_is_fine():
    verdict = judged(temp=column(), prediction=column())
    assert (verdict.kind, verdict.outcome, verdict.reasons) == ("fine", "passed", ())
    assert not wants_retraining(verdict, POLICY) and not pages(verdict)


@pytest.mark.parametrize(("target", "kind"), [(0.249, "fine"), (0.251, "input drift")])
def test_distance_of_a_feature_from_both_sides(target, kind):
    verdict = judged(temp=moved(target), dewp=column())
    assert verdict.kind == kind
    assert wants_retraining(verdict, POLICY) == (kind != "fine")
    assert verdict.figures["distances"]["temp"] == pytest.approx(target, abs=1e-3)
    if verdict.reasons:
        assert verdict.reasons == ("temp: distance (PSI) 0.251, limit 0.25",)


@pytest.mark.parametrize(("far", "kind"), [(1, "fine"), (2, "input drift")])
def test_number_of_far_features_from_both_sides(far, kind):
    columns = {f"x{i}": moved(0.5) if i < far else column() for i in range(4)}
    verdict = judged(policy=replace(POLICY, features=2), **columns)
    assert (verdict.kind, len(verdict.reasons)) == (kind, 0 if kind == "fine" else far)


@pytest.mark.parametrize("name", ["prediction", "probability.late"])
@pytest.mark.parametrize(("target", "kind"), [(0.249, "fine"), (0.251, "prediction drift")])
def test_prediction_drift_from_both_sides(name, target, kind):
    verdict = judged(temp=column(), **{name: moved(target)})
    assert verdict.kind == kind
    assert wants_retraining(verdict, POLICY) == (kind != "fine")


@pytest.mark.parametrize(("rows", "kind"), [(0, "insufficient"), (99, "insufficient"), (100, "input drift")])
def test_rows_from_both_sides(rows, kind):
    verdict = judged(rows=rows, temp=moved(2.0))
    assert verdict.kind == kind
    assert (verdict.outcome == "insufficient") == (kind == "insufficient")
    if kind == "insufficient":
        assert verdict.reasons == (f"{rows} records of traffic, 100 are needed",)
        assert not wants_retraining(verdict, POLICY) and not pages(verdict)


def test_an_empty_window_is_insufficient_even_where_no_rows_are_asked_for():
    assert drift({}, replace(POLICY, min_rows=0), rows=0, scores=None).kind == "insufficient"
    assert judged(rows=0, temp=without(1.0, n=0)).kind == "insufficient"


@pytest.mark.parametrize(("reference", "current", "fires"), [
    (0.0, 0.499, False), (0.0, 0.501, True),  # nothing was missing in training, and still it fires
    (0.3, 0.799, False), (0.3, 0.801, True), (0.9, 0.1, False),
])
def test_rise_of_missing_values_from_both_sides(reference, current, fires):
    verdict = judged(seats=without(current, reference))
    assert (verdict.kind == "broken contract") == fires == pages(verdict)
    if fires:
        assert not wants_retraining(verdict, POLICY)
        assert verdict.reasons[0].startswith(f"seats: missing in {current:.0%} of the records, {reference:.0%} of")


def test_fewer_than_the_limit_missing_still_counts_as_drift():
    assert judged(seats=without(0.4)).kind == "input drift"


@pytest.mark.parametrize(("reference", "current", "n", "broken"), [
    (0.8, 1.0, 1_000, True), (0.8, 0.999, 1_000, False),  # gone wholly, though the rise is within the limit
    (0.8, 1.0, 20, False), (0.8, 1.0, 40, True),  # so few rows may all be missing by chance
    (1.0, 1.0, 1_000, False),  # it never was there
    (0.0, 1.0, 0, True), (1.0, 1.0, 0, True),  # the window has no such column
])
def test_a_feature_that_is_gone(reference, current, n, broken):
    assert pages(judged(gust=without(current, reference, n))) == broken


@pytest.mark.parametrize(("rows", "kind"), [(1, "insufficient"), (99, "insufficient"), (100, "broken contract")])
@pytest.mark.parametrize("gone", [without(1.0), without(1.0, n=0), without(0.6)])
def test_a_few_stray_records_page_nobody(rows, kind, gone):
    verdict = judged(rows=rows, heat=gone)
    assert verdict.kind == kind and pages(verdict) == (kind == "broken contract")
    assert len(verdict.reasons) == (1 if kind == "insufficient" else 2)


def test_missing_predictions_page_nobody():
    assert not pages(judged(prediction=without(1.0)))


def labels(gap: float, rows: int = 1_000) -> Scores:
    return Scores(rows, 0.5, gap, {"late": 0.5, "on_time": 0.5}, {"late": 0.4, "on_time": 0.6})


@pytest.mark.parametrize(("gap", "rows", "kind"), [
    (0.02, 100, "fine"), (0.0201, 100, "worse on labels"), (0.0201, 99, "fine"), (5.0, 0, "fine"),
    (float("nan"), 100, "worse on labels"),
])
def test_labels_from_both_sides(gap, rows, kind):
    verdict = judged(temp=column(), scores=labels(gap, rows))
    assert verdict.kind == kind
    assert wants_retraining(verdict, POLICY) == (kind != "fine")
    assert verdict.figures["scores"]["rows"] == rows
    if gap == 0.0201 and verdict.reasons:
        assert verdict.reasons == (
            "labels: late 50.0% for 40.0%, on_time 50.0% for 60.0% expected, on 100 rows: gap 0.0201, limit 0.02",)


def test_labels_as_expected_have_no_gap_and_others_have_one():
    probabilities = np.tile(np.float32([0.25, 0.75]), (400, 1))
    as_expected = scored(PUMPS, np.repeat([0, 1], [100, 300]), probabilities)
    assert (as_expected.rows, as_expected.gap) == (400, pytest.approx(0))
    assert as_expected.expected == as_expected.observed == {"runs": 0.25, "stops": 0.75}
    other = scored(PUMPS, np.repeat([0, 1], [200, 200]), probabilities)
    assert other.gap == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    one_class_only = scored(PUMPS, np.zeros(4, int), probabilities[:4])
    assert one_class_only.gap == pytest.approx(-np.log(0.25))
    assert one_class_only.observed == {"runs": 1.0, "stops": 0.0}


def test_only_what_the_contract_names_starts_a_retraining():
    found = judged(temp=moved(1.0))
    assert wants_retraining(found, replace(POLICY, retrain_on=("input drift",)))
    assert not wants_retraining(found, replace(POLICY, retrain_on=("worse on labels",)))
    reckless = replace(POLICY, retrain_on=("broken contract", "insufficient", "fine"))
    for verdict in (judged(seats=without(0.9)), judged(rows=1, temp=column()), judged(temp=column())):
        assert not wants_retraining(verdict, reckless)


def test_the_gravest_finding_names_the_verdict_and_all_are_told():
    bad = labels(0.5)
    everything = {"seats": without(0.9), "temp": moved(1.0), "prediction": moved(1.0)}
    verdict = judged(scores=bad, **everything)
    assert verdict.kind == "broken contract"
    about = [reason.split(":")[0] for reason in verdict.reasons]
    assert about == ["seats", "labels", "seats", "temp", "prediction"]
    assert judged(rows=50, scores=bad, **everything).kind == "insufficient"
    del everything["seats"]
    assert judged(scores=bad, **everything).kind == "worse on labels"
    assert judged(**everything).kind == "input drift"
    del everything["temp"]
    assert judged(**everything).kind == "prediction drift"


def test_verdict_survives_json():
    verdict = judged(temp=moved(1.0), seats=without(0.9), scores=labels(0.5))
    stored = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert Verdict.from_json(stored) == verdict
    assert stored["figures"]["nulls"]["seats"] == {"reference": 0.0, "current": 0.9}
    assert stored["figures"]["rows"] == 1_000
