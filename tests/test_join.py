"""Predictions meet their labels exactly and once, however the log was packed; in bounded memory and disk."""

import json
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from contracts import pumps
from contracts.core.cells import read_cells
from contracts.core.classification import performance_of_sums
from contracts.core.errors import PerennialError
from contracts.core.outcome_sums import OutcomeSums
from contracts.core.schema import column
from contracts.core.sources import SqlQuery
from contracts.core.windows import WINDOW_FORMAT
from contracts.pumps import Pumps
from flows.ingest import ingest_batch
from flows.monitoring import join, sample, spill
from flows.monitoring.event_keys import EventKey
from flows.monitoring.logged import LoggedPredictions, Spans
from flows.monitoring.outcomes import INGESTED, Outcomes, join_outcomes
from flows.monitoring.sent_labels import store_labels
from registry import data, layout
from registry.context import ModelContext, open_model
from registry.predictions import parquet, read_predictions
from registry.settings import JOIN_MEMORY, join_memory_mb
from registry.traffic import ship
from service.prediction_log import SUFFIX, PredictionLog
from service.schema import RequestSchema
from tests.test_registry import moto, s3  # noqa: F401  fixtures

START, VERSION = datetime(2024, 2, 12), "4f1c"
LARGE = 2**53  # from which on a float64 skips integers


class Readings(Pumps):
    pump: int = column(description="number of the pump", source="made up", ge=0)
    site: str = column(description="where the pump is", source="made up", nullable=True)


contract = replace(pumps.contract, schema=Readings, key=("measured_at", "pump"),
                   gate=replace(pumps.contract.gate, slices=("starts",)))
by_site = replace(contract, key=("measured_at", "site"))


@pytest.fixture
def context(addresses) -> ModelContext:
    return replace(open_model("pumps"), contract=contract)


def rows(times: list, ids: list, stopped: list | None = None) -> pd.DataFrame:
    """Readings with these keys."""
    n = len(times)
    return pd.DataFrame({
        "measured_at": np.array(times, "datetime64[us]"), "vibration": np.linspace(1, 9, n), "heat": 60.0,
        "starts": np.arange(n) % 5, "stopped": stopped or [False] * n, "pump": ids, "site": "north"})


def ingest(context: ModelContext, frame: pd.DataFrame) -> None:
    data.append(context.store, context.contract, frame, START, START + timedelta(days=7))


def request(context: ModelContext, frame: pd.DataFrame) -> tuple[dict, np.ndarray]:
    """The columns of a request with these rows, as the service takes them from its body, and an answer."""
    sent = context.contract.sent_columns
    records = [{name: value.isoformat() if name == "measured_at" else None if pd.isna(value) else value
                for name, value in zip(sent, row)}
               for row in zip(*(frame[name].astype(object) for name in sent))]
    requests = RequestSchema(context.contract)
    columns = requests.columns(requests.parse(json.dumps({"records": records}).encode()))
    risk = np.linspace(0.1, 0.6, len(frame), dtype=np.float32)
    return columns, np.column_stack([1 - risk, risk])


def log(context: ModelContext, frame: pd.DataFrame, replica: str = "one", first: int = 0,
        shipped: bool = True) -> None:
    """Have a replica answer these rows."""
    columns, probabilities = request(context, frame)
    written = PredictionLog(context.contract, context.spool / context.name / VERSION, replica)
    written._turn = first
    written.add(START.strftime(WINDOW_FORMAT), np.arange(first, first + len(frame)), columns, probabilities)
    written.save()
    if shipped:
        ship(context)


def joined(context: ModelContext) -> Outcomes:
    outcomes = join_outcomes(context, VERSION, START)
    assert [*(context.run / spill.FOLDER).iterdir()] == []
    return outcomes


def known_labels(outcomes: Outcomes) -> dict[str, int]:
    return {row.id: row.label for row in outcomes.sample.itertuples() if not pd.isna(row.label)}


