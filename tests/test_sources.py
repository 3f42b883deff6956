"""Sources: functions, Parquet files, a query on a real PostgreSQL, a Delta table, and how they fail."""

import glob
import os
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy
from deltalake import write_deltalake

from contracts.core.errors import CheckFailed, ContractError, PerennialError, SourceFailed, Unavailable
from contracts.core.sources import DeltaSource, ParquetFiles, SqlQuery
from contracts.pumps import contract as pumps
from contracts.pumps import readings
from deployments.processes import available_port
from flows.ingest import ingest_batch
from registry import data
from registry.context import ModelContext, open_model
from registry.delta import delta_options
from registry.sources import read_source, source_frames
from tests.test_registry import moto, s3  # noqa: F401  fixtures

START, END = datetime(2024, 1, 3), datetime(2024, 1, 6)
ALL = readings(datetime(2024, 1, 1), datetime(2024, 1, 11))
QUERY = "SELECT * FROM readings WHERE measured_at >= :start AND measured_at < :end"
BIN = [Path(initdb).parent for initdb in sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))]


def with_source(source: object) -> ModelContext:
    """The pumps with another source."""
    context = open_model("pumps")
    return replace(context, contract=replace(context.contract, source=source))


def given(source: object, start: datetime = START, end: datetime = END) -> pd.DataFrame:
    rows = read_source(replace(pumps, source=source), start, end, {}.__getitem__)
    return rows.sort_values("measured_at", ignore_index=True)[list(ALL)]


def expected(start: datetime = START, end: datetime = END) -> pd.DataFrame:
    return ALL[(ALL["measured_at"] >= start) & (ALL["measured_at"] < end)].reset_index(drop=True)


def same(rows: pd.DataFrame, others: pd.DataFrame) -> bool:
    pd.testing.assert_frame_equal(rows, others, check_dtype=False, check_exact=False)
    return len(rows) > 0


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL with the readings in it; it refuses to run as root."""
    if not BIN:
        stop = pytest.fail if "CI" in os.environ else pytest.skip
        stop("no PostgreSQL is installed; run: apt-get install postgresql")
    # Not in pytest's folders: only root may enter them, and PostgreSQL does not run as root.
    home, port = Path(tempfile.mkdtemp(prefix="postgresql-")), available_port(5433)
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if as_user:
        subprocess.run(["chown", "postgres", home], check=True)
    (home / "password").write_text("s3cret\n")
    (home / "password").chmod(0o644)
    data_folder = home / "data"

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, capture_output=True, cwd=home)

    run(f"{BIN[-1]}/initdb", "-D", str(data_folder), "-U", "perennial", "--auth=scram-sha-256",
        f"--pwfile={home / 'password'}")
    run(f"{BIN[-1]}/pg_ctl", "-D", str(data_folder), "-w", "-l", str(home / "log"), "-o",
        f"-h 127.0.0.1 -p {port} -k {home}", "start")
    try:
        url = f"postgresql+psycopg://perennial:s3cret@127.0.0.1:{port}/postgres"
        ALL.to_sql("readings", sqlalchemy.create_engine(url), index=False)
        yield url
    finally:
        run(f"{BIN[-1]}/pg_ctl", "-D", str(data_folder), "-m", "fast", "stop")
        shutil.rmtree(home)


def test_a_query_on_postgresql(postgresql, monkeypatch, addresses):
    monkeypatch.setenv("PUMPS_PASSWORD", "s3cret")
    url = postgresql.replace("s3cret", "${PUMPS_PASSWORD}")
    assert same(given(SqlQuery(QUERY, url)), expected())
    context = with_source(SqlQuery(QUERY, url))
    version, _ = ingest_batch(context, START, END)
    assert version.rows == len(expected()) and "s3cret" not in str(context.contract.describe())
    assert not [path for path in addresses.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_a_query_is_read_in_chunks(database, postgresql, tmp_path, monkeypatch):
    """On PostgreSQL by a cursor of the server's: its driver would hold all rows of any other."""
    monkeypatch.setattr("registry.source_readers.CHUNK_ROWS", 500)
    url, statements = postgresql, []
    if database == "sqlite":
        url = f"sqlite:///{tmp_path / 'readings.db'}"
        ALL.to_sql("readings", sqlalchemy.create_engine(url), index=False)

    def note(*words: object) -> None:
        statements.append(type(words[1]).__name__)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    try:
        contract = replace(pumps, source=SqlQuery(QUERY, "prefect:pumps-db"))
        frames = [*source_frames(contract, START, END, {"pumps-db": url}.__getitem__)]
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
    assert [len(frame) for frame in frames] == [500, 500, 200]
    assert ("ServerCursor" in statements) == (database == "postgresql")


