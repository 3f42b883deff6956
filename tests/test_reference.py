"""What ordinary windows do is learnt from the training data: Sundays, cold weeks, few rows, rare values."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from contracts.core.binning import Bins, MonitoredColumn
from contracts.core.policies import Drift
from contracts.core.reference import decode_references, effects, encode_references, learn_reference
from contracts.core.window_verdict import drift
from contracts.flights import contract as flights

DAY, WEEK = timedelta(days=1), timedelta(days=7)
START = np.datetime64("2024-01-01", "s")  # a Monday


def shops(days: int, a_day: int = 300, seed: int = 0, sunday: float = 30.0) -> np.ndarray:
    """What a customer spends: more on Sundays."""
    day = np.repeat(np.arange(days), a_day)
    return np.random.default_rng(seed).normal(100, 20, days * a_day) + np.where(day % 7 == 6, sunday, 0)


def learnt(days: int, window: timedelta, **columns: np.ndarray):
    """The references of columns of which equally many rows happened on each day."""
    seen = {name: MonitoredColumn("category" if values.dtype == object else "number", values)
            for name, values in columns.items()}
    n = len(next(iter(columns.values())))
    return learn_reference(seen, START + (np.arange(n) * (days * 86_400 / n)).astype("timedelta64[s]"),
                           window, 0.005)


def alarms(reference, values: np.ndarray) -> bool:
    contract = replace(flights, drift=Drift(min_rows=1, window=DAY))
    return drift(contract, reference, {"spent": reference["spent"].bins.count(values)},
                 rows=len(values)).outcome == "failed"


def test_a_sunday_is_not_drift_unless_it_comes_where_no_sundays_are_known():
    values = shops(70)
    known, unknown = learnt(70, DAY, spent=values), learnt(70, DAY,
                                                           spent=np.random.default_rng(1).permutation(values))
    sundays = [shops(7, seed=seed)[-300:] for seed in range(1, 40)]
    assert (not any(alarms(known, sunday) for sunday in sundays)
            and all(alarms(unknown, sunday) for sunday in sundays))
    assert all(alarms(known, sunday + 60) for sunday in sundays)


def test_what_chance_does_to_few_rows_is_not_taken_for_a_difference_of_weeks():
    rng = np.random.default_rng(0)
    for a_day in (20, 200, 2_000):
        found = [learnt(56, WEEK, x=rng.normal(size=56 * a_day))["x"].baseline_effect for _ in range(12)]
        noise = np.sqrt(9 / (8 * np.log(2) * 7 * a_day))
        assert np.median([one["values"] for one in found]) < noise
        assert {one["missing"] for one in found} == {0.0}


def test_the_fewer_weeks_were_seen_the_less_is_known_of_the_next():
    rng, limits = np.random.default_rng(0), []
    for weeks in (5, 10, 40):
        level = np.repeat(np.tile([-0.3, 0, 0.3, 0, 0], weeks // 5), 7 * 100)
        column = learnt(weeks * 7, WEEK, x=rng.normal(size=weeks * 700) + level)["x"]
        limits.append(column.baseline_effect["values"])
    assert limits[0] > limits[1] > limits[2] > 0.1


def test_how_often_a_row_brings_a_new_value_is_learnt():
    rng = np.random.default_rng(0)
    usual = np.array([f"item {n}" for n in rng.zipf(1.7, 15_000) % 1_500], object)
    one = learnt(30, WEEK, item=usual)["item"]
    expected = one.counts[1] / one.counts.sum()
    found = np.mean([one.bins.count(np.array([f"item {n}"
                                              for n in np.random.default_rng(seed).zipf(1.7, 3_000) % 1_500],
                                             object))[1] for seed in range(1, 20)]) / 3_000
    assert expected == pytest.approx(found, rel=0.2) and expected > 0.005
    assert one.baseline_effect["new"] < 0.05


def test_a_value_that_one_week_alone_had_is_new_in_a_week():
    values = np.full(70 * 100, "plain", object)
    values[3_000:3_200] = "fair"  # two days' only
    one = learnt(70, WEEK, event=values)["event"]
    assert one.counts[1] == 0 and one.baseline_effect["new"] > 0.2


def test_a_column_that_never_changes_allows_nothing():
    for one in learnt(40, WEEK, same=np.full(400, 3.0), none=np.full(400, np.nan),
                      nobody=np.full(400, None, object)).values():
        assert one.counts.sum() == 400 and set(one.baseline_effect.values()) == {0.0}


@pytest.mark.parametrize("days", [1, 3, 10])
def test_training_data_shorter_than_a_few_windows_still_teaches(days):
    one = learnt(days, WEEK,
                 x=np.random.default_rng(0).normal(size=days * 400) + np.linspace(0, 2, days * 400))["x"]
    assert 0.1 < one.baseline_effect["values"] <= 1


def test_two_rows_are_enough_to_learn_from():
    assert learnt(2, WEEK, x=np.array([1.0, 2.0]))["x"].counts.sum() == 2


def test_the_same_data_gives_the_same_bytes_and_they_are_read_back():
    seen = {"x": shops(30), "c": np.array(["a", "b", None], object)[np.arange(9_000) % 3]}
    one, two = (encode_references(learnt(30, WEEK, **seen)) for _ in range(2))
    assert one == two and encode_references(decode_references(one)) == one
    assert decode_references(one)["x"].deciles[4] == pytest.approx(np.median(seen["x"]))


def test_effects_of_known_shares():
    bins = Bins("category", (), ("a", "b"), ())
    one, other = np.array([0.0, 0, 0, 0.5, 0.5]), np.array([0.5, 0.25, 0, 0.25, 0])
    found = {check: float(value) for check, value in effects(bins, one, other).items()}
    assert found["missing"] == 0.5 and found["new"] == 0.25
    assert (found["values"]
            == pytest.approx(np.sqrt((0.5 * np.log2(0.5 / 0.75) + 0.5 + np.log2(1 / 0.75)) / 2)))
    assert (effects(bins, one, one)["values"] == 0
            and effects(bins, one, np.array([1.0, 0, 0, 0, 0]))["values"] == 0)
    assert (effects(bins, np.array([0, 0, 0, 1.0, 0]), np.array([0, 0, 0, 0, 1.0]))["values"]
            == pytest.approx(1))