def test_ids_of_64_bits_meet_their_own_events(context):
    ids = [LARGE, LARGE + 1, LARGE + 2, 2**63 - 1, 2**63 - 2]
    events = rows([START] * 5, ids, [True, False, True, True, False])
    ingest(context, events)
    log(context, events)
    outcomes = joined(context)
    assert (outcomes.promised.rows, outcomes.joined, outcomes.sums.whole.rows) == (5, 5, 5)
    assert known_labels(outcomes) == {"one-0": 1, "one-1": 0, "one-2": 1, "one-3": 1, "one-4": 0}
    log(context, rows([START], [LARGE + 3]), first=5)
    assert joined(context).joined == 5


def test_ids_beside_missing_ones_stay_exact(context):
    """In a batch with one caller who leaves the number out, the others' would be floats."""
    ingest(context, rows([START] * 2, [LARGE + 1, LARGE + 2], [True, False]))
    log(context, rows([START] * 3, pd.array([LARGE + 2, None, LARGE + 1], "Int64")))
    outcomes = joined(context)
    assert known_labels(outcomes) == {"one-0": 0, "one-2": 1}
    assert (outcomes.joined, outcomes.promised.rows, outcomes.can_join) == (2, 3, True)


def test_times_meet_to_the_microsecond(context):
    times = [START + timedelta(microseconds=us) for us in (0, 1, 999_999, 1_000_000)]
    ingest(context, rows(times, [7] * 4, [False, True, True, False]))
    log(context, rows([*times, START + timedelta(microseconds=2)], [7] * 5))
    assert known_labels(joined(context)) == {"one-0": 0, "one-1": 1, "one-2": 1, "one-3": 0}


def test_a_missing_key_is_no_key(context):
    context = replace(context, contract=by_site)
    ingest(context, rows([START] * 2, [1, 2]).assign(site=["north", None]))
    sent = rows([START] * 2, [1, 2]).assign(site=["north", None])
    log(context, sent)
    outcomes = joined(context)
    assert (outcomes.joined, outcomes.promised.rows) == (1, 2)
    assert [*known_labels(outcomes)] == ["one-0"]


def test_nobody_names_an_event(context):
    ingest(context, rows([START], [1]))
    log(context, rows([START] * 2, pd.array([None, None], "Int64")))
    outcomes = joined(context)
    assert (outcomes.joined, outcomes.can_join, outcomes.events) == (0, False, 1)
    assert outcomes.sample_joined.empty and len(outcomes.sample) == 2


def test_logs_that_were_packed_twice_count_once(context, monkeypatch):
    events = rows([START + timedelta(seconds=s) for s in range(90)], [*range(90)])
    ingest(context, events)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # a crash before the logs are removed
    for first in (0, 30, 60):
        log(context, events.iloc[first:first + 30], first=first)
    files = context.store.list(layout.traffic(layout.PREDICTIONS, "pumps", VERSION, START))
    assert len(files) == 3 and sum(len(table) for table in read_predictions(context, files)) == 180
    outcomes = joined(context)
    assert (outcomes.promised.rows, outcomes.joined, len(outcomes.sample)) == (90, 90, 90)
    once = joined_of(context, [files_of(context, files)])
    assert outcomes.promised.promised == pytest.approx(once.sums.promised)


def files_of(context: ModelContext, keys: list[str]) -> pa.Table:
    return pa.concat_tables([*read_predictions(context, keys)]).unify_dictionaries()


def joined_of(context: ModelContext, portions: list[pa.Table]) -> LoggedPredictions:
    """A pass over portions of predictions."""
    with spill.spill(context.run) as opened:
        logged = LoggedPredictions(context.contract, opened)
        for portion in portions:
            logged.add(portion)
        logged.sample.table()
        return logged


