"""Windows of traffic: which are judged, against whom, how often; and how profiles come to the store."""

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Barrier

import numpy as np
import pytest

from contracts.core import windows
from contracts.core.errors import PerennialError
from contracts.core.verdict import Action
from contracts.pumps import contract, readings
from flows.ingest import ingest_batch
from flows.monitor import announce, judge_window
from flows.monitoring.alerts import update_window_alerts
from flows.monitoring.decision import record_and_decide
from flows.monitoring.evaluation import evaluate_window
from flows.monitoring.windows import closed, due, known_labels
from flows.training.version import fit_version
from registry.context import ModelContext, fetch_version, open_model
from registry.events import WindowJudged
from registry.folder_store import FolderStore
from registry.traffic import _put_profile, _records, ship
from service import profiles
from service.atomic_files import write_atomically
from service.model import load_model
from service.profiler import Profiler
from tests.conftest import PUMPS
from tests.verdicts import gate_verdict, window_verdict

WEEK, LAST = timedelta(days=7), datetime(2024, 2, 5)  # the newest labelled window
PASSED = gate_verdict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a champion and a version that passed the gate against it; on five weeks and on six."""
    home = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_STORE", str(home / "store"))
        patch.setenv("PERENNIAL_RUN", str(home / "run"))
        context = open_model(PUMPS)
    ingest_batch(context, datetime(2024, 1, 1), LAST)
    first = fit_version(context)
    ingest_batch(context, LAST, LAST + WEEK)
    second = fit_version(context)
    context.ledger.judged(first, PASSED, None)
    context.ledger.promote(first, expect=None)
    context.ledger.judged(second, PASSED, first)
    return context, first, second


@pytest.fixture
def context(trained, tmp_path, addresses) -> ModelContext:
    shutil.copytree(trained[0].store.folder, tmp_path / "store")
    return open_model(PUMPS)


def profile(context: ModelContext, version: str, start: datetime = LAST, rows: int = 2_800,
            hotter: float = 0.0) -> bytes:
    """What a replica of the version would write of the window's first rows."""
    traffic = readings(start, start + WEEK).head(rows)
    traffic["heat"] += hotter
    columns = contract.columns_of(traffic)
    files = fetch_version(context, version)
    probabilities = np.asarray(load_model(contract, files).probabilities(columns))
    return profiles.to_bytes(profiles.profile_rows(contract, profiles.bins_in(files), columns, probabilities,
                                                   probabilities.argmax(axis=1)))


def leave(context: ModelContext, version: str, content: bytes, start: datetime = LAST, replica: str = "one"):
    path = context.spool / "pumps" / version / start.strftime(windows.WINDOW_FORMAT) / f"{replica}.bin"
    write_atomically(path, content)
    return path


def judged(window: datetime = LAST):
    return judge_window.fn(PUMPS, window.isoformat())


@pytest.mark.parametrize(("window", "remedy"),
                         [("2024-02-07T00:00:00", "starts at 2024-02-05T00:00:00"),
                          ("2024-02-05T00:01:00", "starts at 2024-02-05T00:00:00"),
                          ("2024-02-05", "starts at 2024-02-05T00:00:00"),
                          ("2024-02-12T00:00:00", "name 2024-02-05T00:00:00 or an earlier one"),
                          ("2031-01-06T00:00:00", "ingest pumps"), ("teatime", "as 2013-07-01T00:00:00"),
                          ("9999-12-31T00:00:00", "as 2013"),
                          ("2024-02-05T00:00:00+00:00", "without a zone")])
def test_what_is_no_closed_window_is_refused_and_not_written_down(context, window, remedy):
    before = context.ledger.events()
    with pytest.raises(PerennialError, match=remedy) as refused:
        judge_window.fn(PUMPS, window)
    assert refused.value.exit_code == 2 and context.ledger.events() == before
    assert closed(context, "2024-02-05T00:00:00") == LAST


def test_a_window_judged_twice_has_one_answer(context, trained):
    leave(context, trained[1], profile(context, trained[1]))
    assert judged()[1] == "fine"
    leave(context, trained[1], profile(context, trained[1], hotter=40), replica="two")
    verdict, action = judged()
    assert (verdict.kind, action) == ("fine", "fine") and context.ledger.state().claims == {}
    # A judge that began before the first had ended.
    assert record_and_decide(context, LAST, evaluate_window(context, LAST), known_labels(context)) == "fine"
    assert [event.kind for event in context.ledger.events()].count("window_judged") == 1


def test_an_answer_takes_the_place_of_insufficient_and_keeps_it(context, trained):
    leave(context, trained[1], profile(context, trained[1], rows=10, hotter=40))
    assert judged()[1] == judged()[1] == "insufficient"
    leave(context, trained[1], profile(context, trained[1], hotter=40), replica="two")
    verdict, action = judged()
    assert (verdict.kind, action) == ("input drift", "retrain")
    assert context.ledger.state().windows[LAST.isoformat()].verdict == verdict
    less = WindowJudged(key=LAST.isoformat(), verdict=window_verdict("insufficient"))
    context.ledger.window_judged(less, lambda kept: kept.outcome == "insufficient")
    assert judged() == (verdict, "retrain")
    context.ledger.retrain_finished(LAST.isoformat(), "passed", "v2")
    assert judged() == (verdict, "retrain")
    assert [event.kind for event in context.ledger.events()].count("window_judged") == 2


