"""drift(): both sides of every limit, which finding is the gravest, and how sure it must be."""

import json
from dataclasses import replace
from datetime import timedelta

import msgspec
import numpy as np
import pytest

from contracts.core.binning import MonitoredColumn
from contracts.core.classification import performance_of_sums
from contracts.core.decay import judge_outcomes
from contracts.core.drift_tests import rows_needed
from contracts.core.outcome_sums import OutcomeSums, SlicedSums
from contracts.core.outcome_verdict import OutcomeFigures
from contracts.core.policies import Drift
from contracts.core.reference import learn_reference
from contracts.core.retraining import needs_person, wants_retraining
from contracts.core.verdict import Performance, WindowVerdict, as_json
from contracts.core.window_verdict import drift, find_drift
from contracts.flights import contract as FLIGHTS
from contracts.pumps import contract as PUMPS

POLICY = Drift(min_rows=100, label_gap=0.02, min_labels=100)


def traffic(n: int = 20_000, seed: int = 0) -> dict[str, MonitoredColumn]:
    """A number, a number that is missing for a tenth, an
    open and a closed category, and the model's answers."""
    rng = np.random.default_rng(seed)
    return {"temp": MonitoredColumn("number", rng.normal(50, 10, n)),
            "seats": MonitoredColumn("number",
                                     np.where(rng.random(n) < 0.1, np.nan, rng.integers(100, 200, n))),
            "dest": MonitoredColumn("category",
                                    np.array(["ORD", "LAX", "MIA", None],
                                             object)[rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])]),
            "origin": MonitoredColumn("category", np.array(["EWR", "JFK"], object)[rng.integers(0, 2, n)]),
            "prediction": MonitoredColumn("category",
                                          np.array(["late", "on_time"], object)[rng.integers(0, 2, n)]),
            "probability.late": MonitoredColumn("number", rng.random(n))}


REFERENCE = learn_reference(traffic(),
                            np.datetime64("2013-01-01", "s") + np.arange(20_000) * np.timedelta64(200, "s"),
                            timedelta(days=7), 0.005)


def changed(seen: dict[str, MonitoredColumn], **changes) -> dict[str, MonitoredColumn]:
    return seen | {name: MonitoredColumn(seen[name].kind, change(seen[name].values))
                   for name, change in changes.items()}


def counted(seen: dict[str, MonitoredColumn]):
    return {name: REFERENCE[name].bins.count(one.values) for name, one in seen.items()}


def judged(seen=None, policy=POLICY, scores=None, bad=0, rows=None, reference=REFERENCE,
           outcomes=None) -> WindowVerdict:
    seen = traffic(2_000, seed=1) if seen is None else seen
    rows = max((len(one.values) for one in seen.values()), default=0) if rows is None else rows
    return drift(replace(FLIGHTS, drift=replace(policy, cooldown=timedelta(days=14))), reference,
                 counted(seen), rows=rows, performance=scores, outcomes=outcomes, bad=bad)


def usual(n: int = 2_000, seed: int = 1, **changes) -> dict[str, MonitoredColumn]:
    return changed(traffic(n, seed), **changes)


def without(share: float):
    """Values of which this share is missing, in their order."""
    return lambda values: np.where(np.arange(len(values)) < round(share * len(values)),
                                   None if values.dtype == object else np.nan, values)


def becomes(value: str, share: float):
    return lambda values: np.where(np.arange(len(values)) < round(share * len(values)), value, values)


def test_the_same_world_is_fine():
    verdict = judged()
    assert (verdict.kind, verdict.outcome, verdict.reasons) == ("fine", "passed", ())
    assert not wants_retraining(verdict, POLICY) and not needs_person(verdict)
    assert (set(verdict.figures.checks["dest"]) == {"values", "missing", "new"}
            and max(verdict.figures.drift_scores.values()) <= 1)


def test_of_windows_of_the_same_world_hardly_any_fails():
    sizes = [(n, seed) for n in (200, 1_000, 10_000) for seed in range(2, 102)]
    assert sum(judged(traffic(n, seed)).outcome == "failed" for n, seed in sizes) <= 3


def test_a_moved_number_is_input_drift_and_says_where_it_went():
    verdict = judged(usual(temp=lambda values: values + 10))
    assert verdict.kind == "input drift" and wants_retraining(verdict, POLICY)
    [reason] = verdict.reasons
    assert (reason.startswith("temp: distance 0.")
            and f"more [{REFERENCE['temp'].bins.edges[-1]:g}, inf)" in reason)