def test_the_sample_is_the_same_however_the_log_is_divided(context, monkeypatch):
    monkeypatch.setattr(sample, "SAMPLE_ROWS", 40)
    monkeypatch.setattr(sample.Sample.__init__, "__defaults__", (40,))
    events = rows([START + timedelta(seconds=s) for s in range(400)], [*range(400)])
    for first, replica in ((0, "one"), (0, "two")):
        log(context, events, replica, first)
    whole = files_of(context, context.store.list(
        layout.traffic(layout.PREDICTIONS, "pumps", VERSION, START)))
    shuffled = whole.take(np.random.default_rng(0).permutation(len(whole)))
    cuts = [0, 1, 350, 351, 700, 800]
    found = []
    for portions in ([whole], [whole.slice(a, b - a) for a, b in pairwise(cuts)],
                     [shuffled.slice(a, b - a) for a, b in pairwise(cuts)]):
        logged = joined_of(context, portions)
        assert logged.sums.rows == 800
        table = logged.sample.table()
        found.append({(logged.replicas.names[code], number) for code, number in zip(
            table["r"].to_pylist(), table["n"].to_pylist())})
    assert len(found[0]) == 40 and found[0] == found[1] == found[2]
    assert {replica for replica, _ in found[0]} == {"one", "two"}


@pytest.mark.parametrize("seed", range(3))
def test_numbers_in_any_order_and_repeated_are_each_taken_once(context, seed):
    """Portions that overlap in every way, as several replicas' would if they were packed again and again."""
    rng = np.random.default_rng(seed)
    numbers, names = rng.integers(0, 300, 1_000), np.array(["one", "two", "three"], object)
    replicas = names[rng.integers(0, 3, 1_000)]
    table = pa.table({"replica": pa.array(replicas).dictionary_encode(), "number": numbers,
                      "measured_at": pa.array(np.full(1_000, START, "datetime64[us]")),
                      "pump": numbers, "starts": np.zeros(1_000),
                      **contract.label.probability_columns(np.full((1_000, 2), 0.5, np.float32))})
    cuts = [0, *np.sort(rng.integers(0, 1_000, 9)).tolist(), 1_000]
    logged = joined_of(context, [table.slice(a, b - a) for a, b in pairwise(cuts)])
    distinct = {*zip(replicas, numbers.tolist())}
    assert logged.sums.rows == len(distinct)
    assert logged.numbers == {name: (min(n for r, n in distinct if r == name),
                                     max(n for r, n in distinct if r == name)) for name in names}


def test_spans_that_touch_do_not_overlap():
    spans = Spans()
    assert [spans.add(*span) for span in ((5, 9), (0, 4), (10, 10), (20, 30))] == [False] * 4
    assert spans.add(30, 40) and spans.add(4, 5) and not spans.add(41, 41) and not spans.add(11, 19)
    assert spans.add(-5, 100) and spans.ends == (-5, 100)


def test_of_several_events_with_one_key_the_last_counts(context):
    """A table may hold some from before the contract had its key."""
    times = [START, START + timedelta(seconds=1)]
    by_number = replace(context.contract, key=("pump",))
    before = replace(context, contract=by_number)
    frame = rows(times, [1, 2], [False, False])
    ingest(before, frame)
    later = rows([START + timedelta(hours=1), START], [1, 3], [True, False])
    address = f"{context.store.address}/{layout.data_table('pumps')}"
    write_deltalake(address, pa.Table.from_pandas(later, preserve_index=False), mode="append")
    log(before, rows(times, [1, 2]))
    version = data.newest(before.store, "pumps")
    newest = replace(version, version=version.version + 1)
    outcomes = join_with(before, newest)
    assert (outcomes.joined, outcomes.sums.whole.rows) == (2, 2)
    assert known_labels(outcomes) == {"one-0": 1, "one-1": 0}
    assert len(outcomes.sample_joined) == 2
    times_later = outcomes.sample_joined.set_index("id")[f"measured_at{INGESTED}"]
    assert times_later["one-0"] == START + timedelta(hours=1)


def join_with(context: ModelContext, version: data.DataVersion) -> Outcomes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "newest", lambda *_: version)
        return joined(context)


