"""The log of predictions, its way to the store, and what it is when labels come: in any order, twice, or never."""

import logging
import shutil
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from contracts.core.errors import PerennialError
from contracts.core.verdict import Verdict
from contracts.core.windows import WINDOW_FORMAT
from contracts.flights import contract, source
from flows.ingest import ingest_batch
from flows.monitor import judge_window
from flows.monitoring.outcomes import ingested_events, join_outcomes, store_labels, unlabelled_windows
from flows.monitoring.windows import due, stale
from registry.context import ModelContext, fetch_version, open_model
from registry.folder_store import FolderStore
from registry.traffic import logged_predictions, ship
from service.model import load_model
from service.prediction_log import SUFFIX, PredictionLog, unpack_log
from service.profiler import Profiler
from service.profiles import bins_in

WEEK, WINDOW = timedelta(days=7), datetime(2013, 2, 4)


@pytest.fixture
def memory(flights_version, tmp_path, addresses) -> ModelContext:
    """The flights' model as champion; its events are ingested up to the window's start."""
    shutil.copytree(flights_version[0].store.folder, tmp_path / "store")
    memory = open_model("flights")
    memory.ledger.judged(flights_version[1], Verdict("gate", "passed"), None, {})
    memory.ledger.promote(flights_version[1], expect=None)
    ingest_batch(memory, datetime(2013, 2, 1), WINDOW)
    return memory


def answer(memory: ModelContext, version: str, rows: pd.DataFrame, replica: str = "one", by=None, **changed) -> None:
    """What a replica would leave in the spool that was asked these rows; `changed`: columns as the caller sent them."""
    columns = contract.columns_of(rows.assign(**changed), contract.sent_columns)
    files = fetch_version(memory, version)
    model = load_model(contract, files)
    probabilities = (by or model.probabilities)(columns)
    profiler = Profiler(memory.contract, bins_in(files), version, memory.spool, seconds=1_000, replica=replica)
    for part in np.array_split(np.arange(len(rows)), 3):
        given = {name: values[part] for name, values in columns.items()}
        profiler.add(given, probabilities[part], model.classes(probabilities[part]), first=int(part[0]))
    profiler.close()


def judged(memory: ModelContext, start: datetime = WINDOW) -> tuple[dict, str]:
    return judge_window.fn("flights", start.isoformat())


def week(start: datetime = WINDOW) -> pd.DataFrame:
    return source(start, start + WEEK)


@pytest.fixture(scope="module")
def version(flights_version) -> str:
    return flights_version[1]


def test_every_prediction_is_logged_once_with_its_id(memory, version):
    rows = week().head(500)
    answer(memory, version, rows)
    ship(memory)
    found = logged_predictions(memory, version, WINDOW)
    assert set(found["id"]) == {f"one-{number:x}" for number in range(500)} and not list(memory.spool.rglob(f"*{SUFFIX}"))
    for name in contract.sent_columns:
        np.testing.assert_array_equal(contract.columns_of(found, (name,))[name], contract.columns_of(rows, (name,))[name])


def test_a_crash_between_the_store_and_the_spool_logs_nothing_twice(memory, version, monkeypatch):
    answer(memory, version, week().head(30))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        ship(memory)
    answer(memory, version, week().head(40), replica="two")
    ship(memory)
    ship(memory)
    assert len(logged_predictions(memory, version, WINDOW)) == 70


def test_what_nobody_waits_for_is_packed_together(memory, version, monkeypatch):
    answer(memory, version, week().head(30))
    assert ship(memory, patient=True) == 1 and list(memory.spool.rglob(f"*{SUFFIX}"))  # the profile alone
    monkeypatch.setattr("registry.traffic.ENOUGH", 100)
    ship(memory, patient=True)
    assert not list(memory.spool.rglob(f"*{SUFFIX}")) and len(logged_predictions(memory, version, WINDOW)) == 30


