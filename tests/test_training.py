"""Rows → a fitted model, whatever their number, order and portions."""

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest

from contracts.core.classification import classification_metrics
from contracts.core.errors import PerennialError
from contracts.core.features import category, number
from contracts.flights import contract as flights
from contracts.pumps import readings
from flows.training import dataset, vocabulary
from flows.training.dataset import read_training_set
from registry import data

NEVER = datetime.max  # no row is of the newest window: all are older
START, CUT, END = datetime(2013, 1, 1), datetime(2013, 1, 22), datetime(2013, 1, 29)


@pytest.fixture(scope="module")
def january():
    return flights.source(START, END)


def ready(rows, folder, cut=CUT, portions=1):
    size = -(-len(rows) // portions)
    return read_training_set(flights, (rows[first:first + size] for first in range(0, len(rows), size)),
                             len(rows), cut, folder)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(dataset, "MAX_ROWS", 6_000)


def test_the_same_rows_give_the_same_bytes_on_one_thread_or_two_in_any_portions(january, tmp_path):
    model = ready(january, tmp_path).fit(12)
    assert ready(january, tmp_path).fit(12, threads=1).files() == model.files()
    assert ready(january, tmp_path, portions=7).fit(12, threads=2).files() == model.files()


def test_so_do_the_same_rows_in_several_blocks(january, tmp_path, small_blocks):
    model = ready(january, tmp_path).fit(12)
    assert len(ready(january, tmp_path).block_files) == 5 and model.booster.num_boosted_rounds() == 12
    assert ready(january, tmp_path, portions=7).fit(12, threads=1).files() == model.files()


def test_each_row_is_in_one_block_with_what_it_was(january, tmp_path, small_blocks):
    rows = ready(january, tmp_path, portions=3)
    model = rows.fit(5)
    blocks = list(rows._blocks(model.vocabularies, rows._groups()))
    assert sum(len(block.labels) for block in blocks) == len(january) == rows.rows
    assert max(len(block.labels) for block in blocks) - min(len(block.labels) for block in blocks) <= 1
    columns, order = flights.columns_of(
        january), np.argsort(np.concatenate([block.times for block in blocks]), kind="stable")
    expected = np.column_stack([model.matrix(columns), flights.labels_of(january)])
    found = np.column_stack([np.concatenate([block.matrix for block in blocks]),
                             np.concatenate([block.labels for block in blocks])])

    def in_order(table):
        return table[np.lexsort(np.nan_to_num(table, nan=-1).T)]
    np.testing.assert_array_equal(in_order(found[order].astype(np.float32)),
                                  in_order(expected.astype(np.float32)))


def test_the_older_rows_know_nothing_of_the_newest_window(january, tmp_path):
    newer = january["departs"] >= CUT
    changed = january.assign(carrier=january["carrier"].where(~newer, "ZZ"),
                             temp=january["temp"].where(~newer, 1.0))
    one, other = ready(january, tmp_path), ready(changed, tmp_path)
    assert (one.fit(6, older=True).files() == other.fit(6, older=True).files()
            and one.rounds() == other.rounds())
    assert one.fit(6).files() != other.fit(6).files() and "ZZ" in other.fit(6).vocabularies["carrier"]
    assert (one.older, one.rows) == (int((~newer).sum()), len(january))


def test_the_newest_of_the_older_rows_say_when_to_stop(january, tmp_path):
    found = ready(january, tmp_path).rounds()
    older = int((january["departs"] < CUT).sum())
    assert 1 <= found["rounds"] <= flights.rounds and found["stop_rows"] == int(older * flights.stop_share)
    backwards = january.assign(departs=START + (END - january["departs"]))
    assert ready(backwards, tmp_path, END - (CUT - START)).rounds() != found


def test_rows_in_any_order_are_trained_in_that_of_their_time(january, tmp_path):
    whole = january.drop_duplicates("departs")  # of rows of one time the order stays as it was
    shuffled = whole.sample(frac=1, random_state=0)
    assert (ready(shuffled, tmp_path, portions=3).fit(5, older=True).files()
            == ready(whole, tmp_path).fit(5, older=True).files())


def test_blocks_learn_nearly_as_well_as_the_whole(january, tmp_path, monkeypatch):
    def loss(most, rounds):
        monkeypatch.setattr(dataset, "MAX_ROWS", most)
        rows = ready(january, tmp_path)
        return classification_metrics(flights, *rows.newest(rows.fit(rounds, older=True))).log_loss
    whole, blocks, untrained = loss(10**6, 30), loss(10_000, 30), loss(10**6, 1)
    assert blocks != whole and blocks - whole < 0.3 * (untrained - whole)


def test_early_stopping_goes_on_over_blocks(january, tmp_path, small_blocks):
    found = ready(january, tmp_path).rounds()
    assert (1 <= found["rounds"] <= flights.rounds
            and found["stop_rows"] < len(january) * flights.stop_share / 4)


def test_fewer_rounds_than_blocks_are_trained_all_the_same(january, tmp_path, small_blocks):
    assert ready(january, tmp_path).fit(2).booster.num_boosted_rounds() == 2


def test_the_sample_is_an_even_share_in_order(january, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SAMPLE", 1_000)
    sample = ready(january.iloc[::-1], tmp_path, portions=9).sample
    times = sample["departs"]
    assert 900 < len(times) <= 1_000 and (np.diff(times) >= np.timedelta64(0)).all()
    quarters = [january["departs"].quantile(share) for share in (0.25, 0.5, 0.75)]
    assert (all(abs(times[int(len(times) * share)] - quarter) < timedelta(hours=12)
                for share, quarter in zip((0.25, 0.5, 0.75), quarters)))


def test_rows_that_repeat_a_pattern_are_in_every_share(january, tmp_path, monkeypatch, small_blocks):
    monkeypatch.setattr(dataset, "SAMPLE", len(january) // 4)
    places = np.array(["EWR", "JFK", "LGA", "EWR"], object)[np.arange(len(january)) % 4]
    rows = ready(january.assign(origin=places), tmp_path, portions=5)
    shares = [rows.sample["origin"],
              *(block.matrix[:, 5] for block in rows._blocks(rows._vocabularies(False), rows._groups()))]
    for share in shares:
        _, counts = np.unique(share.astype(str), return_counts=True)
        assert np.allclose(np.sort(counts / counts.sum()), [0.25, 0.25, 0.5], atol=0.02)


def test_of_few_older_rows_one_block_is_made(january, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MAX_ROWS", 6_000)
    rows = ready(january, tmp_path, cut=january["departs"].iloc[40].to_pydatetime())
    assert len(rows.block_files) == 5 and len(rows._groups(older=True)) == 1 and rows.older <= 40
    assert rows.rounds()["rounds"] >= 1 and rows.fit(3, older=True).booster.num_boosted_rounds() == 3


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_a_draw_gives_each_number_once_in_a_row_and_goes_on_where_it_was(n):
    whole = dataset.sampled(0, 30 * n, n)
    assert (np.sort(whole.reshape(-1, n), axis=1) == np.arange(n)).all()
    assert (np.array_equal(np.concatenate([dataset.sampled(0, 11, n), dataset.sampled(11, 30 * n - 11, n)]),
                           whole))


def test_rare_categories_teach_the_model_what_unknown_means(january, tmp_path):
    model = ready(january, tmp_path, NEVER).fit(2)
    counts = january["dest"].value_counts()
    assert (set(model.vocabularies["dest"]) == set(counts[counts >= vocabulary.RARE].index)
            != set(counts.index))


def test_a_category_of_numbers_is_refused(january, tmp_path):
    month = category("month", "departs", compute=lambda departs: departs.astype("datetime64[M]").astype(int))
    odd = replace(flights, features=(number("temp"), month), drift=replace(flights.drift, thresholds={}))
    with pytest.raises(
            PerennialError,
            match="'month' is a category and has the value 516, not a text; let its `compute` return texts"):
        read_training_set(odd, [january], len(january), CUT, tmp_path)


def test_nothing_stays_on_the_disk(january, tmp_path):
    rows = ready(january, tmp_path / "training")
    assert rows.fit(1) and not list((tmp_path / "training").iterdir())
    rows.close()
    with pytest.raises(ValueError, match="closed file"):
        rows.fit(1)


def test_a_version_is_read_in_portions_oldest_first(pumps, monkeypatch):
    monkeypatch.setattr(data, "CHUNK_ROWS", 1_000)
    late = datetime(2024, 2, 12)
    data.append(pumps.store, pumps.contract, readings(late, late + timedelta(days=3)), late,
                late + timedelta(days=3))
    early = datetime(2023, 12, 1)
    data.append(pumps.store, pumps.contract, readings(early, early + timedelta(days=2)), early,
                early + timedelta(days=2))
    version = data.newest(pumps.store, pumps.name)
    parts = list(data.chunks(pumps.store, version, ("measured_at", "heat", "stopped")))
    assert (sum(map(len, parts)) == version.rows and max(map(len, parts)) < 2_000
            and list(parts[0]) == ["measured_at", "heat", "stopped"])
    firsts = [part["measured_at"].iloc[0] for part in parts]
    assert firsts == sorted(firsts) and firsts[0].to_pydatetime() < early + timedelta(days=1)
    shares = [sum(map(len, data.chunks(pumps.store, version, ("heat",), (index, 2)))) for index in (0, 1)]
    assert sum(shares) == version.rows and min(shares) > 0