@pytest.mark.parametrize("name", ["prediction", "probability.late"])
def test_moved_answers_are_prediction_drift(name):
    change = becomes("late", 0.4) if name == "prediction" else (lambda values: values ** 2)
    verdict = judged(usual(**{name: change}))
    assert verdict.kind == "prediction drift" and wants_retraining(verdict, POLICY)


@pytest.mark.parametrize("side", [0.99, 1.01])
@pytest.mark.parametrize(("check", "change"), [
    ("temp.values", {"temp": lambda values: values + 10}), ("seats.missing", {"seats": without(0.5)}),
    ("dest.new", {"dest": becomes("XXX", 0.3)})])
def test_a_threshold_that_the_contract_sets_from_both_sides(check, change, side):
    name, what = check.split(".")
    effect = judged(usual(**change)).figures.checks[name][what].effect
    verdict = judged(usual(**change),
                     replace(POLICY, thresholds={check: effect * side}, severity={name: "drift"}))
    assert any(reason.startswith(f"{name}: ") for reason in verdict.reasons) == (side < 1)


def test_an_effect_that_chance_may_have_done_is_none_however_large():
    few = replace(POLICY, min_rows=1, thresholds={"temp": 0.01})
    shift = {"temp": lambda values: values + 2.5}
    assert judged(usual(60, **shift), few).kind == "fine"
    assert judged(usual(2_000, **shift), few).kind == "input drift"
    assert judged(usual(60, **shift), few).figures.checks["temp"]["values"].effect > 0.1


def test_an_effect_that_does_not_matter_is_none_however_sure():
    seen = usual(400_000, temp=lambda values: values + 0.2)
    trivial = judged(seen, reference=REFERENCE | {"temp": replace(
        REFERENCE["temp"], counts=REFERENCE["temp"].counts * 100,
        baseline_effect={"missing": 0.0, "values": 0.0})})
    check = trivial.figures.checks["temp"]["values"]
    assert trivial.kind == "fine" and check.p_value < 1e-9 and check.effect < check.threshold


def test_more_columns_ask_for_more_certainty():
    checks = {one.column: one
              for one in find_drift(replace(FLIGHTS, drift=POLICY), REFERENCE,
                                    counted(usual(temp=lambda v: v + 2)))}
    alone = find_drift(replace(FLIGHTS, drift=POLICY), {"temp": REFERENCE["temp"]},
                       counted(usual(temp=lambda v: v + 2)))
    assert checks["temp"].p_value > next(one.p_value for one in alone if one.check == "values")


def test_one_outlier_hides_nothing():
    verdict = judged(usual(temp=lambda values: np.append(values[1:] + 10, 1e300)))
    assert verdict.kind == "input drift" and verdict.reasons[0].startswith("temp")


@pytest.mark.parametrize("name", ["dest", "origin"])
def test_a_single_row_of_a_new_category_alarms_nobody(name):
    assert judged(usual(10_000, **{name: becomes("XXX", 1 / 10_000)})).kind == "fine"
    assert judged(usual(200, **{name: becomes("XXX", 1 / 200)})).kind == "fine"


def test_a_new_value_breaks_the_contract_where_that_states_the_vocabulary():
    assert FLIGHTS.closed_features == {"origin"}
    closed, open_ = (judged(usual(**{name: becomes("XXX", 0.02)})) for name in ("origin", "dest"))
    assert closed.kind == "broken contract" and needs_person(closed) and not wants_retraining(closed, POLICY)
    assert open_.kind == "input drift"
    assert closed.reasons[0].startswith("origin: values never seen in training in 2.0% of the records")


@pytest.mark.parametrize("seen", [
    usual(seats=without(0.16)), usual(temp=without(0.05)), usual(dest=without(1.0)),
    {name: one for name, one in usual().items() if name != "temp"}], ids=["rise", "spike", "all", "column"])
def test_missing_values_break_the_contract(seen):
    verdict = judged(seen)
    assert needs_person(verdict) and not wants_retraining(verdict, POLICY)
    assert "missing in" in verdict.reasons[0]