def test_an_older_replicas_log_meets_events_as_exactly_as_it_can(context):
    """It holds integers as floats and times in seconds."""
    ids = [5, LARGE - 1, LARGE + 2]
    times = [START + timedelta(seconds=s, microseconds=250_000) for s in range(3)]
    ingest(context, rows(times, ids, [True, True, True]))
    columns = contract.columns_of(rows(times, ids), contract.sent_columns)
    table = pa.table({"id": [f"old-{n}" for n in range(3)], **columns,
                      **contract.label.probability_columns(np.full((3, 2), 0.5, np.float32))})
    folder = layout.traffic(layout.PREDICTIONS, "pumps", VERSION, START)
    context.store.create(f"{folder}old.parquet", parquet(table))
    outcomes = joined(context)
    assert known_labels(outcomes) == {"old-0": 1, "old-1": 1}  # the third may be one of several numbers
    log(context, rows(times[:1], [5]), "new")
    assert set(known_labels(joined(context))) == {"old-0", "old-1", "new-0"}


def test_exact_and_older_logs_are_not_packed_together(context):
    frame = rows([START], [LARGE + 1])
    ingest(context, frame.assign(stopped=True))
    columns, probabilities = request(context, frame)
    older = contract.columns_of(rows([START], [4]), contract.sent_columns)
    for replica, sent in (("old", older), ("new", columns)):
        written = PredictionLog(contract, context.spool / "pumps" / VERSION, replica)
        written.add(START.strftime(WINDOW_FORMAT), np.arange(1), sent, probabilities)
        written.save()
    assert ship(context) == 2 and not [*context.spool.rglob(f"*{SUFFIX}")]
    assert known_labels(joined(context)) == {"new-0": 1}


@pytest.mark.parametrize("kind", ["csv", "parquet", "sqlite", "arrow"])
def test_large_ids_beside_missing_ones_are_ingested_exactly(context, kind, tmp_path):
    ids = pd.array([LARGE + 1, None, 2**63 - 1], "Int64")
    frame = rows([START + timedelta(hours=h) for h in range(3)], ids)
    allowed = replace(contract, bad_rows=0.5)
    file = None
    match kind:
        case "csv":
            frame.to_csv(file := tmp_path / "rows.csv", index=False)
        case "parquet":
            frame.to_parquet(file := tmp_path / "rows.parquet")
        case "sqlite":
            address = f"sqlite:///{tmp_path / 'rows.db'}"
            with sqlite3.connect(tmp_path / "rows.db") as connection:
                frame.astype({"measured_at": str}).to_sql("readings", connection, index=False)
            connection.close()
            allowed = replace(allowed, source=SqlQuery(
                "SELECT * FROM readings WHERE measured_at >= :start AND measured_at < :end", address))
        case "arrow":
            allowed = replace(allowed, source=lambda *_: iter([pa.RecordBatch.from_pandas(frame)]))
    context = replace(context, contract=allowed)
    version, verdict = ingest_batch(context, START, START + timedelta(days=7), file and str(file))
    assert (version.rows, verdict.figures.bad) == (2, 1)
    assert data.read(context.store, version)["pump"].tolist() == [LARGE + 1, 2**63 - 1]


@pytest.mark.parametrize(("cell", "expected"), [
    (str(LARGE + 1), LARGE + 1), (LARGE + 1, LARGE + 1), (str(-LARGE - 1), -LARGE - 1),
    (str(2**63 - 1), 2**63 - 1), (str(2**63), None), (str(-2**63), -2**63), (str(-2**63 - 1), None),
    ("1e3", 1_000), ("1e300", None), ("inf", None), ("1.5", None), ("x", None), (2.0, 2)])
def test_integers_are_read_exactly_whatever_else_is_in_the_column(cell, expected):
    for others in ([], [None], ["5"], ["1.5", "7"]):
        read = read_cells(pd.Series([cell, *others], dtype=object), int)
        assert (None if pd.isna(read[0]) else read[0]) == expected, others


