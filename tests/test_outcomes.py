"""The log of predictions, its way to the store, and what
it is when labels come: in any order, twice, or never."""

import logging
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec
import numpy as np
import pandas as pd
import pytest

from contracts.core.errors import PerennialError
from contracts.core.outcome_sums import PromisedSums, SlicedSums
from contracts.core.windows import WINDOW_FORMAT
from contracts.flights import contract, source
from flows.ingest import ingest_batch
from flows.monitor import judge_window
from flows.monitoring.estimates import estimates
from flows.monitoring.outcomes import Outcomes, join_outcomes
from flows.monitoring.performance import metrics_of
from flows.monitoring.sent_labels import store_labels
from flows.monitoring.unlabelled import unlabelled_windows
from flows.monitoring.windows import due, stale_labels
from registry.context import ModelContext, fetch_version
from registry.folder_store import FolderStore
from registry.traffic import ship
from service.model import load_model
from service.prediction_log import SUFFIX, PredictionLog, unpack_log
from service.profiler import Profiler
from service.profiles import bins_in
from tests.logged import logged_predictions

WEEK, WINDOW = timedelta(days=7), datetime(2013, 2, 4)


@pytest.fixture
def context(january) -> ModelContext:
    """The flights' model as champion; its events are ingested up to the window's start."""
    ingest_batch(january, datetime(2013, 2, 1), WINDOW)
    return january


def answer(context: ModelContext, version: str, rows: pd.DataFrame, replica: str = "one", by=None,
           **changed) -> None:
    """What a replica would leave in the spool that was asked
    these rows; `changed`: columns as the caller sent them."""
    columns = contract.columns_of(rows.assign(**changed), contract.sent_columns)
    files = fetch_version(context, version)
    model = load_model(contract, files)
    probabilities = (by or model.probabilities)(columns)
    profiler = Profiler(context.contract, bins_in(files), version, context.spool, seconds=1_000,
                        replica=replica)
    for part in np.array_split(np.arange(len(rows)), 3):
        given = {name: values[part] for name, values in columns.items()}
        profiler.add(given, probabilities[part], model.classes(probabilities[part]), first=int(part[0]))
    profiler.close()


def judged(context: ModelContext, start: datetime = WINDOW) -> tuple[dict, str]:
    return judge_window.fn("flights", start.isoformat())


def week(start: datetime = WINDOW) -> pd.DataFrame:
    return source(start, start + WEEK)


@pytest.fixture(scope="module")
def version(flights_version) -> str:
    return flights_version[1]


def test_every_prediction_is_logged_once_with_its_id(context, version):
    rows = week().head(500)
    answer(context, version, rows)
    ship(context)
    found = logged_predictions(context, version, WINDOW)
    assert (set(found["id"]) == {f"one-{number:x}" for number in range(500)}
            and not list(context.spool.rglob(f"*{SUFFIX}")))
    for name in contract.sent_columns:
        np.testing.assert_array_equal(contract.columns_of(found, (name,))[name],
                                      contract.columns_of(rows, (name,))[name])


def test_a_crash_between_the_store_and_the_spool_logs_nothing_twice(context, version, monkeypatch):
    answer(context, version, week().head(30))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        ship(context)
    answer(context, version, week().head(40), replica="two")
    ship(context)
    ship(context)
    found = logged_predictions(context, version, WINDOW)
    assert len(found) == 100 and found["id"].nunique() == 70
    assert join_outcomes(context, version, WINDOW).promised.rows == 70


def test_what_nobody_waits_for_is_packed_together(context, version, monkeypatch):
    answer(context, version, week().head(30))
    assert ship(context, wait_for_batch=True) == 1  # the profile alone
    assert list(context.spool.rglob(f"*{SUFFIX}"))
    monkeypatch.setattr("registry.predictions.BATCH_BYTES", 100)
    ship(context, wait_for_batch=True)
    assert (not list(context.spool.rglob(f"*{SUFFIX}"))
            and len(logged_predictions(context, version, WINDOW)) == 30)