def test_fewer_missing_values_are_drift_and_no_fault():
    verdict = judged(usual(seats=lambda values: np.nan_to_num(values, nan=150.0)))
    assert verdict.kind == "input drift" and any("missing in 0.0%" in reason for reason in verdict.reasons)


def test_missing_answers_page_nobody():
    assert judged(usual(prediction=without(1.0))).kind == "prediction drift"


@pytest.mark.parametrize(("to", "kind"),
                         [("page", "broken contract"), ("drift", "input drift"), ("note", "fine")])
def test_what_follows_can_be_set_for_a_column_or_a_check(to, kind):
    for key in ("temp", "temp.values"):
        assert (judged(usual(temp=lambda values: values + 10), replace(POLICY, severity={key: to})).kind
                == kind)
    assert judged(usual(temp=without(0.3)), replace(POLICY, severity={"temp.missing": to})).kind == kind


def test_an_ignored_column_is_not_judged():
    verdict = judged(usual(temp=lambda values: values + 50), replace(POLICY, ignore=("temp",)))
    assert verdict.kind == "fine" and "temp" not in verdict.figures.checks


@pytest.mark.parametrize(("rows", "kind"), [(0, "insufficient"), (99, "insufficient"), (100, "input drift")])
def test_rows_from_both_sides(rows, kind):
    verdict = judged(usual(rows, temp=lambda values: values + 30) if rows else {})
    assert verdict.kind == kind
    assert (verdict.outcome == "insufficient") == (kind == "insufficient")
    if kind == "insufficient":
        assert verdict.reasons == (f"{rows} records of traffic, 100 are needed",)
        assert not wants_retraining(verdict, POLICY) and not needs_person(verdict)