def test_a_wrong_password_is_not_shown(postgresql, monkeypatch):
    monkeypatch.setenv("PUMPS_PASSWORD", "wr0ng/word")
    with pytest.raises(Unavailable, match="password authentication failed") as raised:
        given(SqlQuery(QUERY, postgresql.replace("s3cret", "${PUMPS_PASSWORD}")))
    assert "wr0ng" not in "".join(traceback.format_exception(raised.value))


def test_a_secret_of_prefects_is_asked_for_by_name(postgresql):
    contract = replace(pumps, source=SqlQuery(QUERY, "prefect:pumps-db"))
    assert len(read_source(contract, START, END, {"pumps-db": postgresql}.__getitem__)) == len(expected())


def test_a_database_that_does_not_answer_is_named_without_its_password():
    url = f"postgresql+psycopg://perennial:s3cret@127.0.0.1:{available_port(5999)}/postgres"
    contract = replace(pumps, source=SqlQuery(QUERY, "prefect:pumps-db"))
    with pytest.raises(Unavailable, match="does not answer") as raised:
        read_source(contract, START, END, {"pumps-db": url}.__getitem__)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("pattern", ["%Y/%m/%d/*.parquet", "%Y-%m-%d.parquet", "%Y-%m.parquet", "all.parquet",
                                     "%Y/%j-*.parquet"])
def test_parquet_files_in_a_folder(pattern, tmp_path):
    for step, rows in ALL.groupby(ALL["measured_at"].dt.strftime(pattern.replace("*", "part-1"))):
        (tmp_path / step).parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(tmp_path / step)
    assert same(given(ParquetFiles(str(tmp_path / pattern))), expected())
    later = given_or_empty(ParquetFiles(str(tmp_path / pattern)), datetime(2025, 1, 1), datetime(2025, 1, 2))
    assert later.empty  # no file is no error


def given_or_empty(source: object, start: datetime, end: datetime) -> pd.DataFrame:
    rows = read_source(replace(pumps, source=source), start, end, str)
    return pd.DataFrame() if rows is None else rows


def test_parquet_files_and_a_delta_table_on_s3(s3):  # noqa: F811
    for day, rows in ALL.groupby(ALL["measured_at"].dt.strftime("%Y-%m-%d")):
        write_to_s3(f"{s3}/readings/{day}.parquet", rows)
    assert same(given(ParquetFiles(f"{s3}/readings/%Y-%m-%d.parquet")), expected())
    write_deltalake(f"{s3}/table", pa.Table.from_pandas(ALL), storage_options=delta_options(s3))
    assert same(given(DeltaSource(f"{s3}/table")), expected())


def write_to_s3(address: str, rows: pd.DataFrame) -> None:
    from pyarrow import fs

    system = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"])
    table = pa.Table.from_pandas(rows, preserve_index=False)
    pq.write_table(table, address.removeprefix("s3://"), filesystem=system)


def test_a_delta_table_in_a_folder(tmp_path):
    write_deltalake(str(tmp_path / "table"), pa.Table.from_pandas(ALL))
    assert same(given(DeltaSource(str(tmp_path / "table"))), expected())