def made_up(n: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events, and predictions of most of them, some of none, and some without a number."""
    rng = np.random.default_rng(seed)
    times = [START + timedelta(microseconds=int(us)) for us in rng.integers(0, 10**11, n)]
    events = rows(times, (LARGE + np.arange(n)).tolist(), (rng.random(n) < 0.3).tolist())
    sent = events.sample(n, replace=True, random_state=seed).reset_index(drop=True)
    sent["pump"] = sent["pump"].astype("Int64")
    sent.loc[rng.random(n) < 0.1, "pump"] = None
    sent.loc[rng.random(n) < 0.1, "pump"] = 1
    return events, sent


@pytest.mark.parametrize(("address", "passes"), [("folder", 1), ("folder", 7), ("s3", 1)])
def test_sums_are_those_of_pandas(address, passes, context, request, tmp_path, monkeypatch):  # noqa: F811
    """However many passes the memory asks for."""
    monkeypatch.setattr(join.OutcomeQuery, "passes", lambda *_: passes)
    if address == "s3":
        monkeypatch.setenv("PERENNIAL_STORE", request.getfixturevalue("s3"))
        context = replace(open_model("pumps"), contract=contract)
    events, sent = made_up(2_000, 1)
    ingest(context, events)
    columns, probabilities = request_of(context, sent)
    for first in range(0, 2_000, 700):
        log(context, sent.iloc[first:first + 700], "abc", first)
    by_id = pd.DataFrame({"id": [f"abc-{n:x}" for n in range(0, 2_000, 3)], "stopped": True})
    by_id.to_csv(tmp_path / "labels.csv", index=False)
    store_labels(context, str(tmp_path / "labels.csv"))
    outcomes = joined(context)

    known = sent.assign(row=range(2_000)).merge(
        events[["measured_at", "pump", "stopped"]].astype({"pump": "Int64"}), on=["measured_at", "pump"],
        how="left", suffixes=("", INGESTED)).sort_values("row")
    stopped = known[f"stopped{INGESTED}"].astype("boolean")
    has_event = stopped.notna().to_numpy()
    stopped[~has_event & (np.arange(2_000) % 3 == 0)] = True
    labels, found = stopped.dropna().astype(int).to_numpy(), stopped.notna().to_numpy()
    answered = np.concatenate([request_of(context, sent.iloc[first:first + 700])[1]
                               for first in range(0, 2_000, 700)])
    assert outcomes.joined == has_event.sum() and 0 < has_event.sum() < found.sum() < 2_000
    expected = performance_of_sums(contract, OutcomeSums.of(labels, answered[found]), found.mean())
    performance = performance_of_sums(contract, outcomes.sums.whole, outcomes.coverage)
    assert performance.rows == expected.rows and performance.coverage == pytest.approx(expected.coverage)
    for name in ("log_loss", "low", "high", "gap"):
        assert getattr(performance, name) == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert performance.observed == pytest.approx(expected.observed)
    assert performance.expected == pytest.approx(expected.expected, rel=1e-6)
    starts = sent["starts"].to_numpy()[found]
    assert {float(name): part.rows for name, part in outcomes.sums.slices["starts"].items()} == dict(
        zip(*np.unique(starts, return_counts=True)))
    assert outcomes.estimate.rows == 2_000


def request_of(context: ModelContext, frame: pd.DataFrame) -> tuple[dict, np.ndarray]:
    return request(context, frame)


def test_a_pass_that_does_not_fit_is_divided(context, monkeypatch):
    events, sent = made_up(300, 2)
    ingest(context, events)
    log(context, sent)
    once, asked, sql = joined(context), [], join.OutcomeQuery.sql

    def fails_until(enough):
        def query(self, passes, index):
            asked.append((passes, index))
            return sql(self, passes, index) if passes >= enough or index == 0 else "SELECT 1 FROM t_gone"
        return query

    monkeypatch.setattr(join, "MEMORY_FAULTS", (duckdb.CatalogException,))
    monkeypatch.setattr(join, "is_out_of_memory", lambda _: True)
    monkeypatch.setattr(join.OutcomeQuery, "passes", lambda *_: 2)
    monkeypatch.setattr(join.OutcomeQuery, "sql", fails_until(8))
    again = joined(context)
    assert asked == [(2, 0), (2, 1), *((8, index) for index in range(8))]
    assert (again.joined, again.sums.whole.rows) == (once.joined, once.sums.whole.rows)
    assert again.sums.whole.loss == pytest.approx(once.sums.whole.loss)
    monkeypatch.setattr(join.OutcomeQuery, "sql", fails_until(1_000))
    with pytest.raises(duckdb.CatalogException):
        join_outcomes(context, VERSION, START)
    assert asked[-1][0] == 512


@pytest.mark.parametrize(("key", "size_mb", "expected"), [
    (("measured_at", "pump"), 2_399, 1), (("measured_at", "pump"), 2_401, 2),
    (("measured_at", "site"), 599, 1), (("measured_at", "site"), 601, 2)])
def test_passes_follow_from_the_size(context, key, size_mb, expected):
    by = EventKey(replace(contract, key=key))
    with spill.spill(context.run) as opened:
        table = opened.table("events")
        table.size_mb = size_mb
        assert join.OutcomeQuery(by, None, table, opened.table("labels")).passes(400) == expected
        assert join.OutcomeQuery(by, None, None, table).passes(400) == 1 + int(size_mb / 2_400)


def labels_file(path: Path, labels: dict[str, bool | None]) -> str:
    pd.DataFrame({"id": [*labels], "stopped": [*labels.values()]}).to_csv(path, index=False)
    return str(path)


def test_of_labels_that_are_sent_twice_the_first_holds(context, tmp_path):
    ingest(context, rows([START], [1]))
    log(context, rows([START] * 3, pd.array([None] * 3, "Int64")), "ab")
    for labels in ({"ab-0": True, "ab-1": True}, {"ab-1": False, "ab-0": False, "ab-2": False}):
        store_labels(context, labels_file(tmp_path / "labels.csv", labels))
    assert known_labels(joined(context)) == {"ab-0": 1, "ab-1": 1, "ab-2": 0}
    repeated = pd.DataFrame({"id": ["ab-2", "ab-2"], "stopped": [True, False]})
    repeated.to_csv(tmp_path / "labels.csv", index=False)
    store_labels(context, str(tmp_path / "labels.csv"))
    assert known_labels(joined(context))["ab-2"] == 0


def test_an_events_label_goes_before_one_that_was_sent(context, tmp_path):
    ingest(context, rows([START], [1], [True]))
    log(context, rows([START] * 2, [1, 2]), "ab")
    store_labels(context, labels_file(tmp_path / "labels.csv", {"ab-0": False, "ab-1": False}))
    outcomes = joined(context)
    assert known_labels(outcomes) == {"ab-0": 1, "ab-1": 0} and outcomes.joined == 1


def test_labels_of_other_replicas_and_numbers_are_not_read(context, tmp_path, monkeypatch):
    ingest(context, rows([START], [1]))
    log(context, rows([START] * 2, pd.array([None] * 2, "Int64")), "ab", first=100)
    for ids in (["ab-64", "other-1"], ["ab-1"], [f"more{n}-1" for n in range(300)], ["order 7", "../x-1"]):
        store_labels(context, labels_file(tmp_path / "labels.csv", dict.fromkeys(ids, True)))
    read, get = [], context.store.get
    monkeypatch.setattr(context.store, "get", lambda key: read.append(key) or get(key))
    assert known_labels(joined(context)) == {"ab-64": 1}
    labels = [key for key in read if key.startswith("labels/")]
    assert len(labels) == 1 and labels[0].startswith("labels/pumps/ab/64-64-")
    stored = context.store.list("labels/")
    assert len(stored) == 1 + 1 + 1 + 1 + 1, stored  # too many replicas, or strange ones, share a file


def test_a_whole_label_file_of_strange_ids_is_kept(context, tmp_path, monkeypatch):
    monkeypatch.setattr("registry.labels.PART_ROWS", 2)
    ingest(context, rows([START], [1]))
    log(context, rows([START], pd.array([None], "Int64")), "x y")
    ids = [*(f"order {n}" for n in range(5)), "x y-0"]
    store_labels(context, labels_file(tmp_path / "labels.csv", dict.fromkeys(ids, True)))
    stored = context.store.list("labels/")
    assert len(stored) == 3 and known_labels(joined(context)) == {"x y-0": 1}


def test_clocks_are_judged_by_a_sample_of_those_that_miss(context, monkeypatch):
    monkeypatch.setattr(sample.Sample.__init__, "__defaults__", (100,))
    times = [START + timedelta(days=1, minutes=m) for m in range(600)]
    ingest(context, rows(times, [*range(600)]))
    ahead = [t + timedelta(hours=12) if n % 2 else t for n, t in enumerate(times)]
    log(context, rows(ahead, [*range(600)]))
    outcomes = joined(context)
    assert outcomes.joined == 300 and outcomes.shifted == {"12 hours earlier": 300}


def test_without_a_clock_that_is_wrong_nothing_is_found_later(context):
    times = [START + timedelta(days=1, minutes=m) for m in range(60)]
    ingest(context, rows(times, [*range(60)]))
    log(context, rows([*times[:30], *times[:30]], [*range(30), *range(100, 130)]))
    assert joined(context).shifted == {}


def test_a_join_that_fails_leaves_nothing_on_disk(context, monkeypatch):
    ingest(context, rows([START], [1]))
    log(context, rows([START], [1]))
    monkeypatch.setattr("flows.monitoring.outcomes.join", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        join_outcomes(context, VERSION, START)
    assert [*(context.run / spill.FOLDER).iterdir()] == []


HOLD = """
import sys, time
from pathlib import Path
from flows.monitoring.spill import spill
with spill(Path(sys.argv[1])) as opened:
    (opened.folder / "rows").write_bytes(b"0" * 1_000)
    print(opened.folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_is_removed_by_the_next_and_nothing_else(context):
    command = [sys.executable, "-c", HOLD, str(context.run)]
    held = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        folders = [Path(process.stdout.readline().strip()) for process in held]
        assert all((folder / "rows").exists() for folder in folders)
        held[0].send_signal(signal.SIGKILL)
        held[0].wait()
        with spill.spill(context.run) as opened:
            assert {*(context.run / spill.FOLDER).iterdir()} == {folders[1], opened.folder}
            assert (folders[1] / "rows").exists()
    finally:
        for process in held:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.mark.parametrize(("text", "expected"),
                         [("", 400), ("300", 300), ("299", None), ("1GB", None), ("-5", None)])
def test_the_memory_of_joins_is_a_setting(text, expected, monkeypatch):
    monkeypatch.setenv(JOIN_MEMORY, text)
    if expected:
        assert join_memory_mb() == expected
        return
    with pytest.raises(PerennialError, match=f"{JOIN_MEMORY} is '{text}'; it must be a number of MB, 300"):
        join_memory_mb()


def test_too_little_memory_says_what_to_set(context, monkeypatch):
    monkeypatch.setenv(JOIN_MEMORY, "300")
    with pytest.raises(PerennialError, match=f"300 MB don't suffice .* set {JOIN_MEMORY}"), spill.spill(
            context.run) as opened:
        opened.connection.execute("SET memory_limit = '1MB'")
        opened.connection.execute("SELECT list(i) FROM range(10_000_000) t(i)").fetchall()
    assert [*(context.run / spill.FOLDER).iterdir()] == []