def test_junk_in_the_spool_is_set_aside_and_said(memory, version, caplog):
    for replica in ("one", "two"):
        answer(memory, version, week().head(30), replica=replica)
    [torn] = memory.spool.rglob(f"one-*{SUFFIX}")
    torn.write_bytes(torn.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        ship(memory)
    assert str(torn.with_suffix(".junk")) in caplog.text and len(logged_predictions(memory, version, WINDOW)) == 30


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_contract_says_which_share_is_logged(memory, version, share, tmp_path):
    log = PredictionLog(replace(contract, logged=share), tmp_path / "log", "one")
    numbers, columns = np.arange(5_000), contract.columns_of(week().head(5_000))
    log.add("x", numbers, columns, np.full((5_000, 3), 1 / 3, np.float32))
    log.save()
    kept = [unpack_log(path.read_bytes())["id"] for path in (tmp_path / "log").rglob(f"*{SUFFIX}")]
    assert sum(map(len, kept)) == pytest.approx(share * 5_000, abs=5)


def test_a_disk_that_fails_keeps_predictions_waiting_and_bounds_them(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("service.prediction_log.WAITING", 100_000)
    log = PredictionLog(contract, tmp_path / "log", "one")
    (tmp_path / "log").write_text("in the way")
    columns = contract.columns_of(week().head(10))
    for first in range(0, 600, 10):
        log.add("x", np.arange(first, first + 10), columns, np.full((10, 3), 1 / 3, np.float32))
        log.save()
    assert "predictions are lost to the log" in caplog.text and "kept for the next try" in caplog.text
    (tmp_path / "log").unlink()
    log.save()
    kept = list((tmp_path / "log").rglob(f"*{SUFFIX}"))
    assert 90_000 < sum(file.stat().st_size for file in kept) <= 100_000 and tmp_path / "log" / "x" / f"one-59{SUFFIX}" in kept


def test_a_window_is_scored_by_what_was_answered_when_its_labels_are_in(memory, version):
    answer(memory, version, week())
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    verdict, _ = judged(memory)
    scores, estimate = verdict["figures"]["scores"], verdict["figures"]["estimate"]
    assert scores["coverage"] == 1 and scores["rows"] == len(week()) == estimate["rows"]
    assert scores["low"] < scores["log_loss"] < scores["high"] and 0.3 < estimate["log_loss"] < 1.2
    assert verdict["kind"] not in ("broken contract", "training/serving skew", "stale")


def test_a_window_without_labels_shows_an_estimate(memory, version):
    answer(memory, version, week())
    ship(memory)
    [waits] = unlabelled_windows(memory)
    assert (waits["window"], waits["rows"]) == (WINDOW.isoformat(), len(week()))
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    figures = judged(memory)[0]["figures"]
    assert unlabelled_windows(memory) == [] and figures["estimate"] == {name: waits[name] for name in ("rows", "log_loss", "accuracy")}


def test_labels_that_come_late_are_waited_for_and_then_judged_again(memory, version):
    rows = week()
    answer(memory, version, rows)
    half, file = rows["carrier"].isin(["UA", "B6"]), memory.run / "half.parquet"
    file.parent.mkdir(exist_ok=True)
    rows[half].to_parquet(file)
    ingest_batch(memory, WINDOW, WINDOW + WEEK, str(file))
    verdict, action = judged(memory)
    assert verdict["figures"]["scores"]["coverage"] == pytest.approx(half.mean()) and verdict["kind"] != "worse on labels"
    assert due(memory) == []
    rows.sample(frac=1, random_state=0).to_parquet(file)
    ingest_batch(memory, WINDOW, WINDOW + WEEK, str(file))
    assert due(memory) == [WINDOW]
    assert judged(memory)[0]["figures"]["scores"]["coverage"] == 1 and due(memory) == []


def test_labels_may_come_for_ids_before_after_and_twice(memory, version):
    """Callers who can't say which event it is get an id, and say later what came of it."""
    rows = week()
    file = memory.run / "labels.csv"
    file.parent.mkdir(exist_ok=True)
    labelled = pd.DataFrame({"id": [f"one-{number:x}" for number in range(len(rows))], "arr_delay": rows["arr_delay"]})
    labelled.head(100).to_csv(file, index=False)
    assert store_labels(memory, str(file)) == 100  # before the log came
    answer(memory, version, rows, flight=None)
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    assert judged(memory)[0]["figures"]["scores"]["coverage"] == pytest.approx(100 / len(rows)) and due(memory) == []
    for _ in range(2):
        labelled.sample(frac=1, random_state=0).to_csv(file, index=False)
        store_labels(memory, str(file))
    assert due(memory) == [WINDOW]
    scores = judged(memory)[0]["figures"]["scores"]
    assert (scores["coverage"], scores["rows"]) == (1, len(rows)) and due(memory) == []
    observed = np.bincount(contract.labels_of(rows), minlength=3) / len(rows)
    assert [scores["observed"][name] for name in contract.label.classes] == pytest.approx(observed.tolist())


@pytest.mark.parametrize(("rows", "said"), [
    (pd.DataFrame({"id": ["one-1"]}), "no column arr_delay"), (pd.DataFrame({"arr_delay": ["5"]}), "no column id"),
    (pd.DataFrame({"id": ["a", "b"], "arr_delay": ["5", "late"]}), "arr_delay is 'late' in row 1, no float"),
    (pd.DataFrame({"id": [], "arr_delay": []}), "holds no row"),
])
def test_labels_that_can_not_be_read_are_refused(memory, rows, said):
    file = memory.run / "labels.csv"
    file.parent.mkdir(exist_ok=True)
    rows.to_csv(file, index=False)
    with pytest.raises(PerennialError, match=said):
        store_labels(memory, str(file))


def test_labels_that_come_twice_count_once(memory, version):
    answer(memory, version, week())
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    ingest_batch(memory, WINDOW, WINDOW + WEEK + timedelta(days=1))
    assert judged(memory)[0]["figures"]["scores"]["rows"] == len(week())


def test_callers_that_do_not_say_which_event_it_is_are_scored_by_asking_the_model_again(memory, version):
    answer(memory, version, week(), flight=None)
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    scores = judged(memory)[0]["figures"]["scores"]
    assert scores["coverage"] is None and scores["rows"] == len(week())


def test_a_column_in_another_unit_is_named_with_the_unit_and_since_when_and_where(memory, version):
    rows, friday = week(), datetime(2013, 2, 8)
    celsius = rows["temp"].where((rows["departs"] < friday) | (rows["origin"] != "JFK"), (rows["temp"] - 32) / 1.8)
    answer(memory, version, rows, temp=celsius)
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    verdict, action = judged(memory)
    [said] = [reason for reason in verdict["reasons"] if reason.startswith("temp: sent otherwise")]
    assert (verdict["kind"], action) == ("broken contract", "page") and memory.ledger.state().claims == {}
    assert "ingested = 1.8 x sent +32" in said and "with origin JFK" in said and "since 2013-02-08T0" in said


def test_other_values_than_were_ingested_are_skew_and_teach_nothing(memory, version):
    rows = week()
    answer(memory, version, rows, dest=rows["dest"].where(rows["carrier"] != "AA", "XXX"))
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    verdict, action = judged(memory)
    [said] = [reason for reason in verdict["reasons"] if reason.startswith("dest: sent otherwise")]
    assert action == "page" and "with carrier AA" in said
    assert verdict["kind"] in ("training/serving skew", "broken contract")


@pytest.mark.parametrize("share", [0.008, 0.011])
def test_a_service_that_answers_otherwise_than_its_model_is_skew(memory, version, share):
    model = load_model(contract, fetch_version(memory, version))

    def astray(columns):
        found = model.probabilities(columns).copy()
        wrong = np.arange(len(found)) % 1_000 < share * 1_000
        found[wrong] = found[wrong][:, ::-1]
        return found

    answer(memory, version, week(), by=astray)
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    verdict, action = judged(memory)
    told = [reason for reason in verdict["reasons"] if "otherwise than the registered model" in reason]
    assert bool(told) == (share > contract.drift.skew) and (action == "page") == bool(told)


def test_a_callers_clock_a_day_ahead_is_named(memory, version):
    rows = week()
    ahead = (np.arange(len(rows)) % 3 == 0) & (rows["departs"] < WINDOW + timedelta(days=6)).to_numpy()
    answer(memory, version, rows, departs=rows["departs"] + pd.to_timedelta(np.where(ahead, 24, 0), unit="h"))
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    verdict, action = judged(memory)
    assert any("happened 24 hours earlier: a caller's clock is wrong" in reason for reason in verdict["reasons"]), verdict["reasons"]
    assert (verdict["kind"], action) == ("broken contract", "page")


def test_labels_that_are_merely_missing_are_nobodys_clock(memory, version):
    rows = week()
    answer(memory, version, rows)
    file = memory.run / "most.parquet"
    file.parent.mkdir(exist_ok=True)
    rows[np.arange(len(rows)) % 3 > 0].to_parquet(file)
    ingest_batch(memory, WINDOW, WINDOW + WEEK, str(file))
    assert not any("clock" in reason for reason in judged(memory)[0]["reasons"])


def test_a_week_without_traffic_pages(memory, version):
    answer(memory, version, week())
    ship(memory)
    ingest_batch(memory, WINDOW, WINDOW + WEEK)
    ingest_batch(memory, WINDOW + WEEK, WINDOW + 2 * WEEK)
    assert due(memory) == [WINDOW, WINDOW + WEEK]
    verdict, action = judged(memory, WINDOW + WEEK)
    assert (verdict["kind"], action) == ("stale", "page") and "no traffic, though" in verdict["reasons"][0]


def test_labels_that_stay_away_page(memory, version):
    answer(memory, version, week())
    ship(memory)
    assert stale(memory) is None
    answer(memory, version, week(WINDOW + WEEK), replica="two")
    ship(memory)
    assert stale(memory) is None  # they may come any day
    answer(memory, version, week(WINDOW + 2 * WEEK), replica="three")
    ship(memory)
    said = stale(memory)
    assert (said.kind, said.figures["since"]) == ("stale", WINDOW.isoformat()) and "perennial ingest flights" in said.reasons[0]


def test_the_log_of_a_version_that_logged_nothing_is_empty(memory, version):
    assert isinstance(memory.store, FolderStore)
    found = join_outcomes(memory, version, WINDOW, ingested_events(memory, datetime(2013, 1, 7)))
    assert found.logged.empty and found.met.empty and not found.could_meet
    assert WINDOW.strftime(WINDOW_FORMAT) == "2013-02-04T0000"