def batches_of(start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
    yield from pa.Table.from_pandas(readings(start, end), preserve_index=False).to_batches(max_chunksize=100)


def test_a_delta_table_whose_address_is_in_a_variable_or_a_secret_block(tmp_path, monkeypatch):
    write_deltalake(str(tmp_path / "table"), pa.Table.from_pandas(ALL))
    monkeypatch.setenv("TABLES", str(tmp_path))
    assert same(given(DeltaSource("${TABLES}/table")), expected())
    contract = replace(pumps, source=DeltaSource("prefect:table"))
    rows = read_source(contract, START, END, {"table": str(tmp_path / "table")}.__getitem__)
    assert len(rows) == len(expected())


def test_a_delta_table_on_s3_whose_address_is_in_a_variable(s3, monkeypatch):  # noqa: F811
    write_deltalake(f"{s3}/named", pa.Table.from_pandas(ALL), storage_options=delta_options(s3))
    monkeypatch.setenv("BUCKET", s3)
    assert same(given(DeltaSource("${BUCKET}/named")), expected())


def test_a_folder_stands_for_its_parquet_files(tmp_path, s3):  # noqa: F811
    for day, rows in ALL.groupby(ALL["measured_at"].dt.strftime("%Y-%m-%d")):
        (tmp_path / "all" / day).mkdir(parents=True)
        rows.to_parquet(tmp_path / "all" / day / "part.parquet")
        write_to_s3(f"{s3}/folder/{day}/part.parquet", rows)
    (tmp_path / "all" / "_SUCCESS").write_text("")
    for folder in (f"{tmp_path}/all", f"{s3}/folder"):
        assert same(given(ParquetFiles(folder)), expected())
        assert same(given(ParquetFiles(f"{folder}/%Y-%m-%d")), expected())


@pytest.mark.parametrize("name", ["nowhere.parquet", "nowhere", "nowhere*.parquet"])
def test_a_pattern_without_times_that_names_no_file_is_an_error(name, tmp_path):
    with pytest.raises(SourceFailed, match=r"pumps: the source ParquetFiles .*no file matches .*nowhere"):
        given(ParquetFiles(str(tmp_path / name)))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_limits_finer_than_the_files_times(unit, tmp_path):
    """As of the second look, which begins a microsecond after the newest row."""
    times = pd.Series(pd.to_datetime(["2024-01-03", "2024-01-04", "2024-01-05"]))
    rows = ALL.head(3).assign(measured_at=times.astype(f"datetime64[{unit}]"))
    pq.write_table(pa.Table.from_pandas(rows), tmp_path / "all.parquet")
    rows = rows.astype({"measured_at": "datetime64[us]"})  # as Delta tables have them
    write_deltalake(str(tmp_path / "table"), pa.Table.from_pandas(rows))
    after = timedelta(microseconds=1)
    for source in (ParquetFiles(str(tmp_path / "all.parquet")), DeltaSource(str(tmp_path / "table"))):
        assert len(given(source, START, datetime(2024, 1, 5))) == 2
        assert len(given(source, START + after, datetime(2024, 1, 5) + after)) == 2


def test_files_whose_times_are_text_are_refused(tmp_path):
    ALL.astype({"measured_at": str}).to_parquet(tmp_path / "all.parquet")
    with pytest.raises(SourceFailed, match=r"measured_at is stored as .*string: store it as a timestamp"):
        given(ParquetFiles(str(tmp_path / "all.parquet")))


def test_a_query_on_sqlite(tmp_path, addresses):
    """It has no times and no bools: they come as text and numbers."""
    url = f"sqlite:///{tmp_path / 'readings.db'}"
    ALL.to_sql("readings", sqlalchemy.create_engine(url), index=False)
    context = with_source(SqlQuery(QUERY, url))
    version, verdict = ingest_batch(context, START, END)
    assert (version.rows, verdict.figures.bad) == (len(expected()), 0)
    stored = data.read(context.store, version).sort_values("measured_at", ignore_index=True)[list(ALL)]
    assert same(stored, expected())
    with pytest.raises(SourceFailed, match="rows outside of"):
        given(SqlQuery(QUERY.replace("measured_at <", "'2024' < :end OR measured_at <"), url))


@pytest.mark.parametrize("precision", ["seconds", "milliseconds", "microseconds"])
@pytest.mark.parametrize("start", [datetime(2024, 1, 3), datetime(2024, 1, 3, 5, 30),
                                   datetime(2024, 1, 3, 5, 30, 7, 250_000)])
def test_a_row_at_the_start_of_a_span_is_in_it_however_sqlite_stores_times(precision, start, tmp_path):
    """SQLite compares times as texts; a text is less than the same with digits behind it."""
    if start.microsecond and precision == "seconds":
        pytest.skip("this form has no fractions")
    url = f"sqlite:///{tmp_path / 'readings.db'}"
    end = start + timedelta(hours=1)
    times = [start - timedelta(seconds=1), start, end - timedelta(seconds=1), end]
    rows = ALL.head(4).assign(measured_at=[time.isoformat(" ", precision) for time in times])
    rows.to_sql("readings", sqlalchemy.create_engine(url), index=False)
    found = given(SqlQuery(QUERY, url), start, end)["measured_at"]
    assert found.tolist() == rows["measured_at"].tolist()[1:3]


def test_a_days_date_in_sqlite_is_its_midnight(tmp_path):
    url = f"sqlite:///{tmp_path / 'readings.db'}"
    rows = ALL.head(5).assign(measured_at=[f"2024-01-0{day}" for day in range(2, 7)])
    rows.to_sql("readings", sqlalchemy.create_engine(url), index=False)
    assert given(SqlQuery(QUERY, url))["measured_at"].tolist() == ["2024-01-03", "2024-01-04", "2024-01-05"]


def test_a_query_that_can_not_run_is_one_line(tmp_path):
    with pytest.raises(Unavailable, match=r"pumps: the database .* no such table: readings") as raised:
        given(SqlQuery(QUERY, f"sqlite:///{tmp_path / 'empty.db'}"))
    assert "\n" not in str(raised.value)


def test_a_function_may_give_arrow_batches():
    assert same(given(batches_of), expected())


def test_a_large_source_is_taken_in_spans_of_days(addresses, monkeypatch):
    monkeypatch.setattr("flows.ingest.MAX_SOURCE_ROWS", 1_000)
    asked = []

    def source(start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        asked.append((start, end))
        return batches_of(start, end)

    context = with_source(source)
    version, verdict = ingest_batch(context, datetime(2024, 1, 1), datetime(2024, 1, 11))
    assert version.rows == verdict.figures.rows == len(ALL)
    assert max(known.rows for known in data.versions(context.store, "pumps")) == len(ALL)
    assert len(data.versions(context.store, "pumps")) > 3 and len(asked) < 20
    whole = data.read(context.store, version)
    assert not whole.duplicated().any()


@pytest.mark.parametrize(("source", "said"), [
    (lambda start, end: None, "gave NoneType; a data frame, or an iterator"),
    (lambda start, end: ["a", "b"], "gave str; a data frame"),
    (lambda start, end: {"heat": [1]}, "gave dict; a data frame"),
    (lambda start, end: {}["x"], r"failed for .*KeyError: 'x'"),
    (lambda start, end: ALL, r"gave 2,800 of 4,000 rows outside of \[2024-01-03 00:00:00, 2024-01-06 00:00:00"
                             r"\), found from 2024-01-01 00:.* to 2024-01-10 23:.*: have it give the rows"),
    (lambda start, end: ALL.astype({"measured_at": str}), "gave 2,800 of 4,000 rows outside"),
    (lambda start, end: pd.concat([expected(), expected()[["heat"]]], axis=1), "two columns 'heat'"),
])
def test_what_a_source_does_wrong_is_one_line(source, said, addresses):
    with pytest.raises(SourceFailed, match=said) as raised:
        ingest_batch(with_source(source), START, END)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 1


def test_rows_without_the_event_time_are_refused_by_the_check(addresses):
    with pytest.raises(CheckFailed, match="measured_at: column missing"):
        ingest_batch(with_source(lambda start, end: expected().drop(columns="measured_at")), START, END)


def test_a_function_is_no_part_of_a_contracts_description():
    assert pumps.describe() == replace(pumps, source=batches_of).describe()
    assert "source" not in pumps.describe()


def test_an_empty_frame_is_no_rows(addresses):
    with pytest.raises(PerennialError, match="gives no row of"):
        ingest_batch(with_source(lambda start, end: ALL.head(0)), START, END)


@pytest.mark.parametrize(("source", "said"), [
    (SqlQuery("SELECT 1", "sqlite://"), "lacks :start"),
    (SqlQuery("SELECT :start, :ending, x::end", "sqlite://"), "lacks :end"),
    (ParquetFiles("x/%B.parquet"), "its pattern has %B")])
def test_a_declaration_that_can_not_work_is_refused(source, said):
    with pytest.raises(ContractError, match=said):
        replace(pumps, source=source)


def test_rows_that_come_late_or_corrected_are_taken(addresses):
    """C31, C29: the next look begins at the newest row that was found, less the contract's lateness."""
    known = ALL[ALL["measured_at"] < datetime(2024, 1, 5)]
    table = {"rows": known}

    def source(start: datetime, end: datetime) -> pd.DataFrame:
        times = table["rows"]["measured_at"]
        return table["rows"][(times >= start) & (times < end)]

    context = with_source(source)
    context = replace(context, contract=replace(
        context.contract, key=("measured_at", "starts"),
        schedule=replace(pumps.schedule, lateness=timedelta(days=2), since=datetime(2024, 1, 1))))
    first, _ = ingest_batch(context)
    assert (first.rows, first.newest) == (len(known), known["measured_at"].max().isoformat())
    assert ingest_batch(context)[0] == first  # what is known changes nothing
    late = ALL.assign(stopped=ALL["stopped"].where(ALL.index != known.index[-1], ~ALL["stopped"]))
    table["rows"] = late
    second, _ = ingest_batch(context)
    assert (second.rows, second.corrected) == (len(ALL), 1)
    assert second.changed_from == known["measured_at"].max().isoformat()
    order = ["measured_at", "starts"]
    stored, given_rows = (rows.sort_values(order) for rows in (data.read(context.store, second), late))
    assert stored["stopped"].tolist() == given_rows["stopped"].tolist()
    assert len(data.read(context.store, first)) == len(known)


def test_a_correction_may_be_taken_back(addresses):
    """The batch is then the same as an earlier one of the same span, and is taken all the same."""
    wrong = expected().assign(stopped=~expected()["stopped"])
    given_rows = [expected(), wrong, expected()]
    context = with_source(lambda start, end: given_rows.pop(0))
    context = replace(context, contract=replace(context.contract, key=("measured_at", "starts")))
    taken = [ingest_batch(context, START, END)[0] for _ in range(3)]
    assert [version.corrected for version in taken] == [0, len(wrong), len(wrong)]
    stored = data.read(context.store, taken[-1]).sort_values(["measured_at", "starts"])
    order = expected().sort_values(["measured_at", "starts"])
    assert stored["stopped"].tolist() == order["stopped"].tolist()


@pytest.mark.parametrize("key", [("starts",), ("starts", "vibration")])
@pytest.mark.parametrize(("moved", "to"), [(datetime(2024, 1, 1), datetime(2024, 1, 5)),
                                           (datetime(2024, 1, 4), datetime(2024, 1, 2))])
def test_a_correction_may_move_an_event_to_another_time(key, moved, to, addresses):
    """The batch need not span the time where the row is known: it is found by its key, and not doubled."""
    numbered = ALL.assign(starts=range(len(ALL)))
    known = numbered[numbered["measured_at"] < datetime(2024, 1, 5)]
    row = known[known["measured_at"] >= moved].head(1)
    corrected = row.assign(measured_at=to + timedelta(hours=1))
    given_rows = [known, corrected, corrected]
    context = with_source(lambda start, end: given_rows.pop(0))
    context = replace(context, contract=replace(context.contract, key=key))
    first = ingest_batch(context, datetime(2024, 1, 1), datetime(2024, 1, 5))[0]
    second = ingest_batch(context, to, to + timedelta(days=1))[0]
    assert (second.rows, second.corrected) == (len(known), 1)
    older, newer = sorted([row["measured_at"].item(), to + timedelta(hours=1)])
    assert second.changed_from == older.isoformat() and datetime.fromisoformat(second.newest) >= newer
    stored = data.read(context.store, second)
    assert len(stored) == len(known) and stored["starts"].is_unique
    assert (stored.loc[stored["starts"] == row["starts"].item(), "measured_at"].item()
            == corrected["measured_at"].item())
    assert ingest_batch(context, to, to + timedelta(days=2))[0] == second  # known by now
    assert len(data.read(context.store, first)) == len(known)


def test_the_folder_of_a_pattern_may_be_missing(tmp_path):
    assert given_or_empty(ParquetFiles(str(tmp_path / "nowhere" / "%Y" / "*.parquet")), START, END).empty
    assert isinstance(tmp_path, Path)
