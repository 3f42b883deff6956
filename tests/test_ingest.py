"""A batch from a file to a data version: what is read,
what is set aside, and what is refused in plain words."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from contracts.core.errors import CheckFailed, PerennialError
from contracts.pumps import readings
from flows.ingest import batches, ingest_batch, read_batch
from flows.training.judging import champion_probabilities
from flows.training.version import fit_version, judged_from
from registry import bad_rows, data, models
from registry.context import open_model
from registry.events import IngestRefused
from tests.conftest import PUMPS

START, END = datetime(2024, 1, 1), datetime(2024, 1, 3)


@pytest.fixture
def context(addresses):
    return open_model(PUMPS)


def spoiled(row: int, **values) -> pd.DataFrame:
    """Two days of readings, one of them with these cells."""
    rows = readings(START, END).astype(object)
    rows.loc[row, list(values)] = list(values.values())
    return rows


def written(folder, rows: pd.DataFrame, suffix: str = ".csv") -> str:
    path = folder / f"rows{suffix}"
    rows.to_csv(path, index=False) if suffix == ".csv" else rows.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_gives_what_the_source_gives(context, addresses, suffix):
    rows = readings(START, END + timedelta(days=2))
    version, verdict = ingest_batch(context, START, END, written(addresses, rows, suffix))
    assert verdict.passed and data.read(context.store, version).equals(take_in_source(context))


def take_in_source(context) -> pd.DataFrame:
    other = replace(context, contract=replace(context.contract, name="other"))
    return data.read(context.store, ingest_batch(other, START, END)[0])


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("measured_at", "soon", "measured_at: type datetime without a zone, found soon"),
     ("measured_at", "2024-01-01T12:00:00Z",
      "measured_at: type datetime without a zone, found 2024-01-01T12:00:00Z"),
     ("measured_at", None, "measured_at: not_nullable"),
     ("vibration", "strong", "vibration: type float, found strong"), ("starts", None, "starts: type int"),
     ("starts", 1.5, "starts: type int, found 1.5"), ("stopped", "maybe", "stopped: type bool, found maybe"),
     ("stopped", None, "stopped: type bool")])
def test_one_odd_cell_is_set_aside_and_the_rest_goes_through(context, addresses, column, value, said):
    version, verdict = ingest_batch(context, START, END, written(addresses, spoiled(7, **{column: value})))
    assert verdict.passed and (version.rows, verdict.figures.bad) == (799, 1)
    assert [rule.count for rule in verdict.figures.by_rule] == [1]
    assert bad_rows.read(context.store, context.name)["reasons"][0].startswith(said)
    assert dict(data.read(context.store, version).dtypes) == dict(take_in_source(context).dtypes)


def test_odd_cells_of_several_batches_are_kept_in_one_table(context, addresses):
    ingest_batch(context, START, END, written(addresses, spoiled(7, starts="many", heat="hot", stopped=None)))
    later = readings(END, END + timedelta(days=1))
    later.loc[3, "vibration"] = 500.0
    ingest_batch(context, END, END + timedelta(days=1), written(addresses, later, ".parquet"))
    assert len(bad_rows.read(context.store, context.name)) == 2


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_without_a_time_are_counted_and_refuse_the_batch_above_the_limit(context, addresses, suffix):
    rows = readings(START, END)
    rows.loc[:7, "measured_at"] = pd.NaT
    # Of 800: the limit itself.
    assert ingest_batch(context, START, END, written(addresses, rows, suffix))[1].figures.bad == 8
    rows.loc[:8, "measured_at"] = pd.NaT
    with pytest.raises(
            CheckFailed,
            match=r"9 of 800 rows are bad.*measured_at: not_nullable, 9 rows.*rows.*ingest it again"):
        ingest_batch(context, START, END, written(addresses, rows, suffix))


def test_a_key_is_stored_once_a_batch(context, addresses):
    keyed = replace(context, contract=replace(context.contract, key=("measured_at", "vibration")))
    rows = readings(START, END)
    rows = pd.concat([rows, rows.head(3).assign(starts=0)])
    version, verdict = ingest_batch(keyed, START, END, written(addresses, rows))
    assert (version.rows == 800
            and data.read(context.store, version)["starts"].equals(readings(START, END)["starts"]))
    assert set(bad_rows.read(context.store, context.name)["reasons"]) == {"row: an earlier row has its key"}
    assert verdict.figures.by_rule[0].count == 3


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_unit_that_a_file_states_must_be_the_contracts(context, addresses, suffix):
    def stating(unit: str) -> str:
        rows = readings(START, END)
        rows.attrs["units"] = {"heat": unit}
        return written(addresses,
                       rows.rename(columns={"heat": f"heat [{unit}]"}) if suffix == ".csv" else rows, suffix)

    assert ingest_batch(context, START, END, stating("°C"))[1].passed
    with pytest.raises(CheckFailed, match="heat: unit '°F', rule: '°C'"):
        ingest_batch(context, START, END, stating("°F"))


@pytest.mark.parametrize(("name", "content", "said"),
                         [("empty.csv", b"", "empty.csv can't be read as .csv"),
                          ("junk.csv", b"\x9e\xff\x00", "junk.csv can't be read as .csv"),
                          ("junk.parquet", b"hello", "junk.parquet can't be read as .parquet"),
                          ("rows.txt", b"a,b", "rows.txt is a '.txt'; name a .parquet"),
                          ("bare.csv", b"vibration\n1\n", "measured_at: column missing.*correct .*bare.csv"),
                          ("head.csv", ",".join(readings(START, START)).encode(),
                           "the batch has no rows.*correct .*head.csv")])
def test_a_file_that_is_no_batch_says_what_to_mend(context, addresses, name, content, said):
    (addresses / name).write_bytes(content)
    with pytest.raises(PerennialError, match=said):
        ingest_batch(context, START, END, str(addresses / name))
    assert data.versions(context.store, context.name) == []


def test_times_with_a_zone_are_refused_with_examples(context, addresses):
    rows = readings(START, END)
    aware = rows.assign(measured_at=rows["measured_at"].dt.tz_localize("UTC"))
    for suffix in (".csv", ".parquet"):
        with pytest.raises(CheckFailed, match=r"measured_at: type datetime without a zone, found .*, 800 rows, such as 2024-01-01 .*\+00:00"):  # noqa: E501
            ingest_batch(context, START, END, written(addresses, aware, suffix))
    with pytest.raises(PerennialError, match=r"has a zone.*name it as 2024-01-01 00:00:00"):
        ingest_batch(context, START.replace(tzinfo=UTC), END)


def test_labels_that_have_not_matured_are_refused(context):
    matured = context.now().replace(microsecond=0) - context.contract.label.matures
    with pytest.raises(PerennialError, match=r"mature after 12:00:00; name --end .* or earlier"):
        ingest_batch(context, matured - timedelta(days=2), matured + timedelta(minutes=1))
    assert ingest_batch(context, matured - timedelta(days=2), matured)[1].passed


def test_a_gap_before_a_batch_is_said(context):
    ingest_batch(context, START, END)
    assert ingest_batch(context, END, END + timedelta(days=1))[1].reasons == ()
    verdict = ingest_batch(context, END + timedelta(days=2), END + timedelta(days=3))[1]
    assert verdict.passed and "--start 2024-01-04T00:00:00 --end 2024-01-05T00:00:00" in verdict.reasons[0]


def test_older_events_ingested_later_move_no_window(context, monkeypatch):
    """A backfill: the newest window, the default start and
    the champion's guard stay where the newest events are."""
    newest = datetime(2024, 2, 26)
    ingest_batch(context, datetime(2024, 1, 15), newest)
    version = fit_version(context)
    source = ingest_batch(context, START, datetime(2024, 1, 15))[0]
    assert (source.start, source.end) == (START.isoformat(), newest.isoformat())
    assert (source.batch_start, source.batch_end) == (START.isoformat(), "2024-01-15T00:00:00")
    assert judged_from(context, source) == newest - context.contract.gate.window
    with pytest.raises(PerennialError, match="nothing fresh is left"):
        champion_probabilities(context, version,
                               data.read(context.store, source, judged_from(context, source)))
    later = fit_version(context)
    assert models.manifest(context.store, context.name, later)["data"]["end"] == newest.isoformat()
    monkeypatch.setattr("flows.ingest.read_source",
                        lambda *given: readings(given[1], START + (newest - START) * 2).head(9))
    assert "2024-02-25T23:5" in ingest_batch(context)[0].batch_start


