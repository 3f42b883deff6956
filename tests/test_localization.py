"""Since when and in which slice a finding lies, and which
columns callers send with other values than are ingested."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from contracts.core.binning import MonitoredColumn
from contracts.core.classification import estimate_of_sums, performance_of_sums
from contracts.core.contract import Contract
from contracts.core.localization import LoggedRows, locate_drift
from contracts.core.outcome_sums import OutcomeSums, PromisedSums
from contracts.core.reference import learn_reference
from contracts.core.skew import find_skew, when, where
from contracts.core.verdict import ColumnCheck
from contracts.core.window_verdict import drift
from contracts.pumps import contract

RNG = np.random.default_rng(0)
WEEK = 7 * 400
TIMES = np.datetime64("2024-01-01", "s") + (np.arange(WEEK) * 216).astype("timedelta64[s]")
PLACE = np.array(["north", "south", "west", "east"], object)[np.arange(WEEK) % 4]


@pytest.fixture(scope="module")
def reference():
    times = np.datetime64("2023-11-01", "s") + (np.arange(8 * WEEK) * 216).astype("timedelta64[s]")
    values = RNG.normal(60, 8, 8 * WEEK)
    values[::50] = np.nan
    return learn_reference({"heat": MonitoredColumn("number", values)}, times, timedelta(days=7),
                           0.005)["heat"]


def rows(values, slices=None):
    return LoggedRows(TIMES, {"heat": values}, slices if slices is not None else {"place": PLACE})


def ordinary():
    return RNG.normal(60, 8, WEEK)


def test_drift_that_began_in_the_window_is_dated_and_goes_on(reference):
    values = ordinary() + 12 * (np.datetime64("2024-01-04") <= TIMES)
    found = locate_drift(rows(values), "heat", reference, "values", 0.1)
    assert (found.first, found.last, found.ongoing, found.slice) == ("2024-01-04", "2024-01-07", True, "")
    assert str(found) == "since 2024-01-04"


def test_drift_of_one_day_is_over(reference):
    values = np.where((np.datetime64("2024-01-03") <= TIMES) & (np.datetime64("2024-01-04") > TIMES), np.nan,
                      ordinary())
    found = locate_drift(rows(values), "heat", reference, "missing", 0.05)
    assert str(found) == "on 2024-01-03"


def test_the_slice_that_carries_it_is_named_and_no_other(reference):
    found = locate_drift(rows(ordinary() + 15 * (PLACE == "south")), "heat", reference, "values", 0.02)
    assert found.slice == "place south"
    everywhere = locate_drift(rows(ordinary() + 15), "heat", reference, "values", 0.02)
    assert everywhere.slice == ""


def test_a_column_that_was_not_logged_has_no_trace(reference):
    assert locate_drift(rows(ordinary()), "cold", reference, "values", 0.1) is None
    assert (locate_drift(LoggedRows(TIMES[:0], {"heat": np.array([])}, {}), "heat", reference, "values",
                         0.1) is None)


def test_a_verdict_says_since_when_and_takes_it_over_from_the_window_before(reference):
    values = ordinary() + 12
    judged = drift(contract, {"heat": reference}, {"heat": reference.bins.count(values)}, rows=WEEK,
                   logged=rows(values))
    assert ("since 2024-01-01" in judged.reasons[0]
            and judged.figures.checks["heat"]["values"].since == "2024-01-01")
    check = ColumnCheck(effect=0.5, threshold=0.1, p_value=0.0, drifted=True, since="2023-12-28")
    earlier = {"heat": {"values": check}}
    later = drift(contract, {"heat": reference}, {"heat": reference.bins.count(values)}, rows=WEEK,
                  logged=rows(values), previous=earlier)
    assert "since 2023-12-28" in later.reasons[0]


def placed(drift_policy=contract.drift) -> Contract:
    return replace(contract, drift=drift_policy)


@pytest.mark.parametrize(("spoil", "unit"),
                         [(lambda heat: heat * 1.8 + 32, True), (lambda heat: heat / 1_000, True),
                          (lambda heat: heat + RNG.normal(0, 5, len(heat)), False),
                          (lambda heat: np.where(np.arange(len(heat)) % 2, heat, 20.0), False)])
def test_another_unit_is_told_from_other_values(spoil, unit):
    heat, columns = ordinary(), {"measured_at": TIMES}
    [found] = find_skew(contract, columns | {"heat": spoil(heat)}, {"heat": heat})
    assert found.is_broken == unit and found.column == "heat" and ("another unit" in found.reason) == unit


@pytest.mark.parametrize(("many", "told"), [(28, 0), (29, 1)])
def test_values_that_few_rows_disagree_on_are_let_be(many, told):
    heat = ordinary()
    sent = np.where(np.arange(WEEK) < many, heat + 1, heat)
    assert len(find_skew(contract, {"measured_at": TIMES, "heat": sent}, {"heat": heat})) == told


def test_missing_on_both_sides_agrees_and_a_rounded_value_does_too():
    heat = np.where(np.arange(WEEK) % 3, ordinary(), np.nan)
    assert find_skew(contract, {"measured_at": TIMES, "heat": np.round(heat, 2)}, {"heat": heat}) == []
    texts = np.where(np.arange(WEEK) % 3, PLACE, None)
    assert find_skew(contract, {"measured_at": TIMES, "place": texts}, {"place": texts.copy()}) == []
    assert len(find_skew(contract, {"measured_at": TIMES, "place": texts}, {"place": PLACE})) == 1


def test_when_and_where():
    faulty = (np.datetime64("2024-01-02") <= TIMES) & (np.datetime64("2024-01-03") > TIMES)
    assert (when(TIMES, faulty) == ", from 2024-01-02T00:00 to 2024-01-02T23:56"
            and when(TIMES, TIMES[WEEK // 2] < TIMES).startswith(", since"))
    assert (where(PLACE == "west", {"place": PLACE}) == ", almost all with place west"
            and where(faulty, {"place": PLACE}) == "")


def test_an_estimate_is_right_where_probabilities_are():
    probabilities = RNG.dirichlet([2, 2], 20_000)
    labels = (RNG.random(20_000) < probabilities[:, 1]).astype(int)
    estimate = estimate_of_sums(PromisedSums.of(probabilities))
    score = performance_of_sums(contract, OutcomeSums.of(labels, probabilities))
    assert (score.low < estimate.log_loss < score.high
            and score.log_loss == pytest.approx(estimate.log_loss, abs=0.02))
    assert estimate.accuracy == pytest.approx((probabilities.argmax(axis=1) == labels).mean(), abs=0.02)
