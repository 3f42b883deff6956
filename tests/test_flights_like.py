"""The benchmarks' flights: as many as asked for, in order, each once, and such as the contract takes."""

from datetime import datetime

import pandas as pd
import pytest

from contracts.core.validation import check_batch
from contracts.flights import contract
from tests.bench import flights_like
from tests.bench.flights_like import DAYS

YEAR = 336_000


@pytest.fixture(scope="module")
def frames():
    return list(flights_like.flights_like(YEAR + 5_000))


def test_they_are_as_many_as_asked_for_and_pass_the_contract(frames):
    assert [len(frame) for frame in frames] == [YEAR, 5_000]
    for frame in frames:
        checked = check_batch(contract, frame)
        assert checked.verdict.passed and checked.verdict.figures.bad == 0
        assert checked.good.dtypes.equals(contract.source(datetime(2013, 1, 1), datetime(2013, 1, 2)).dtypes)


def test_they_are_the_real_year_moved_by_whole_weeks(frames):
    real = contract.source(datetime(2013, 1, 1), datetime(2013, 12, 31))
    away = (frames[0]["departs"] - real["departs"]).unique()
    assert len(away) == 1 and away[0] % pd.Timedelta(days=DAYS) == pd.Timedelta(0)
    assert frames[0]["arr_delay"].equals(real["arr_delay"]) and frames[0].attrs == real.attrs
    assert ((frames[0]["temp"] - real["temp"]).abs().max() < 7
            and frames[0]["temp"].nunique() > 10 * real["temp"].nunique())
    together = pd.concat(frames)
    assert together["departs"].is_monotonic_increasing and not together.duplicated(list(contract.key)).any()


def test_the_same_seed_gives_the_same_rows_whatever_the_size(frames):
    again, other = next(flights_like.flights_like(1_000)), next(flights_like.flights_like(1_000, seed=1))
    assert again.equals(frames[0].head(1_000)) and not again.equals(other)


def test_more_than_all_the_years_hold_is_in_order_too_and_no_key_is_there_twice(monkeypatch):
    monkeypatch.setattr(flights_like, "COPIES", range(-13, -12))
    frames = list(flights_like.flights_like(2 * YEAR + 10))
    together = pd.concat(frames)
    assert len(together) == 2 * YEAR + 10 and max(map(len, frames)) < 1.02 * YEAR
    assert together["departs"].is_monotonic_increasing and not together.duplicated(list(contract.key)).any()
    assert all(check_batch(contract, frame).verdict.figures.bad == 0 for frame in frames[:1])
    with pytest.raises(ValueError, match="ask for fewer"):
        next(flights_like.flights_like(61 * YEAR))


def test_the_last_copy_is_within_the_schema():
    assert datetime(2013, 1, 1) + pd.Timedelta(days=DAYS * flights_like.COPIES[0]) >= datetime(2000, 1, 1)
    assert (datetime(2013, 1, 1) + pd.Timedelta(days=DAYS * (flights_like.COPIES[-1] + 1))
            < datetime(2025, 1, 1))
