"""Bins: fixed at training, exact, the same whatever is counted later, in bounded space."""

import json
from datetime import datetime

import numpy as np
import pytest

from contracts.core.binning import MAX_KNOWN, MAX_TEXT_LENGTH, MISSING, NEW, Bins, monitored_columns
from contracts.flights import contract as flights
from contracts.flights import source


def by_label(bins: Bins, values) -> dict[str, int]:
    return {label: n for label, n in zip(bins.labels, bins.count(np.asarray(values, object)).tolist()) if n}


def numbers(values) -> Bins:
    return Bins.of("number", np.asarray(values, float))


def categories(values) -> Bins:
    return Bins.of("category", np.asarray(values, object))


def test_deciles_of_a_number_hold_a_tenth_each():
    values = np.random.default_rng(0).lognormal(0, 3, 10_000)
    found = numbers(values).count(values)
    assert found[0] == 0 and len(found) == 11
    assert found[1:] == pytest.approx(np.full(10, 1_000), abs=2)


def test_a_value_that_is_common_is_a_bin_of_its_own():
    values = np.append(np.zeros(850), np.linspace(1, 16, 150))
    bins = numbers(values)
    assert (by_label(bins, [0.0] * 3 + [-1e-300, 1e-300, -5.0])
            == {"0": 3, "[-inf, 0)": 2, f"(0, {bins.edges[2]:g})": 1})
    always = numbers(np.full(100, 10.0))
    assert always.labels == (MISSING, "[-inf, 10)", "10", "(10, inf)")
    assert always.count(np.array([9.0, 10, 10, 11, np.nan])).tolist() == [1, 1, 2, 1]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_missing(odd):
    assert numbers([1.0, 2.0, odd]).count(np.array([odd, 1.5]))[0] == 1


def test_a_column_without_a_value_has_two_bins():
    empty = numbers([np.nan, np.nan])
    assert (empty.labels == (MISSING, "[-inf, inf)")
            and empty.count(np.array([np.nan, 3.0])).tolist() == [1, 1])
    assert by_label(categories([None, None]), [None, "a"]) == {MISSING: 1, NEW: 1}


def test_a_category_is_common_known_new_or_missing():
    bins = categories(["a"] * 500 + ["b"] * 480 + ["c"] * 5 + ["d"] * 5 + [None] * 10)
    assert bins.names == ("a", "b") and bins.known == ("c", "d")
    assert by_label(bins, ["a", "a", "b", "c", "d", "e", "", None]) == {
        MISSING: 1, NEW: 2, "(others)": 1, "(others from 'd')": 1, "a": 2, "b": 1}


def test_the_groups_of_uncommon_values_do_not_know_how_common_these_were():
    """Two samples of one thousand equally rare values: no group
    is larger in the first for having been chosen in it."""
    rng = np.random.default_rng(3)
    values = np.array([f"v{index:03d}" for index in range(1_000)], object)
    first, second = values[rng.integers(0, 1_000, 20_000)], values[rng.integers(0, 1_000, 20_000)]
    bins = categories(first)
    before, now = bins.count(first)[2:], bins.count(second)[2:]
    assert len(before) == 10 and before.min() > 1_800
    assert np.abs(now - before).max() < 4 * np.sqrt(2 * 2_000)


def test_free_text_has_bounded_bins_and_nothing_new():
    texts = [f"{index:06d}" for index in range(MAX_KNOWN + 1)]
    bins = categories(texts)
    assert bins.known is None and len(bins.labels) == 12
    assert by_label(bins, ["never", None]) == {MISSING: 1, f"(others from {bins.edges[-1]!r})": 1}
    assert categories(texts[:-1]).known is not None


def test_long_texts_are_cut():
    bins = categories(["x" * 5_000] * 50 + ["x" * 6_000] * 50 + ["y"] * 100)
    assert bins.names == ("x" * MAX_TEXT_LENGTH, "y")
    assert by_label(bins, ["x" * 7_000, "x" * 6_000, "x"]) == {NEW: 1, "x" * MAX_TEXT_LENGTH: 2}


@pytest.mark.parametrize("strange", ["", "a\nb", "é", "💥", " ", "nan", "None"])
def test_any_text_is_a_category(strange):
    bins = categories([strange] * 50 + ["b"] * 50)
    again = Bins.from_json(json.loads(json.dumps(bins.as_json())))
    assert again == bins and again.count(np.array([strange, "b", None], object)).tolist() == bins.count(
        np.array([strange, "b", None], object)).tolist()
    assert by_label(bins, [strange, strange])[strange] == 2


def test_counts_of_parts_add_up_to_the_counts_of_the_whole():
    columns = flights.columns_of(source(datetime(2013, 1, 1), datetime(2013, 1, 15)))
    n = len(columns["carrier"])
    probabilities = np.random.default_rng(0).dirichlet([4, 2, 1], n)
    for name, (kind, values) in monitored_columns(flights, columns, probabilities,
                                                  probabilities.argmax(axis=1)).items():
        bins = Bins.of(kind, values)
        parts = [bins.count(values[part::3]) for part in range(3)]
        assert sum(parts).tolist() == bins.count(values).tolist() and sum(parts).sum() == n, name
        assert len(bins.labels) == len(set(bins.labels)) < 70, name
        assert Bins.from_json(
            json.loads(json.dumps(bins.as_json()))).count(values).tolist() == sum(parts).tolist(), name


def test_bins_that_divide_the_champions_add_up_with_its_counts():
    rng = np.random.default_rng(0)
    old, new = rng.normal(0, 1, 5_000), rng.normal(1, 2, 5_000)
    words = np.array([f"{letter}{digit}" for letter in "abcdef" for digit in range(10)], object)
    said, later = words[rng.zipf(1.5, 5_000) % 60], np.append(words, "zz")[rng.zipf(1.3, 5_000) % 61]
    for kind, before, now in (("number", old, new), ("category", said, later)):
        champion = Bins.of(kind, before)
        bins = Bins.of(kind, now, champion)
        places = bins.onto(champion)
        assert {*champion.edges} <= {*bins.edges} and len(bins.labels) > len(champion.labels)
        known = ~np.isin(now, list(set(now) - set(before))) if kind == "category" else np.ones(len(now), bool)
        folded = np.bincount(places, bins.count(now[known]), minlength=len(champion.labels))
        assert folded.tolist() == champion.count(now[known]).tolist()
        assert champion.onto(bins) is None and Bins.of(kind, now, bins) == bins
        assert champion.onto(champion).tolist() == list(range(len(champion.labels)))


def test_bins_start_anew_before_they_become_too_many():
    bins, rng = None, np.random.default_rng(0)
    for _ in range(30):
        bins = Bins.of("number", rng.normal(0, 1, 1_000), bins)
        assert len(bins.edges) <= 120