def test_too_few_rows_on_a_side_of_the_gates_window_are_named(context, monkeypatch):
    rows = readings(START, datetime(2024, 1, 9))
    rows = rows[(rows["measured_at"] >= datetime(2024, 1, 2)) | (np.arange(len(rows)) < 1)]
    monkeypatch.setattr("flows.ingest.read_source", lambda *_: rows)
    ingest_batch(context, START, datetime(2024, 1, 9))
    with pytest.raises(PerennialError,
                       match=r"pumps: 1 of 2801 rows are older than the gate's window.*ingest more first"):
        fit_version(context)
    monkeypatch.setattr("flows.ingest.read_source",
                        lambda *_: readings(datetime(2024, 1, 9), datetime(2024, 1, 10)))
    ingest_batch(context, datetime(2024, 1, 9), datetime(2024, 3, 1))
    fit_version(context)  # that nothing came until March is no reason to look for the newest week there


def test_a_file_is_cut_to_the_window_but_for_unreadable_times(context, addresses):
    file = written(addresses, spoiled(7, measured_at="soon"))
    assert len(read_batch(context, START, START + timedelta(days=1), file)) == 400


@pytest.fixture
def large_file(context, addresses, monkeypatch):
    """Ten days of 400 readings, in no order, two without a time, of which 1,000 are much."""
    monkeypatch.setattr("flows.ingest.MAX_ROWS", 1_000)
    rows = readings(START, START + timedelta(days=10)).sample(frac=1, random_state=0, ignore_index=True)
    rows.loc[[5, 2_000], "measured_at"] = pd.NaT
    file = addresses / "large.parquet"
    rows.to_parquet(file, row_group_size=700)
    return rows, str(file)