def test_junk_in_the_spool_is_set_aside_and_said(context, version, caplog):
    for replica in ("one", "two"):
        answer(context, version, week().head(30), replica=replica)
    [torn] = context.spool.rglob(f"one-*{SUFFIX}")
    torn.write_bytes(torn.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        ship(context)
    assert (str(torn.with_suffix(".junk")) in caplog.text
            and len(logged_predictions(context, version, WINDOW)) == 30)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_the_contract_says_which_share_is_logged(context, version, share, tmp_path):
    log = PredictionLog(replace(contract, logged=share), tmp_path / "log", "one")
    numbers, columns = np.arange(5_000), contract.columns_of(week().head(5_000))
    log.add("x", numbers, columns, np.full((5_000, 3), 1 / 3, np.float32))
    log.save()
    kept = [unpack_log(path.read_bytes()).numbers for path in (tmp_path / "log").rglob(f"*{SUFFIX}")]
    assert sum(map(len, kept)) == pytest.approx(share * 5_000, abs=5)


def test_a_disk_that_fails_keeps_predictions_waiting_and_bounds_them(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("service.prediction_log.MAX_WAITING_BYTES", 100_000)
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
    assert (90_000 < sum(file.stat().st_size for file in kept) <= 100_000
            and tmp_path / "log" / "x" / f"one-59{SUFFIX}" in kept)


def test_a_window_is_scored_by_what_was_answered_when_its_labels_are_in(context, version):
    answer(context, version, week())
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    verdict, _ = judged(context)
    scores, estimate = verdict.figures.performance, verdict.figures.estimate
    assert scores.coverage == 1 and scores.rows == len(week()) == estimate.rows
    metrics = verdict.figures.metrics
    assert metrics.rows == len(week()) and metrics.log_loss == pytest.approx(scores.log_loss)
    assert 0.5 < metrics.auc < 1 and {*metrics.recall} == {*contract.label.classes}
    assert scores.low < scores.log_loss < scores.high and 0.3 < estimate.log_loss < 1.2
    assert verdict.kind not in ("broken contract", "training/serving skew", "stale")


def test_a_window_without_labels_shows_an_estimate(context, version):
    answer(context, version, week())
    ship(context)
    [(window, estimate)] = unlabelled_windows(context).items()
    assert (window, estimate.rows) == (WINDOW.isoformat(), len(week()))
    [waiting] = estimates(context).values()
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    figures = judged(context)[0].figures
    assert unlabelled_windows(context) == {}
    assert msgspec.structs.replace(figures.estimate, low=None, high=None) == estimate
    # The errors of such estimates, on the windows at training, give an interval; it is shown before, too.
    assert waiting.low == figures.estimate.low < figures.outcomes.loss < figures.estimate.high == waiting.high
    assert figures.outcomes.rows == len(week()) and figures.outcomes.checks


def test_labels_that_come_late_are_waited_for_and_then_judged_again(context, version):
    rows = week()
    answer(context, version, rows)
    half, file = rows["carrier"].isin(["UA", "B6"]), context.run / "half.parquet"
    file.parent.mkdir(exist_ok=True)
    rows[half].to_parquet(file)
    ingest_batch(context, WINDOW, WINDOW + WEEK, str(file))
    verdict, action = judged(context)
    assert (verdict.figures.performance.coverage == pytest.approx(half.mean())
            and verdict.kind != "worse on labels")
    assert verdict.figures.metrics is None  # those whose labels are in may be others than the rest
    assert due(context) == []
    rows.sample(frac=1, random_state=0).to_parquet(file)
    ingest_batch(context, WINDOW, WINDOW + WEEK, str(file))
    assert due(context) == [WINDOW]
    figures = judged(context)[0].figures
    assert figures.performance.coverage == 1 and figures.metrics.rows == len(rows) and due(context) == []


def test_labels_may_come_for_ids_before_after_and_twice(context, version):
    """Callers who can't say which event it is get an id, and say later what came of it."""
    rows = week()
    file = context.run / "labels.csv"
    file.parent.mkdir(exist_ok=True)
    labelled = pd.DataFrame({"id": [f"one-{number:x}" for number in range(len(rows))],
                             "arr_delay": rows["arr_delay"]})
    labelled.head(100).to_csv(file, index=False)
    assert store_labels(context, str(file)) == 100  # before the log came
    answer(context, version, rows, flight=None)
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    assert (judged(context)[0].figures.performance.coverage == pytest.approx(100 / len(rows))
            and due(context) == [])
    for _ in range(2):
        labelled.sample(frac=1, random_state=0).to_csv(file, index=False)
        store_labels(context, str(file))
    assert due(context) == [WINDOW]
    scores = judged(context)[0].figures.performance
    assert (scores.coverage, scores.rows) == (1, len(rows)) and due(context) == []
    observed = np.bincount(contract.labels_of(rows), minlength=3) / len(rows)
    assert [scores.observed[name] for name in contract.label.classes] == pytest.approx(observed.tolist())


@pytest.mark.parametrize(("rows", "said"),
                         [(pd.DataFrame({"id": ["one-1"]}), "no column arr_delay"),
                          (pd.DataFrame({"arr_delay": ["5"]}), "no column id"),
                          (pd.DataFrame({"id": ["a", "b"], "arr_delay": ["5", "late"]}),
                           "arr_delay is 'late' in row 1, not of type float"),
                          (pd.DataFrame({"id": [], "arr_delay": []}), "has no row")])
def test_labels_that_can_not_be_read_are_refused(context, rows, said):
    file = context.run / "labels.csv"
    file.parent.mkdir(exist_ok=True)
    rows.to_csv(file, index=False)
    with pytest.raises(PerennialError, match=said):
        store_labels(context, str(file))


def test_labels_that_come_twice_count_once(context, version):
    answer(context, version, week())
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    ingest_batch(context, WINDOW, WINDOW + WEEK + timedelta(days=1))
    assert judged(context)[0].figures.performance.rows == len(week())


def test_callers_that_do_not_say_which_event_it_is_are_scored_by_asking_the_model_again(context, version):
    answer(context, version, week(), flight=None)
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    figures = judged(context)[0].figures
    assert figures.performance.coverage is None
    assert figures.performance.rows == figures.metrics.rows == len(week())


def test_a_column_in_another_unit_is_named_with_the_unit_and_since_when_and_where(context, version):
    rows, friday = week(), datetime(2013, 2, 8)
    celsius = rows["temp"].where((rows["departs"] < friday) | (rows["origin"] != "JFK"),
                                 (rows["temp"] - 32) / 1.8)
    answer(context, version, rows, temp=celsius)
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    verdict, action = judged(context)
    [said] = [reason for reason in verdict.reasons if reason.startswith("temp: sent with another value")]
    assert (verdict.kind, action) == ("broken contract", "page") and context.ledger.state().claims == {}
    assert "ingested = 1.8 x sent +32" in said and "with origin JFK" in said and "since 2013-02-08T0" in said


def test_other_values_than_were_ingested_are_skew_and_teach_nothing(context, version):
    rows = week()
    answer(context, version, rows, dest=rows["dest"].where(rows["carrier"] != "AA", "XXX"))
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    verdict, action = judged(context)
    [said] = [reason for reason in verdict.reasons if reason.startswith("dest: sent with another value")]
    assert action == "page" and "with carrier AA" in said
    assert verdict.kind in ("training/serving skew", "broken contract")


@pytest.mark.parametrize("share", [0.008, 0.011])
def test_a_service_that_answers_otherwise_than_its_model_is_skew(context, version, share):
    model = load_model(contract, fetch_version(context, version))

    def astray(columns):
        found = model.probabilities(columns).copy()
        wrong = np.arange(len(found)) % 1_000 < share * 1_000
        found[wrong] = found[wrong][:, ::-1]
        return found

    answer(context, version, week(), by=astray)
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    verdict, action = judged(context)
    told = [reason for reason in verdict.reasons if "other probabilities than the registered model" in reason]
    assert bool(told) == (share > contract.drift.skew) and (action == "page") == bool(told)


def test_a_callers_clock_a_day_ahead_is_named(context, version):
    rows = week()
    ahead = (np.arange(len(rows)) % 3 == 0) & (rows["departs"] < WINDOW + timedelta(days=6)).to_numpy()
    answer(context, version, rows,
           departs=rows["departs"] + pd.to_timedelta(np.where(ahead, 24, 0), unit="h"))
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    verdict, action = judged(context)
    assert any("happened 24 hours earlier: a caller's clock is wrong" in reason
               for reason in verdict.reasons), verdict.reasons
    assert (verdict.kind, action) == ("broken contract", "page")


def test_labels_that_are_merely_missing_are_nobodys_clock(context, version):
    rows = week()
    answer(context, version, rows)
    file = context.run / "most.parquet"
    file.parent.mkdir(exist_ok=True)
    rows[np.arange(len(rows)) % 3 > 0].to_parquet(file)
    ingest_batch(context, WINDOW, WINDOW + WEEK, str(file))
    assert not any("clock" in reason for reason in judged(context)[0].reasons)


def test_a_week_without_traffic_pages(context, version):
    answer(context, version, week())
    ship(context)
    ingest_batch(context, WINDOW, WINDOW + WEEK)
    ingest_batch(context, WINDOW + WEEK, WINDOW + 2 * WEEK)
    assert due(context) == [WINDOW, WINDOW + WEEK]
    verdict, action = judged(context, WINDOW + WEEK)
    assert (verdict.kind, action) == ("stale", "page") and "no traffic, though" in verdict.reasons[0]


def test_labels_that_stay_away_page(context, version):
    answer(context, version, week())
    ship(context)
    assert stale_labels(context) is None
    answer(context, version, week(WINDOW + WEEK), replica="two")
    ship(context)
    assert stale_labels(context) is None  # they may come any day
    answer(context, version, week(WINDOW + 2 * WEEK), replica="three")
    ship(context)
    said = stale_labels(context)
    assert ((said.kind, said.figures.since) == ("stale", WINDOW.isoformat())
            and "perennial ingest flights" in said.reasons[0])


def test_the_log_of_a_version_that_logged_nothing_is_empty(context, version):
    assert isinstance(context.store, FolderStore)
    found = join_outcomes(context, version, WINDOW)
    assert found.promised.rows == found.joined == found.sums.whole.rows == 0 and not found.can_join
    assert found.sample.empty and found.estimate is None and found.events == 0
    assert WINDOW.strftime(WINDOW_FORMAT) == "2013-02-04T0000"


@pytest.mark.parametrize(("rows", "logged", "can_join", "has_metrics"), [
    (500, 500, True, True), (499, 499, True, False), (500, 625, True, True), (500, 626, True, False),
    (500, 0, False, True), (499, 0, False, False), (0, 0, False, False)])
def test_the_gates_limits_are_held_against_enough_labels_of_enough_answers(rows, logged, can_join,
                                                                           has_metrics):
    """Of the flights' contract: 500 rows, and a coverage of 0.8."""
    labels = np.arange(rows) % 3
    sums = SlicedSums.of(labels, np.full((rows, 3), 1 / 3), {})
    promised = PromisedSums.of(np.full((logged, 3), 1 / 3))
    own = sums if can_join else SlicedSums.empty(3)
    found = metrics_of(contract, Outcomes(promised, own, can_join=can_join), sums)
    assert (found is not None) == has_metrics
