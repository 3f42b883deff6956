"""Read the rows of a span from Parquet files, a Delta table or a query, in chunks."""

import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow import dataset, fs

from contracts.core.contract import Contract
from contracts.core.errors import Unavailable
from contracts.core.sources import DeltaSource, ParquetFiles, SqlQuery
from registry.credentials import Credentials
from registry.delta import delta_options

CHUNK_ROWS = 50_000  # read at a time
STEPS = {"%H": timedelta(hours=1), "%d": timedelta(days=1), "%j": timedelta(days=1), "%m": timedelta(days=1),
         "%Y": timedelta(days=1)}  # by the smallest directive of a pattern: how far apart times are tried
COARSE_UNITS = {"s": "second", "ms": "millisecond"}  # of times that can't tell microseconds apart


def parquet_batches(source: ParquetFiles, event_time: str, start: datetime,
                    end: datetime) -> Iterator[pa.RecordBatch]:
    """The rows of the files of [start, end). A missing file of a step is no rows; raises FileNotFoundError
    if a pattern without times names no file."""
    for path in _paths(source.pattern, start, end):
        system, place = _file_system(path)
        found = _matches(system, place)
        if found:
            files = dataset.dataset(found, filesystem=system, format="parquet")
            yield from _batches(files, event_time, start, end)
        elif "%" not in source.pattern:
            raise FileNotFoundError(f"no file matches {source.pattern}")


def delta_batches(source: DeltaSource, event_time: str, start: datetime, end: datetime,
                  credentials: Credentials) -> Iterator[pa.RecordBatch]:
    address = credentials.expanded(source.address)
    table = DeltaTable(address, storage_options=delta_options(address))
    yield from _batches(table.to_pyarrow_dataset(), event_time, start, end)


def query_frames(source: SqlQuery, contract: Contract, start: datetime, end: datetime,
                 credentials: Credentials) -> Iterator[pd.DataFrame]:
    """The rows of a query, by a cursor of the database's, so that they are never in memory all at once.

    Raises Unavailable where the database does not answer.
    """
    import sqlalchemy  # imported here: it is slow, and other sources do without

    engine = sqlalchemy.create_engine(credentials.expanded(source.url))
    is_sqlite = engine.dialect.name == "sqlite"
    kind = sqlalchemy.String() if is_sqlite else sqlalchemy.DateTime()
    query = sqlalchemy.text(source.query).bindparams(
        *(sqlalchemy.bindparam(name, type_=kind) for name in ("start", "end")))
    limits = {name: _shortest_text(limit) if is_sqlite else limit
              for name, limit in (("start", start), ("end", end))}
    try:
        with engine.connect() as connection:
            answer = connection.execute(query, limits,
                                        execution_options={"yield_per": CHUNK_ROWS})  # and stream_results
            for rows in answer.partitions(CHUNK_ROWS):
                frame = pd.DataFrame([tuple(row) for row in rows], columns=list(answer.keys()))
                yield _with_bools(contract, _with_integers(contract, frame, rows))
    except sqlalchemy.exc.OperationalError as error:
        raise Unavailable(f"{contract.name}: the database does not answer, or refuses the query: "
                          f"{credentials.masked(str(error.orig))}; is it up, and its url right?"
                          ) from credentials.cause(error)
    finally:
        engine.dispose()


def _shortest_text(time: datetime) -> str:
    """A time without the zeros at its end. SQLite compares times as texts, where this comes before every
    longer way to write the same moment, and after all of earlier ones.

    >>> [_shortest_text(datetime(2024, 1, 3, hour, 0, 0, us)) for hour, us in ((0, 0), (5, 0), (5, 2500))]
    ['2024-01-03', '2024-01-03 05:00:00', '2024-01-03 05:00:00.0025']
    """
    text = time.isoformat(" ")
    return text.rstrip("0") if time.microsecond else text.removesuffix(" 00:00:00")


def _with_integers(contract: Contract, frame: pd.DataFrame, rows: Sequence[Any]) -> pd.DataFrame:
    """The frame with the integers that the query gave, where pandas has made floats of them for a missing
    one."""
    places = {name: place for place, name in enumerate(frame) if name in contract.columns
              and contract.python_type(name) is int and frame[name].dtype.kind == "f"}
    return frame.assign(**{name: pd.Series([row[place] for row in rows], dtype=object)
                           for name, place in places.items()})


def _with_bools(contract: Contract, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with 0 and 1 as the bools that the contract declares: SQLite and MySQL have none."""
    bools = [name for name in contract.columns if contract.python_type(name) is bool
             and list(frame.columns).count(name) == 1 and frame[name].dtype != bool]
    cells = {name: frame[name].astype(object) for name in bools}
    return frame.assign(**{name: values.where(~values.isin([0, 1]), values == 1)
                           for name, values in cells.items()})


def _paths(pattern: str, start: datetime, end: datetime) -> list[str]:
    """The pattern's paths of the times of [start, end), each once."""
    step = next((step for directive, step in STEPS.items() if directive in pattern), None)
    if step is None:
        return [pattern]
    count = -(-(end - start) // step) + 1
    times = (min(start + step * index, end - timedelta(microseconds=1)) for index in range(count))
    return [*dict.fromkeys(time.strftime(pattern) for time in times)]


def _file_system(path: str) -> tuple[fs.FileSystem, str]:
    if not path.startswith("s3://"):
        return fs.LocalFileSystem(), os.path.abspath(path)
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    return fs.S3FileSystem(endpoint_override=endpoint) if endpoint else fs.S3FileSystem(), path[len("s3://"):]


def _matches(system: fs.FileSystem, path: str) -> list[str]:
    """The file at a path, the Parquet files in the folder at it, or those that its wildcards match."""
    parts = PurePosixPath(path).parts
    fixed = next((index for index, part in enumerate(parts) if set(part) & {*"*?["}), None)
    if fixed is None:
        at = system.get_file_info([path])[0]
        if at.type != fs.FileType.Directory:
            return [at.path] if at.type == fs.FileType.File else []
        return [file for file in _files(system, path) if file.endswith(".parquet")]
    return [file for file in _files(system, str(PurePosixPath(*parts[:fixed]))) if fnmatch(file, path)]


def _files(system: fs.FileSystem, folder: str) -> list[str]:
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    return sorted(at.path for at in system.get_file_info(selector) if at.type == fs.FileType.File)


def _batches(rows: dataset.Dataset, event_time: str, start: datetime,
             end: datetime) -> Iterator[pa.RecordBatch]:
    """Batches of a dataset's rows of [start, end); the files' statistics spare the others."""
    kind, time = rows.schema.field(event_time).type, pc.field(event_time)
    if not pa.types.is_temporal(kind):
        raise TypeError(f"{event_time} is stored as {kind}: store it as a timestamp")
    first, last = (_limit(limit, kind) for limit in (start, end))
    yield from rows.to_batches(filter=(time >= first) & (time < last), batch_size=CHUNK_ROWS,
                               batch_readahead=1, fragment_readahead=1)


def _limit(limit: datetime, kind: Any) -> pa.Scalar:
    """A limit as a column's type; between two times that the type can tell apart, the later."""
    scalar = pa.scalar(limit, pa.timestamp("us"))
    unit = COARSE_UNITS.get(kind.unit) if pa.types.is_timestamp(kind) else None
    return (pc.ceil_temporal(scalar, unit=unit) if unit else scalar).cast(kind)
