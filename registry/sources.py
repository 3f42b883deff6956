"""Read the rows of a span from a contract's source, in chunks, and hold them to what was asked for."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow as pa

from contracts.core.cells import read_cells
from contracts.core.contract import Contract
from contracts.core.errors import PerennialError, SourceFailed
from contracts.core.sources import DeltaSource, ParquetFiles, SqlQuery
from registry.credentials import Credentials, Secret
from registry.frames import to_frame
from registry.source_readers import delta_batches, parquet_batches, query_frames

EXPECTED = "a data frame, or an iterator of data frames or Arrow record batches, is expected"


def read_source(contract: Contract, start: datetime, end: datetime, secret: Secret,
                limit: int | None = None) -> pd.DataFrame | None:
    """The rows of [start, end); None if there are more than `limit` of them."""
    chunks: list[pd.DataFrame] = []
    rows = 0
    for frame in source_frames(contract, start, end, secret):
        chunks, rows = [*chunks, frame], rows + len(frame)
        if limit is not None and rows > limit:
            return None
    return _joined(chunks)


def source_frames(contract: Contract, start: datetime, end: datetime,
                  secret: Secret) -> Iterator[pd.DataFrame]:
    """The rows of [start, end), chunk by chunk as the source gives them; raises SourceFailed for one that
    is something else, or has rows of other times. `secret`: gives the value of a secret block."""
    credentials = Credentials(secret)
    with _named_faults(contract, start, end, credentials):
        for chunk in _chunks(contract, start, end, credentials):
            yield _checked(contract, chunk, start, end)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    if not frames:
        return pd.DataFrame()
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


@contextmanager
def _named_faults(contract: Contract, start: datetime, end: datetime,
                  credentials: Credentials) -> Iterator[None]:
    """Raise SourceFailed for whatever else a source raises: it is its author's code, or a service."""
    try:
        yield
    except PerennialError:
        raise
    except Exception as error:
        raise SourceFailed(f"{contract.name}: {_name(contract)} failed for [{start}, {end}): "
                           f"{type(error).__name__}: {credentials.masked(str(error))}; {_remedy(contract)}"
                           ) from credentials.cause(error)


def _name(contract: Contract) -> str:
    source = contract.source
    return f"the source {getattr(source, '__name__', type(source).__name__)}"


def _remedy(contract: Contract) -> str:
    match contract.source:
        case ParquetFiles():
            return "correct the pattern, or the files that it names"
        case SqlQuery():
            return "correct the query or the url"
        case DeltaSource():
            return "correct the address, or the table at it"
    return f"correct it: {EXPECTED}"


def _chunks(contract: Contract, start: datetime, end: datetime, credentials: Credentials) -> Iterable[Any]:
    match contract.source:
        case None:
            raise PerennialError(f"contract {contract.name} has no source; name a file: --file rows.parquet")
        case ParquetFiles() as source:
            return parquet_batches(source, contract.event_time, start, end)
        case SqlQuery() as source:
            return query_frames(source, contract, start, end, credentials)
        case DeltaSource() as source:
            return delta_batches(source, contract.event_time, start, end, credentials)
        case function:
            given = function(start, end)
    return given if isinstance(given, Iterator | list | tuple) else [given]


def _checked(contract: Contract, chunk: Any, start: datetime, end: datetime) -> pd.DataFrame:
    """A chunk as a frame whose rows are all of [start, end); raises SourceFailed."""
    frame = to_frame(chunk) if isinstance(chunk, (pa.RecordBatch, pa.Table)) else chunk
    if not isinstance(frame, pd.DataFrame):
        raise SourceFailed(f"{contract.name}: {_name(contract)} gave {type(chunk).__name__}; {EXPECTED}")
    if twice := sorted({str(name) for name in frame.columns[frame.columns.duplicated()]}):
        raise SourceFailed(f"{contract.name}: {_name(contract)} gave two columns {twice[0]!r}: rename one")
    if contract.event_time in frame:  # else the check of the batch says that it is missing
        _hold_to_span(contract, read_cells(frame[contract.event_time], datetime), start, end)
    return frame


def _hold_to_span(contract: Contract, times: pd.Series, start: datetime, end: datetime) -> None:
    """Raise SourceFailed if some times lie outside of [start, end); those that can't be read do not."""
    outside = int(((times < start) | (times >= end)).sum())
    if outside:
        raise SourceFailed(
            f"{contract.name}: {_name(contract)} gave {outside:,} of {len(times):,} rows outside of "
            f"[{start}, {end}), found from {times.min()} to {times.max()}: have it give the rows of that "
            f"span alone")
