"""Logged predictions: from the spool of this machine into Parquet files of the store, and read from there.

A prediction is identified by its replica and its number, the two parts of its id.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.core.errors import Conflict
from registry import layout
from registry.clock import machine_time
from registry.context import ModelContext
from registry.layout import PREDICTIONS
from service.prediction_log import SUFFIX, UNREADABLE, LogFile, parse_id, unpack_log

REPLICA, NUMBER = "replica", "number"  # columns of the files; until 0.1.0 there was `id`, the text of both
# With `wait_for_batch`: bytes of logs, or seconds since the first of them, from which on they are packed.
BATCH_BYTES, BATCH_SECONDS = 4 * 2**20, 600
FILE_BYTES = 32 * 2**20  # of logs, from which on no more is packed into the same file
PORTION_ROWS = 200_000  # read at a time
FETCHED_AHEAD = 3  # files

log = logging.getLogger("perennial.predictions")


def ship_predictions(context: ModelContext, wait_for_batch: bool = False) -> int:
    """Pack the spool's logs of each version and window into Parquet files of the store; returns how many.

    With `wait_for_batch` only once there is enough for a file. After a crash between the two
    steps they are packed again, and reading drops the second row of a prediction.
    """
    files, packed = sorted(context.spool.glob(f"{context.name}/*/*/*{SUFFIX}"), key=_by_turn), 0
    for folder, paths in groupby(files, lambda path: path.parent):
        for parts in _parts(paths):
            if wait_for_batch and _may_grow(parts):
                continue
            for table in _tables(logs for _, logs in parts.values()):
                content = parquet(table)
                name = sha256(content).hexdigest()[:32]
                with suppress(Conflict):  # packed before a crash
                    context.store.create(
                        f"{layout.from_spool(PREDICTIONS, context.spool, folder)}/{name}.parquet", content)
            for path in parts:
                path.unlink(missing_ok=True)
            packed += len(parts)
    return packed


def _by_turn(path: Path) -> tuple[Path, str, int]:
    """The order in which a replica wrote its logs, REPLICA-TURN.rows."""
    replica, _, turn = path.stem.rpartition("-")
    return path.parent, replica, int(turn) if re.fullmatch("[0-9]+", turn) else -1


def _parts(paths: Iterable[Path]) -> Iterator[dict[Path, tuple[int, LogFile]]]:
    """The logs with their bytes, as many at a time as go into one file of the store; a file that can't be
    read is renamed to `.junk`."""
    readable: dict[Path, tuple[int, LogFile]] = {}
    for path in paths:
        with suppress(FileNotFoundError):  # another process has packed it
            content = path.read_bytes()
            try:
                readable[path] = len(content), unpack_log(content)
            except UNREADABLE as error:
                log.warning("%s is not a prediction log: %s; look at it",
                            path.replace(path.with_suffix(".junk")), error)
        if sum(size for size, _ in readable.values()) >= FILE_BYTES:
            yield readable
            readable = {}
    if readable:
        yield readable


def _may_grow(parts: dict[Path, tuple[int, LogFile]]) -> bool:
    return (sum(size for size, _ in parts.values()) < BATCH_BYTES
            and machine_time().timestamp() - next(iter(parts)).stat().st_mtime < BATCH_SECONDS)


def _tables(logs: Iterable[LogFile]) -> list[pa.Table]:
    """The logs as one table, or as several if some hold integers as floats or times in seconds, as replicas
    of an older release do: what is exact is not put together with what is not."""
    by_types: dict[tuple[pa.Field, ...], list[pa.Table]] = {}
    for part in logs:
        table = _table(part)
        exact = tuple(field for field in table.schema
                      if pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type))
        by_types.setdefault(exact, []).append(table)
    return [pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()
            for tables in by_types.values()]


def _table(part: LogFile) -> pa.Table:
    codes = np.zeros(len(part.numbers), np.int32)
    return pa.table({REPLICA: pa.DictionaryArray.from_arrays(codes, [part.replica]), NUMBER: part.numbers}
                    | {name: _cells(values) for name, values in part.columns.items()})


def _cells(values: np.ndarray) -> pa.Array:
    try:
        return pa.array(values)
    except OverflowError:  # Python's integers, of which one has 64 bits without a sign
        return pa.array(values, pa.uint64())


def parquet(table: pa.Table) -> bytes:
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def prediction_files(context: ModelContext, version: str, start: datetime) -> list[str]:
    """The keys of the files of a version's logged predictions of a window."""
    return [*layout.traffic_keys(context.store.list(
        layout.traffic(PREDICTIONS, context.name, version, start)))]


def read_predictions(context: ModelContext, keys: Sequence[str],
                     columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Files of logged predictions, PORTION_ROWS or fewer at a time; a prediction may come twice. REPLICA
    (a dictionary) and NUMBER come first, then the columns sent and each class's probability, or those of
    `columns` that a file has."""
    for content in fetched(context, keys):
        file = pq.ParquetFile(pa.BufferReader(content))
        names = [name for name in file.schema_arrow.names
                 if columns is None or name in (*columns, REPLICA, NUMBER, "id")]
        for batch in file.iter_batches(PORTION_ROWS, columns=names):
            yield _identified(pa.Table.from_batches([batch]))


def fetched(context: ModelContext, keys: Sequence[str]) -> Iterator[bytes]:
    """The contents of keys, the next few of them fetched while one is worked on."""
    with ThreadPoolExecutor(FETCHED_AHEAD) as pool:
        waiting = [pool.submit(context.store.get, key) for key in keys[:FETCHED_AHEAD]]
        for index in range(len(keys)):
            content = waiting.pop(0).result()
            if index + FETCHED_AHEAD < len(keys):
                waiting.append(pool.submit(context.store.get, keys[index + FETCHED_AHEAD]))
            yield content


def _identified(table: pa.Table) -> pa.Table:
    if "id" not in table.column_names:
        return table
    return pa.table(id_columns(table["id"].to_pylist())
                    | {name: table[name] for name in table.column_names if name != "id"})


def id_columns(ids: Iterable[str]) -> dict[str, pa.Array]:
    """Predictions' ids as the columns REPLICA and NUMBER."""
    pairs = [parse_id(text) for text in ids]
    return {REPLICA: pa.array([replica for replica, _ in pairs], pa.string()).dictionary_encode(),
            NUMBER: pa.array([number for _, number in pairs], pa.int64())}
