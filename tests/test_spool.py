"""Rows that go through a local file: how many, of which types, and what stays after an error."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.core.errors import SourceFailed
from contracts.core.validation import check_batch
from contracts.pumps import contract as pumps
from contracts.pumps import readings
from flows.ingest import batches, ingest_batch
from registry import data
from registry.context import open_model
from registry.sources import spool
from registry.spool import ParquetSpool

START, END = datetime(2024, 1, 1), datetime(2024, 1, 11)
ALL = readings(START, END)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr("registry.sources.SPOOL_ROWS", 1_000)
    monkeypatch.setattr("registry.sources.CHUNK_ROWS", 150)


def in_batches(rows: pd.DataFrame, size: int = 100) -> Iterator[pa.RecordBatch]:
    return iter(pa.Table.from_pandas(rows, preserve_index=False).to_batches(max_chunksize=size))


def with_rows(rows: pd.DataFrame):
    return replace(pumps, source=lambda start, end: in_batches(rows))


@pytest.mark.parametrize(("count", "in_memory"), [(0, True), (1_000, True), (1_001, False)])
def test_more_rows_than_memory_should_hold_go_through_a_file(count, in_memory, tmp_path):
    rows = spool(with_rows(ALL.head(count)), START, END, tmp_path, str)
    assert isinstance(rows, pd.DataFrame) == in_memory
    assert len(rows if in_memory else pd.read_parquet(rows)) == count
    assert len([*tmp_path.iterdir()]) == (0 if in_memory else 1)


def test_the_file_holds_the_rows_compressed_and_in_few_groups(tmp_path):
    file = spool(with_rows(ALL), START, END, tmp_path, str)
    pd.testing.assert_frame_equal(pd.read_parquet(file), ALL, check_dtype=False)
    about = pq.ParquetFile(file).metadata
    assert about.row_group(0).column(0).compression == "ZSTD" and about.num_row_groups == len(ALL) / 200


def test_the_file_is_ingested_in_batches_of_days(addresses, monkeypatch, tmp_path):
    monkeypatch.setattr("flows.ingest.MAX_ROWS", 1_000)
    context = open_model("pumps")
    file = spool(with_rows(ALL), START, END, tmp_path, str)
    assert len(batches(context, START, END, file)) > 3
    version, verdict = ingest_batch(context, START, END, str(file))
    assert version.rows == verdict.figures.rows == len(ALL)
    assert not data.read(context.store, version).duplicated().any()


def test_a_source_that_fails_midway_leaves_no_file(tmp_path):
    def source(start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
        yield from in_batches(ALL)
        raise OSError("the line is dead")

    with pytest.raises(SourceFailed, match="the line is dead"):
        spool(replace(pumps, source=source), START, END, tmp_path, str)
    assert [*tmp_path.iterdir()] == []


def test_the_cells_of_columns_that_change_type_are_kept(tmp_path):
    """Of numbers, texts, missing values and whole columns that come later."""
    with ParquetSpool(tmp_path / "rows.parquet") as file:
        file.add(pd.DataFrame({"number": [1], "truth": [True], "late": [None], "mixed": [1.5]}))
        file.add(pd.DataFrame({"number": [2.5], "truth": [None], "late": ["z"], "mixed": ["abc"]}))
        file.add(pd.DataFrame({"number": [None], "truth": ["yes"], "new": [3],
                               "mixed": [7]}))
    rows = pd.read_parquet(file.path)
    assert rows["number"].tolist()[:2] == [1, 2.5] and rows["number"].isna().tolist() == [False, False, True]
    assert rows["truth"].tolist()[::2] == ["true", "yes"] and rows["late"].tolist()[1] == "z"
    assert rows["mixed"].tolist() == ["1.5", "abc", "7"] and rows["new"].tolist()[2] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_the_check_says_the_same_of_rows_from_a_file(tmp_path):
    """A text among numbers is one bad row, whether the rows went through a file or not."""
    rows = ALL.astype({"heat": object})
    rows.loc[1_500, "heat"] = "warm"
    source = [rows.iloc[first:first + 200].infer_objects() for first in range(0, len(rows), 200)]
    file = spool(replace(pumps, source=lambda start, end: iter(source)), START, END, tmp_path, str)
    through_file, direct = (check_batch(pumps, frame).verdict for frame in (pd.read_parquet(file), rows))
    assert (through_file.figures.rows, through_file.figures.bad) == (direct.figures.rows, direct.figures.bad)
    assert direct.figures.bad == 1 and through_file.passed == direct.passed