def test_rows_that_are_corrected_while_a_window_is_judged_have_it_judged_again(context, trained, monkeypatch,
                                                                                tmp_path):
    context = replace(context, contract=replace(contract, key=("measured_at", "vibration")))
    monkeypatch.setattr("flows.monitor.open_model", lambda _: context)
    leave(context, trained[1], profile(context, trained[1]))
    corrected = readings(LAST, LAST + timedelta(days=1))
    corrected.assign(heat=corrected["heat"] + 1).to_parquet(tmp_path / "corrected.parquet")

    def evaluated_meanwhile(context, start):
        verdict = evaluate_window(context, start)
        ingest_batch(context, LAST, LAST + timedelta(days=1), str(tmp_path / "corrected.parquet"))
        return verdict

    with monkeypatch.context() as patch:
        patch.setattr("flows.monitor.evaluate_window", evaluated_meanwhile)
        judged()
    assert due(context) == [LAST]
    update_window_alerts(context)  # what the reconciler does changes nothing
    assert due(context) == [LAST]
    judged()
    assert due(context) == []


def test_the_event_that_begins_a_retraining_is_emitted_while_no_run_works_on_it(context, monkeypatch):
    window, emitted = LAST.isoformat(), []
    monkeypatch.setattr("flows.monitor.emit", lambda model, event, *_: emitted.append(event))
    claim = context.ledger.claim_retraining(window, now=LAST + WEEK, reason="heat", drift=contract.drift,
                                            new_rows=1_000)
    assert claim.is_granted
    drifted = window_verdict("input drift", "heat moved")
    announce(PUMPS, window, drifted, Action.RETRAIN)
    assert emitted == ["perennial.window.retrain"]
    context.ledger.start_retraining(window, "a run", lambda _: False)
    announce(PUMPS, window, drifted, Action.RETRAIN)
    context.ledger.retrain_finished(window, "released", "v2")
    announce(PUMPS, window, drifted, Action.RETRAIN)
    assert emitted == ["perennial.window.retrain"]


def test_drift_must_persist_where_the_contract_says_so(context, trained):
    """Of the last three windows two, the newest among them;
    what was told before does not start a retraining later."""
    context = replace(context, contract=replace(contract, drift=replace(contract.drift, persist=(2, 3))))
    drifted, fine = window_verdict("input drift", "heat moved"), window_verdict("fine")
    starts = [LAST + index * WEEK for index in range(6)]
    said = [record_and_decide(context, start, verdict, known_labels(context))
            for start, verdict in zip(starts, (drifted, fine, fine, drifted, fine, drifted))]
    assert said == ["watch", "fine", "fine", "watch", "fine", "retrain"]
    assert (record_and_decide(context, starts[3], drifted, known_labels(context)) == "watch"
            and list(context.ledger.state().claims) == [starts[5].isoformat()])


def followed(context: ModelContext, champion: str, end: datetime) -> str:
    """A new champion, trained on events up to `end`, whose bins divide the old one's."""
    ingest_batch(context, datetime(2024, 2, 12), end)
    version = fit_version(context)
    context.ledger.judged(version, PASSED, champion)
    context.ledger.promote(version, expect=champion)
    return version


def test_what_moved_a_retraining_at_a_time_is_told_against_the_first_champion(context, trained):
    _, first, _ = trained
    third = followed(context, first, datetime(2024, 2, 19))
    leave(context, third, profile(context, third, hotter=2))
    figures = judged()[0].figures
    assert figures.version == third and figures.cumulative["heat"] > 1 >= figures.cumulative["vibration"]


def test_the_fields_that_the_service_refused_are_named(context, trained):
    _, first, _ = trained
    files = fetch_version(context, first)
    profiler = Profiler(contract, profiles.bins_in(files), first, context.spool, seconds=1_000)
    profiler.bad(np.full(300, np.datetime64(LAST)), ["heat"] * 300 + ["starts"] * 2)
    profiler.close()
    leave(context, first, profile(context, first))
    verdict, action = judged()
    assert action == "page" and verdict.reasons[0].endswith("limit: 5%: heat in 300, starts in 2")


def test_an_open_circuit_breaker_pages(context):
    drifted = window_verdict("input drift", "heat moved")
    context = replace(context, contract=replace(contract, drift=replace(contract.drift, refusals=1)))
    assert record_and_decide(context, LAST, drifted, known_labels(context)) == "retrain"
    context.ledger.retrain_finished(LAST.isoformat(), "failed", "v2")
    assert record_and_decide(context, LAST + 3 * WEEK, drifted, known_labels(context)) == "page"
    assert ("1 challengers in a row were refused" in context.ledger.state().claims[(LAST + 3
                                                                                    * WEEK).isoformat()].why)


