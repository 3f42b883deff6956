"""Sums over labelled predictions: parts add up to the whole, and slices are told apart."""

from dataclasses import replace

import numpy as np
import pytest

from contracts.core.classification import (
    classification_metrics,
    performance_of_sums,
    row_losses,
)
from contracts.core.loading import load_contract
from contracts.core.metrics import Metrics
from contracts.core.outcome_sums import MAX_SLICES, MISSING, OTHERS, CodedValues, OutcomeSums, SlicedSums
from contracts.core.summed_metrics import metrics_of_sums
from contracts.flights import contract as flights


def drawn(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the probabilities that they were drawn from."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([3, 1, 0.2], rows).astype(np.float32)
    return (probabilities.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1).clip(0, 2), probabilities


def test_the_parts_of_the_rows_add_up_to_all_of_them():
    labels, probabilities = drawn(5_000)
    whole = OutcomeSums.of(labels, probabilities)
    parts = OutcomeSums.of(labels[:1_234], probabilities[:1_234]) + OutcomeSums.of(labels[1_234:],
                                                                                  probabilities[1_234:])
    for name, value in vars(whole).items():
        assert np.allclose(getattr(parts, name), value), name
    assert whole.loss == pytest.approx(row_losses(labels, probabilities).sum())
    assert whole.observed.tolist() == np.bincount(labels, minlength=3).tolist()


def test_what_calibrated_probabilities_promise_comes_true():
    labels, probabilities = drawn(400_000)
    sums = OutcomeSums.of(labels, probabilities)
    assert sums.loss / sums.rows == pytest.approx(sums.promised / sums.rows, abs=0.005)
    assert sums.surprise / sums.rows == pytest.approx(sums.variance / sums.rows, rel=0.02)


def test_slices_hold_the_rows_of_their_value_and_what_is_missing():
    labels, probabilities = drawn(3_000)
    carriers = np.array(["AA", "B6", None], object)[np.arange(3_000) % 3]
    ages = np.where(np.arange(3_000) % 2, np.nan, 4.0)
    sums = SlicedSums.of(labels, probabilities, {"carrier": carriers, "age": ages})
    assert {name: part.rows for name, part in sums.slices["carrier"].items()} == {
        "AA": 1_000, "B6": 1_000, MISSING: 1_000}
    assert {name: part.rows for name, part in sums.slices["age"].items()} == {"4.0": 1_500, MISSING: 1_500}
    alone = OutcomeSums.of(labels[carriers == "B6"], probabilities[carriers == "B6"])
    assert sums.slices["carrier"]["B6"].loss == pytest.approx(alone.loss)
    twice = sums + sums
    assert twice.whole.rows == 6_000 and twice.slices["carrier"]["AA"].rows == 2_000


def test_a_column_with_very_many_values_keeps_the_commonest_and_sums_the_others():
    labels, probabilities = drawn(4_000)
    values = np.array([f"v{index % 900}" for index in range(4_000)], object)
    sums = SlicedSums.of(labels, probabilities, {"v": values})
    both = sums + SlicedSums.of(labels, probabilities, {"v": np.char.add(values.astype(str), "x")})
    assert len(sums.slices["v"]) == MAX_SLICES + 1
    assert sum(part.rows for part in sums.slices["v"].values()) == 4_000
    assert sum(part.rows for part in both.slices["v"].values()) == 8_000 and OTHERS in both.slices["v"]
    assert len(both.slices["v"]) <= MAX_SLICES + 1


def test_no_rows_are_no_sums():
    empty = SlicedSums.of(np.zeros(0, np.int64), np.zeros((0, 3), np.float32), {"v": np.zeros(0, object)})
    assert empty.whole.rows == 0 and empty.slices == {"v": {}}


WEIGHTS = replace(flights, label=replace(flights.label, weights=(1.0, 2.0, 9.0)))


@pytest.mark.parametrize("contract", [flights, WEIGHTS])
def test_the_gates_metrics_follow_from_the_sums(contract):
    """Log loss and recalls exactly; the others but for the width of the bins."""
    labels, probabilities = drawn(20_000)
    halves = [OutcomeSums.of(labels[half], probabilities[half], contract.label.class_weights)
              for half in (slice(0, 9_000), slice(9_000, None))]
    summed = metrics_of_sums(contract, halves[0] + halves[1])
    exact = classification_metrics(contract, labels, probabilities)
    assert summed.rows == 20_000 and summed.log_loss == pytest.approx(exact.log_loss, rel=1e-6)
    assert summed.recall == pytest.approx(exact.recall)
    assert summed.auc == pytest.approx(exact.auc, abs=1e-3)
    assert summed.calibration_error == pytest.approx(exact.calibration_error, abs=3e-3)


def test_of_a_class_without_a_row_recall_and_area_are_undefined():
    labels, probabilities = drawn(2_000)
    kept = labels != 2
    summed = metrics_of_sums(flights, OutcomeSums.of(
        labels[kept], probabilities[kept], flights.label.class_weights))
    exact = classification_metrics(flights, labels[kept], probabilities[kept])
    assert summed.auc is exact.auc is None and summed.recall == pytest.approx(exact.recall)
    assert summed.recall["disrupted"] is None
    assert metrics_of_sums(flights, OutcomeSums.empty(3)) == Metrics(rows=0)


def test_values_by_their_number_are_the_values():
    labels, probabilities = drawn(3_000)
    names = [MISSING, OTHERS, *(f"v{index}" for index in range(40))]
    codes = np.arange(3_000) % 40 + 2
    codes[:100] = 0
    texts = np.array(names, object)[codes]
    texts[:100] = None
    coded = SlicedSums.of(labels, probabilities, {"v": CodedValues(codes, names)}).slices["v"]
    plain = SlicedSums.of(labels, probabilities, {"v": texts}).slices["v"]
    assert coded.keys() == plain.keys() and all(coded[name].rows == plain[name].rows for name in plain)
    assert coded["v7"].loss == plain["v7"].loss


@pytest.mark.parametrize("count", [MAX_SLICES - 10, MAX_SLICES + 10])
def test_values_that_found_no_number_are_among_the_others(count):
    labels, probabilities = drawn(4_000)
    names = [MISSING, OTHERS, *(f"v{index}" for index in range(count))]
    codes = np.where(np.arange(4_000) < 1_000, 1, np.arange(4_000) % count + 2)
    parts = SlicedSums.of(labels, probabilities, {"v": CodedValues(codes, names)}).slices["v"]
    assert sum(part.rows for part in parts.values()) == 4_000 and len(parts) <= MAX_SLICES + 1
    assert parts[OTHERS].rows == 1_000 if count < MAX_SLICES else parts[OTHERS].rows > 1_000


def test_a_performance_follows_from_the_sums():
    labels, probabilities = drawn(5_000)
    contract = load_contract("flights")
    found = performance_of_sums(contract, OutcomeSums.of(labels, probabilities), 0.9)
    losses, observed = row_losses(labels, probabilities), np.bincount(labels) / 5_000
    expected, margin = probabilities.astype(float).mean(axis=0), 1.96 * losses.std() / 5_000 ** 0.5
    assert (found.rows, found.coverage) == (5_000, 0.9)
    assert found.log_loss == pytest.approx(losses.mean())
    assert found.low == pytest.approx(losses.mean() - margin, rel=1e-4)
    assert found.high == pytest.approx(losses.mean() + margin, rel=1e-4)
    assert found.gap == pytest.approx((observed * np.log(observed / expected)).sum())
    assert [*found.observed.values()] == pytest.approx(observed.tolist())
    assert [*found.expected.values()] == pytest.approx(expected.tolist())
