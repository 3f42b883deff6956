"""Read the rows of a span from a contract's source, in chunks, and hold them to what was asked for."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
from contracts.core.errors import PerennialError, SourceFailed, Unavailable
from contracts.core.sources import DeltaSource, ParquetFiles, SqlQuery
from registry.data import delta_options

CHUNK_ROWS = 50_000  # read at a time
STEPS = {"%H": timedelta(hours=1), "%d": timedelta(days=1), "%j": timedelta(days=1), "%m": timedelta(days=1),
         "%Y": timedelta(days=1)}  # by the smallest directive of a pattern: how far apart times are tried
EXPECTED = "a data frame, or an iterator of data frames or Arrow record batches, is expected"
Secret = Callable[[str], str]  # the value of a secret by its name


def read_source(contract: Contract, start: datetime, end: datetime, secret: Secret,
                limit: int | None = None) -> pd.DataFrame | None:
    """The rows of [start, end); None if there are more than `limit` of them."""
    chunks: list[pd.DataFrame] = []
    rows = 0
    with _named_faults(contract, start, end):
        for chunk in _chunks(contract, start, end, secret):
            frame = _checked(contract, chunk, start, end)
            chunks, rows = [*chunks, frame], rows + len(frame)
            if limit is not None and rows > limit:
                return None
    if not chunks:
        return pd.DataFrame()
    return chunks[0] if len(chunks) == 1 else pd.concat(chunks, ignore_index=True)


@contextmanager
def _named_faults(contract: Contract, start: datetime, end: datetime) -> Iterator[None]:
    """Raise SourceFailed for whatever else a source raises: it is its author's code, or a service."""
    try:
        yield
    except PerennialError:
        raise
    except Exception as error:
        raise SourceFailed(f"{contract.name}: {_name(contract)} failed for [{start}, {end}): "
                           f"{type(error).__name__}: {_without_password(str(error))}") from error


def _name(contract: Contract) -> str:
    source = contract.source
    return f"the source {getattr(source, '__name__', type(source).__name__)}"


def _without_password(text: str) -> str:
    return re.sub(r"(://[^/@:\s]*:)[^/@\s]+@", r"\1***@", text)


def _chunks(contract: Contract, start: datetime, end: datetime, secret: Secret) -> Iterable[Any]:
    match contract.source:
        case None:
            raise PerennialError(f"contract {contract.name} has no source; name a file: --file rows.parquet")
        case ParquetFiles() as source:
            return _of_files(source, contract.event_time, start, end)
        case SqlQuery() as source:
            return _of_query(source, start, end, secret)
        case DeltaSource() as source:
            table = DeltaTable(_expanded(source.address), storage_options=delta_options(source.address))
            return _of_dataset(table.to_pyarrow_dataset(), contract.event_time, start, end)
        case function:
            given = function(start, end)
    return [given] if isinstance(given, pd.DataFrame) or not isinstance(given, Iterable) else given


def _checked(contract: Contract, chunk: Any, start: datetime, end: datetime) -> pd.DataFrame:
    """A chunk as a frame whose rows are all of [start, end); raises SourceFailed."""
    frame = chunk.to_pandas() if isinstance(chunk, (pa.RecordBatch, pa.Table)) else chunk
    if not isinstance(frame, pd.DataFrame):
        raise SourceFailed(f"{contract.name}: {_name(contract)} gave {type(chunk).__name__}; {EXPECTED}")
    if twice := sorted({str(name) for name in frame.columns[frame.columns.duplicated()]}):
        raise SourceFailed(f"{contract.name}: {_name(contract)} gave two columns {twice[0]!r}: rename one")
    times = frame[contract.event_time] if contract.event_time in frame else pd.Series(dtype=object)
    if times.dtype.kind != "M" or getattr(times.dt, "tz", None):
        return frame  # the check of the batch says what is wrong with such times
    outside = ((times < start) | (times >= end)).to_numpy()
    if outside.any():
        raise SourceFailed(
            f"{contract.name}: {_name(contract)} gave {int(outside.sum()):,} of {len(frame):,} rows outside "
            f"of [{start}, {end}), as of {times[outside].iloc[0]}: have it give the rows of that span alone")
    return frame


def _of_files(source: ParquetFiles, event_time: str, start: datetime, end: datetime) -> Iterator[Any]:
    for path in _paths(source.pattern, start, end):
        system, place = _file_system(path)
        found = _matches(system, place)
        if found:
            yield from _of_dataset(dataset.dataset(found, filesystem=system, format="parquet"), event_time,
                                   start, end)


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
    """The files that a path with wildcards in its last parts names."""
    parts = PurePosixPath(path).parts
    fixed = next((index for index, part in enumerate(parts) if set(part) & {*"*?["}), len(parts) - 1)
    folder = str(PurePosixPath(*parts[:fixed]))
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    return sorted(info.path for info in system.get_file_info(selector)
                  if info.type == fs.FileType.File and fnmatch(info.path, path))


def _of_dataset(rows: dataset.Dataset, event_time: str, start: datetime, end: datetime) -> Iterator[Any]:
    """Batches of a dataset's rows of [start, end); the files' statistics spare the others."""
    kind, time = rows.schema.field(event_time).type, pc.field(event_time)
    limits = [pa.scalar(limit, pa.timestamp("us")).cast(kind) for limit in (start, end)]
    yield from rows.to_batches(filter=(time >= limits[0]) & (time < limits[1]), batch_size=CHUNK_ROWS,
                               batch_readahead=1, fragment_readahead=1)


def _of_query(source: SqlQuery, start: datetime, end: datetime, secret: Secret) -> Iterator[pd.DataFrame]:
    """The rows of a query, by a cursor of the database's, so that they are never in memory all at once."""
    import sqlalchemy  # imported here: it is slow, and other sources do without

    name = source.url.removeprefix("prefect:")
    url = secret(name) if source.url.startswith("prefect:") else _expanded(source.url)
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect().execution_options(yield_per=CHUNK_ROWS) as connection:
            answer = connection.execute(sqlalchemy.text(source.query), {"start": start, "end": end})
            for rows in answer.partitions():
                yield pd.DataFrame([tuple(row) for row in rows], columns=list(answer.keys()))
    except sqlalchemy.exc.OperationalError as error:
        raise Unavailable(f"the database does not answer, or refuses the query: "
                          f"{_without_password(str(error.orig))}; is it up, and its url right?") from None
    finally:
        engine.dispose()


def _expanded(address: str) -> str:
    """An address with its environment variables put in; raises PerennialError for one that is not set."""
    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise PerennialError(f"the source's address names ${{{match[1]}}}, which is not set: set it "
                                 f"where flows run")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, address)