def test_a_window_of_few_rows_is_judged_together_with_those_before_it(context, trained):
    for back in range(3):
        start = LAST - back * WEEK
        leave(context, trained[1], profile(context, trained[1], start, rows=90, hotter=40), start)
    ship(context)
    verdict = evaluate_window(context, LAST)
    assert ((verdict.kind, verdict.figures.rows, verdict.figures.since)
            == ("input drift", 270, (LAST - 2 * WEEK).isoformat()))


def test_windows_further_back_than_four_are_not_asked(context, trained):
    for back in (0, 4):
        start = LAST - back * WEEK
        leave(context, trained[1], profile(context, trained[1], start, rows=110, hotter=40), start)
    ship(context)
    verdict = evaluate_window(context, LAST)
    assert (verdict.kind, verdict.figures.rows) == ("insufficient", 110)


def test_a_former_champions_window_is_judged_against_that_champion(context, trained):
    _, first, second = trained
    leave(context, first, profile(context, first, rows=1_000))
    # In the shadow, say: it was never champion.
    leave(context, second, profile(context, second, rows=900, hotter=40))
    ship(context)
    assert due(context) == [LAST]
    context.ledger.promote(second, expect=first)
    assert due(context) == [LAST]
    verdict, action = judged()
    assert (verdict.figures.version, action) == (first, "fine")
    assert due(context) == []


def test_a_week_that_two_champions_answered_is_judged_as_one(context, trained):
    """Its first days alone would be drift in whatever changes
    with the day; what the model answered is not mixed."""
    _, first, _ = trained
    third = followed(context, first, datetime(2024, 2, 26))
    for version, hotter in ((first, 0), (third, 40)):
        leave(context, version, profile(context, version, rows=1_000 + hotter, hotter=hotter))
    verdict, _ = judged()
    checks = verdict.figures.checks
    assert (verdict.figures.version, verdict.figures.rows, verdict.kind) == (third, 2_040, "input drift")
    assert checks["heat"]["values"].drifted and checks["vibration"]["values"].effect < 0.1


@pytest.mark.parametrize("rows", [999, 1_001])
def test_the_version_with_most_of_the_windows_rows_is_judged(context, trained, rows):
    _, first, second = trained
    context.ledger.promote(second, expect=first)
    leave(context, first, profile(context, first, rows=1_000))
    leave(context, second, profile(context, second, rows=rows))
    assert judged()[0].figures.version == (second if rows > 1_000 else first)


def test_a_version_that_the_contract_has_outgrown_is_not_asked(context, trained, monkeypatch):
    _, first, second = trained
    leave(context, first, profile(context, first))
    context.ledger.promote(second, expect=first)
    ship(context)
    monkeypatch.setitem(contract.__dict__, "serving_digest", "of another contract")
    assert due(context) == []


def test_a_grown_profile_replaces_a_smaller_one_and_never_the_other_way(context, trained):
    small, large = (profile(context, trained[1], rows=rows) for rows in (100, 200))
    key = f"profiles/pumps/{trained[1]}/{LAST:{windows.WINDOW_FORMAT}}/one.bin"
    context.store.create(key, b"")  # as an earlier Perennial shipped it
    for content, shipped in ((small, 1), (small, 0), (large, 1), (small, 0)):
        leave(context, trained[1], content)
        assert ship(context) == shipped
    assert _records(context.store.get(key)) == 200


@pytest.mark.parametrize("there", [False, True])
def test_of_two_shippers_at_once_none_fails_and_the_newer_profile_stays(context, trained, monkeypatch, there):
    """Both have read before either writes."""
    old, small, large = (profile(context, trained[1], rows=rows) for rows in (50, 100, 200))
    if there:
        leave(context, trained[1], old)
        ship(context)
    key = f"profiles/pumps/{trained[1]}/{LAST:{windows.WINDOW_FORMAT}}/one.bin"
    both, read, readers = Barrier(2, timeout=10), FolderStore.read, []

    def together(store, asked):
        try:
            return read(store, asked)
        finally:
            if len(readers) < 2:
                readers.append(asked)
                both.wait()

    monkeypatch.setattr(FolderStore, "read", together)
    with ThreadPoolExecutor(2) as pool:
        shipped = sum(pool.map(lambda content: _put_profile(context, key, content), (large, small)))
    assert 1 <= shipped <= 2 and _records(context.store.get(key)) == 200


@pytest.mark.parametrize("junk", [b"", b"junk", "torn"])
def test_junk_in_the_spool_stops_no_window(context, trained, junk, caplog):
    whole = profile(context, trained[1])
    leave(context, trained[1], whole)
    path = leave(context, trained[1], whole[:len(whole) // 2] if junk == "torn" else junk, replica="two")
    with caplog.at_level(logging.WARNING):
        assert judged()[1] == "fine"
    assert ("1 files are not profiles" in caplog.text and str(path.with_suffix(".junk")) in caplog.text
            and not path.exists())