def test_a_large_file_is_taken_in_some_days_at_a_time(context, large_file):
    rows, file = large_file
    version, verdict = ingest_batch(context, START, START + timedelta(days=10), file)
    held = data.versions(context.store, context.name)
    assert (verdict.passed
            and [one.batch_end[:10] for one in held]
            == ["2024-01-03", "2024-01-05", "2024-01-07", "2024-01-09", "2024-01-11"])
    assert (version == held[-1] and version.rows == len(rows) - 2
            and len(bad_rows.read(context.store, context.name)) == 2)
    assert data.read(context.store, version)["measured_at"].is_monotonic_increasing
    assert (ingest_batch(context, START, START + timedelta(days=10), file)[0] == held[-1]
            and data.versions(context.store, context.name) == held)


def test_what_is_refused_of_a_large_file_comes_after_what_is_stored(context, large_file):
    rows, file = large_file
    mended = pd.read_parquet(file)
    late = rows["measured_at"] > START + timedelta(days=5)
    rows.assign(vibration=rows["vibration"].mask(late, -1.0)).to_parquet(file)
    with pytest.raises(CheckFailed, match="vibration: greater_than_or_equal_to"):
        ingest_batch(context, START, START + timedelta(days=10), file)
    assert (data.newest(context.store, context.name).rows
            == (rows["measured_at"] < START + timedelta(days=4)).sum())
    mended.to_parquet(file)
    assert ingest_batch(context, START, START + timedelta(days=10), file)[0].rows == len(rows) - 2


def test_what_a_large_file_lacks_and_bad_rows_of_all_its_batches_are_told(context, large_file):
    rows, file = large_file
    rows.assign(heat=rows["heat"].mask(rows.index.isin([9, 900, 3_000]), -99.0)).to_parquet(file)
    ingest_batch(context, START - timedelta(days=9), START - timedelta(days=8))
    verdict = ingest_batch(context, START, START + timedelta(days=10), file)[1]
    assert ((verdict.figures.rows, verdict.figures.bad) == (len(rows), 5)
            and "nothing is stored of" in verdict.reasons[0])
    assert sum(rule.count for rule in verdict.figures.by_rule if rule.column == "heat") == 3


def test_a_few_days_of_a_large_file_are_read_alone(context, large_file, monkeypatch):
    rows, file = large_file
    noon = START + timedelta(hours=12)
    assert (batches(context, noon, START + timedelta(days=2), Path(file))
            == [(noon, START + timedelta(days=2))])
    read, whole = [], pq.read_table
    monkeypatch.setattr(pq, "read_table",
                        lambda *one, **named: read.append(whole(*one, **named)) or read[-1])
    version = ingest_batch(context, noon, START + timedelta(days=2), file)[0]
    assert len(read[0]) == version.rows + 2 < 650  # those without a time are told of


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(lambda times: times.dt.tz_localize("UTC"), "datetime without a zone"),
     (lambda times: times.astype(str), None),
     (lambda times: times.astype("datetime64[s]").where(times.index != 7,
                                                        pd.Timestamp("9999-12-31").as_unit("s")), None)])
def test_odd_times_of_a_large_file_are_told_as_those_of_a_small_one(context, large_file, spoil, told):
    rows, file = large_file
    rows.assign(measured_at=spoil(rows["measured_at"])).to_parquet(file)
    if told:
        with pytest.raises(CheckFailed, match=told):
            ingest_batch(context, START, START + timedelta(days=10), file)
    else:
        assert ingest_batch(context, START, START + timedelta(days=10), file)[0].rows > 3_900


def test_days_outside_of_the_span_cut_nothing(context, large_file):
    _, file = large_file
    two = (START + timedelta(days=1), START + timedelta(days=3))
    assert batches(context, *two, Path(file)) == [two]
    assert len(batches(context, START, START + timedelta(days=10), Path(file))) == 5


def test_a_case_that_many_looks_refuse_is_recorded_once(context, addresses):
    def look(rows: pd.DataFrame, days: int) -> None:
        with pytest.raises(CheckFailed):
            ingest_batch(context, START, START + timedelta(days=days), written(addresses, rows, ".parquet"))

    broken = readings(START, START + timedelta(days=4))
    broken["vibration"] = broken["vibration"].mask(broken.index % 50 == 0, 500.0)
    for rows in (broken, broken.astype({"starts": str}).assign(starts="many"), broken.drop(columns="heat"),
                 broken.assign(heat=-99.0)):
        look(rows, 2)
        look(rows, 3)
        look(rows, 4)
    kept = context.ledger.state().of_kind(IngestRefused)
    assert [refused.verdict.reasons[-1].partition(":")[0] for refused in kept] == [
        "vibration", "starts", "heat", "vibration"]
    assert {refused.end for refused in kept} == {"2024-01-03T00:00:00"}