def test_the_rows_that_are_needed_follow_from_what_must_be_found():
    by_power = replace(POLICY, min_rows=None)
    needed = rows_needed(by_power, REFERENCE, 15)
    assert 400 < needed < 1_200
    assert rows_needed(replace(by_power, detect=0.2), REFERENCE, 15) < needed / 3
    assert (judged(usual(needed - 1), by_power).kind == "insufficient"
            and judged(usual(needed), by_power).kind == "fine")
    few = {name: replace(one, counts=one.counts // 200) for name, one in REFERENCE.items()}
    assert rows_needed(by_power, few, 15) is None


def test_so_many_rows_find_it_about_as_often_as_they_should():
    by_power = replace(POLICY, min_rows=None, thresholds={"temp": 0.0})
    needed = rows_needed(by_power, REFERENCE, 15)
    found = [any(reason.startswith("temp")
                 for reason in judged(usual(needed, seed, temp=lambda v: v + 2.8), by_power).reasons)
             for seed in range(60)]
    assert np.mean(found) > 0.8


def test_what_is_broken_pages_however_few_the_rows():
    verdict = judged(usual(60, temp=without(1.0)))
    assert verdict.kind == "broken contract" and verdict.reasons[1] == "60 records of traffic, 100 are needed"


def test_an_empty_window_is_insufficient_even_where_no_rows_are_asked_for():
    assert judged({}, replace(POLICY, min_rows=0)).kind == "insufficient"


@pytest.mark.parametrize(("bad", "kind"), [(20, "insufficient"), (21, "broken contract")])
def test_refused_records_from_both_sides(bad, kind):
    verdict = judged({}, bad=bad)
    assert verdict.kind == kind
    assert judged(bad=105).kind == "fine" and judged(bad=106).kind == "broken contract"


def outcomes(late: float, rows: int = 1_000, coverage: float | None = None, policy=POLICY) -> OutcomeFigures:
    """Of a model that promises 40 % late flights."""
    labels = np.arange(rows) >= round(late * rows)
    sums = SlicedSums.of(labels.astype(int), np.tile(np.float32([0.4, 0.6]), (rows, 1)), {})
    return judge_outcomes(policy, ("late", "on_time"), sums, None, coverage=coverage)


def labels(late: float, rows: int = 1_000) -> Performance:
    return Performance(rows=rows, log_loss=0.5, gap=0.1, low=0.4, high=0.6,
                       observed={"late": late, "on_time": 1 - late}, expected={"late": 0.4, "on_time": 0.6})


@pytest.mark.parametrize(("late", "rows", "kind"), [
    (0.49, 1_000, "fine"), (0.51, 1_000, "worse on labels"), (0.51, 100, "fine"),
    (0.60, 100, "worse on labels"), (0.60, 99, "insufficient"), (0.60, 0, "insufficient"),
])
def test_class_shares_from_both_sides_of_the_threshold_of_chance_and_of_the_least_number(late, rows, kind):
    shares = labels(round(late, 2), rows)
    verdict = judged(scores=shares, outcomes=only_class_shares(outcomes(late, rows)))
    assert verdict.kind == kind
    assert wants_retraining(verdict, POLICY) == (kind == "worse on labels")
    if (late, rows) == (0.51, 1_000):
        assert verdict.reasons == ("labels: late 51.0% for 40.0%, on_time 49.0% for 60.0% expected, on 1000 "
                                   "rows: gap 0.0242, limit 0.02",)


def only_class_shares(figures: OutcomeFigures) -> OutcomeFigures:
    """Without the calibration check, which such labels fail too."""
    return msgspec.structs.replace(figures, checks=[
        check for check in figures.checks if check.measure == "class shares"])


def test_labels_that_cover_too_few_predictions_are_insufficient():
    assert judged(outcomes=outcomes(0.4, coverage=0.8)).kind == "fine"
    uncovered = judged(outcomes=outcomes(0.4, coverage=0.79))
    assert uncovered.kind == "insufficient" and uncovered.outcome == "insufficient"
    assert uncovered.reasons == ("labels: labels of 79% of the logged predictions are in, 80% are needed: no "
                                 "check of them could run",)


def test_labels_as_expected_have_no_gap_and_others_have_one():
    probabilities = np.tile(np.float32([0.25, 0.75]), (400, 1))

    def performance(*counts: int) -> Performance:
        labels = np.repeat([0, 1], counts)
        return performance_of_sums(PUMPS, OutcomeSums.of(labels, probabilities[:len(labels)]))

    as_expected = performance(100, 300)
    assert (as_expected.rows, as_expected.gap) == (400, pytest.approx(0))
    assert as_expected.expected == as_expected.observed == {"runs": 0.25, "stops": 0.75}
    other = performance(200, 200)
    assert other.gap == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    one_class_only = performance(4, 0)
    assert one_class_only.gap == pytest.approx(-np.log(0.25))
    assert one_class_only.observed == {"runs": 1.0, "stops": 0.0}


def test_only_what_the_contract_names_starts_a_retraining():
    found = judged(usual(temp=lambda values: values + 10))
    assert wants_retraining(found, replace(POLICY, retrain_on=("input drift",)))
    assert not wants_retraining(found, replace(POLICY, retrain_on=("worse on labels",)))
    reckless = replace(POLICY, retrain_on=("broken contract", "insufficient", "fine"))
    for verdict in (judged(usual(seats=without(0.9))), judged(usual(1)), judged()):
        assert not wants_retraining(verdict, reckless)


def test_the_gravest_finding_names_the_verdict_and_all_are_told():
    bad = {"scores": labels(0.6), "outcomes": outcomes(0.6)}
    changes = {"seats": without(0.9), "temp": lambda values: values + 10,
               "prediction": becomes("late", 0.4)}
    verdict = judged(usual(**changes), **bad)
    assert verdict.kind == "broken contract"
    assert [reason.split(":")[0] for reason in verdict.reasons] == [
        "seats", "labels of 1000 rows", "labels", "temp", "prediction"]
    del changes["seats"]
    assert judged(usual(**changes), **bad).kind == judged(usual(90, **changes), **bad).kind == "decayed"
    bad["outcomes"] = only_class_shares(bad["outcomes"])
    assert judged(usual(**changes), **bad).kind == "worse on labels"
    assert judged(usual(90, **changes)).kind == "insufficient"
    assert judged(usual(**changes)).kind == "input drift"
    del changes["temp"]
    assert judged(usual(**changes)).kind == "prediction drift"


def test_verdict_survives_json():
    verdict = judged(usual(temp=lambda values: values + 10, seats=without(0.9)), scores=labels(0.6),
                     outcomes=outcomes(0.6))
    stored = json.loads(json.dumps(as_json(verdict), allow_nan=False))
    assert msgspec.convert(stored, WindowVerdict) == verdict
    assert stored["figures"]["checks"]["seats"]["missing"]["effect"] == pytest.approx(0.8, abs=0.01)
    assert stored["figures"]["rows"] == 2_000 and verdict.figures.drift_scores["seats"] > 5
