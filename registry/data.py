"""Data versions: labelled rows in Delta Lake tables, named by their digest."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import reduce
from operator import and_

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from botocore.exceptions import BotoCoreError, ClientError
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow.dataset import ParquetFragmentScanOptions

from contracts.core.contract import Contract
from contracts.core.digests import JsonObject, digest_of
from contracts.core.errors import NotFound, PerennialError
from registry import layout
from registry.clock import machine_time
from registry.delta import MAX_ATTEMPTS, METADATA_KEY, create_table, delta_options, open_table, transaction
from registry.frames import to_frame
from registry.store import Store

STORE_FAULTS = (BotoCoreError, ClientError, DeltaError)  # of a store that may answer at the next attempt
FIRST_VERSION = 1  # after the commit that makes the table
RESOLUTION = timedelta(microseconds=1)  # of event times in the table
KNOWN = ".known"  # behind the names of a known row's columns, beside those of a batch
CHUNK_ROWS = 200_000  # held in memory at a time where a version is read from end to end


@dataclass(frozen=True)
class DataVersion:
    """One state of a model's table: `rows` in all, looked for in [`start`, `end`), the newest of them at
    `newest`; `batch_start`, `batch_end` and `batch` (a digest) of the batch taken last, which may be of
    older events; `corrected`: how many known rows it replaced; `changed_from`: the oldest row it added or
    replaced; `bad`: how many rows of the batch were set aside."""

    table: str
    version: int
    start: str
    end: str
    rows: int
    event_time: str
    batch: str
    digest: str
    contract: str
    at: str
    batch_start: str
    batch_end: str
    newest: str
    corrected: int = 0
    changed_from: str = ""
    bad: int = 0

    def as_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: JsonObject) -> "DataVersion":
        # The first versions had no times of the batch: each added one at the end.
        # Those until 0.2.0 had no time of the newest row.
        return cls(**({"batch_start": stored["start"], "batch_end": stored["end"],
                       "newest": stored["end"]} | stored))

    def complete_until(self, stale_after: timedelta) -> datetime:
        """The event time before which rows are all in: the end of the span that was read; if the newest row
        is older than that by `stale_after` or more, as the source may be late, then that row's time."""
        end, newest = datetime.fromisoformat(self.end), datetime.fromisoformat(self.newest)
        return end if newest > end - stale_after else newest


def append(store: Store, contract: Contract, frame: pd.DataFrame, start: datetime, end: datetime,
           bad: int = 0) -> DataVersion:
    """Take the rows of [start, end) into the table. `bad`: how many others of the batch were set aside.

    A row whose key is known and whose cells are the same changes nothing; one with other cells replaces the
    known row. Where nothing changes, the newest version is returned. Of a contract without a key the same
    batch again returns its first version.
    """
    if frame.empty:
        raise NotFound(f"{contract.name}: no row in [{start}, {end}) to ingest; name a window that has some")
    batch, window = content_digest(frame), (start.isoformat(), end.isoformat())
    for _ in range(MAX_ATTEMPTS):
        existing = versions(store, contract.name)
        for version in existing if not contract.key else existing[-1:]:
            if (version.batch, version.batch_start, version.batch_end) == (batch, *window):
                return version
        changes = _changes(store, contract, frame, existing)
        if existing and changes.is_empty:
            return existing[-1]
        made = _next_version(contract, changes, existing, batch, window, bad)
        try:
            _commit(store, contract, changes, made, existing[-1] if existing else None)
        except DeltaError:
            if len(versions(store, contract.name)) == len(existing):
                raise
            continue  # another writer came first
        return made
    raise PerennialError(f"{contract.name}: {MAX_ATTEMPTS} other writers came first; ingest [{start}, "
                         f"{end}) again")


@dataclass(frozen=True)
class Changes:
    """The rows of a batch that the table lacks, and those that it has with
    other cells; `moved_from`: the event times of the latter in the table."""

    new: pd.DataFrame
    corrected: pd.DataFrame
    moved_from: pd.Series

    @property
    def is_empty(self) -> bool:
        return not len(self.new) and not len(self.corrected)

    def times(self, event_time: str) -> pd.Series:
        return pd.concat([self.new[event_time], self.corrected[event_time]])


def _next_version(contract: Contract, changes: Changes, existing: list[DataVersion], batch: str,
                  window: tuple[str, str], bad: int) -> DataVersion:
    last, times = existing[-1] if existing else None, changes.times(contract.event_time)
    return DataVersion(
        layout.data_table(contract.name), last.version + 1 if last else FIRST_VERSION,
        min([window[0], *(version.start for version in existing)]),
        max([window[1], *(version.end for version in existing)]),
        len(changes.new) + (last.rows if last else 0), contract.event_time, batch,
        digest_of([last.digest if last else "", batch, *window]), contract.digest,
        machine_time().isoformat(timespec="seconds"), *window,
        newest=max([times.max().isoformat(), *([last.newest] if last else [])]),
        corrected=len(changes.corrected),
        changed_from=pd.concat([times, changes.moved_from]).min().isoformat(), bad=bad)


def _commit(store: Store, contract: Contract, changes: Changes, made: DataVersion,
            last: DataVersion | None) -> None:
    properties = transaction(made.version, **{METADATA_KEY: json.dumps(asdict(made))})
    rows = pa.Table.from_pandas(pd.concat([changes.new, changes.corrected]), preserve_index=False)
    target = (open_table(store, made.table, last.version) if last
              else create_table(store, made.table, rows))
    if len(changes.corrected):
        matches = " AND ".join(f'known."{name}" = found."{name}"' for name in contract.key)
        (target.merge(rows, matches, source_alias="found", target_alias="known", commit_properties=properties)
         .when_matched_update_all().when_not_matched_insert_all().execute())
        return
    write_deltalake(target, rows, mode="append", commit_properties=properties,
                    storage_options=delta_options(store.address))


def _changes(store: Store, contract: Contract, frame: pd.DataFrame, existing: list[DataVersion]) -> Changes:
    """What a batch adds to the newest version and what it corrects."""
    none = frame.head(0)
    known = _known_rows(store, contract, frame, existing[-1]) if existing else none
    if known.empty:
        return Changes(frame, none, none[contract.event_time])
    key = list(contract.key)
    merged = frame.merge(known.drop_duplicates(key, keep="last"), on=key, how="left", indicator="found_in",
                         suffixes=("", KNOWN))
    is_known = (merged["found_in"] == "both").to_numpy()
    others = [name for name in frame if name not in key and f"{name}{KNOWN}" in merged]
    differs = np.zeros(len(merged), bool)
    for name in others:
        cell, known_cell = merged[name], merged[f"{name}{KNOWN}"]
        differs |= ~((cell == known_cell) | (cell.isna() & known_cell.isna())).fillna(False).to_numpy(bool)
    corrected = is_known & differs
    times = merged[f"{contract.event_time}{KNOWN}" if contract.event_time in others else contract.event_time]
    return Changes(frame[~is_known], frame[corrected], times[corrected])


def _known_rows(store: Store, contract: Contract, frame: pd.DataFrame, version: DataVersion) -> pd.DataFrame:
    """The rows of a version among which those with a batch's keys are: those of its times if the key holds
    the event time, else those with its keys, whenever they were."""
    if contract.key and contract.event_time not in contract.key:
        return _rows_with_keys(store, version, frame[list(contract.key)])
    times = frame[contract.event_time]
    # To the next microsecond, as `read` leaves out the end.
    known = read(store, version, times.min(), times.max() + RESOLUTION)
    if len(known) and not contract.key:
        raise PerennialError(f"{contract.name}: {len(known)} rows of [{times.min()}, {times.max()}] are "
                             f"there already, and the contract has no key to distinguish old rows from new; "
                             f"ingest those after {version.newest}, or give the contract a key")
    return known


def _rows_with_keys(store: Store, version: DataVersion, keys: pd.DataFrame) -> pd.DataFrame:
    """The rows of a version with these keys, in the order of their event time.
    Of a file without any only the columns of the key are read."""
    table = open_table(store, version.table, version.version)
    whole, wanted = table.to_pyarrow_dataset(), pd.MultiIndex.from_frame(keys)
    # Of several columns each may match by itself: rows are compared with whole keys once they are read.
    condition = reduce(and_, (_is_among(whole.schema.field(name), keys[name]) for name in keys))
    found = [whole.schema.empty_table().to_pandas()]
    for file in whole.get_fragments(filter=condition):
        if not file.scanner(whole.schema, filter=condition).count_rows():
            continue
        for batch in file.to_batches(whole.schema, filter=condition, batch_size=CHUNK_ROWS,
                                     batch_readahead=1, fragment_readahead=1):
            rows = to_frame(batch)
            found.append(rows[pd.MultiIndex.from_frame(rows[list(keys)]).isin(wanted)])
    return pd.concat(found).sort_values(version.event_time, kind="stable", ignore_index=True)


def _is_among(column: pa.Field, values: pd.Series) -> pc.Expression:
    """Whether a cell is one of these values; the range of numbers spares files that lie outside of it."""
    distinct = pa.array(values.drop_duplicates(), column.type, from_pandas=True)
    condition = pc.field(column.name).isin(distinct)
    if not pa.types.is_integer(column.type) or distinct.null_count:
        return condition
    limits = pc.min_max(distinct)
    return condition & (pc.field(column.name) >= limits["min"]) & (pc.field(column.name) <= limits["max"])


def content_digest(frame: pd.DataFrame) -> str:
    """sha256 of a frame's columns, types and values, in order."""
    sha = hashlib.sha256(json.dumps([(name, str(kind)) for name, kind in frame.dtypes.items()]).encode())
    sha.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return sha.hexdigest()


def versions(store: Store, model: str) -> list[DataVersion]:
    """Every version of a model's data, oldest first."""
    try:
        history = open_table(store, layout.data_table(model)).history()
    except TableNotFoundError:
        return []
    return [DataVersion.from_json(json.loads(commit[METADATA_KEY])) for commit in reversed(history)
            if METADATA_KEY in commit]


def newest(store: Store, model: str) -> DataVersion:
    """The newest version, read without those before it; raises NotFound."""
    try:
        [last] = open_table(store, layout.data_table(model)).history(1)
    except (TableNotFoundError, ValueError):
        last = {}
    # The newest commit may be someone's OPTIMIZE, or the one that made the table.
    existing = ([DataVersion.from_json(json.loads(last[METADATA_KEY]))] if METADATA_KEY in last
                else versions(store, model))
    if not existing:
        raise NotFound(f"{model}: nothing ingested in {store.address}; run: perennial ingest {model} --start "
                       f"… --end …")
    return existing[-1]


def read(store: Store, version: DataVersion, start: datetime | None = None,
         end: datetime | None = None) -> pd.DataFrame:
    """The rows of exactly this version, or those of [start, end), in the order of their event time."""
    table = open_table(store, version.table, version.version)
    limits = [] if start is None else [(version.event_time, ">=", start)]
    limits += [] if end is None else [(version.event_time, "<", end)]
    frame = to_frame(table.to_pyarrow_table(filters=limits or None))
    return frame.sort_values(version.event_time, kind="stable", ignore_index=True)


def batches(store: Store, version: DataVersion, start: datetime, end: datetime,
            columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of this version's rows of [start, end), as they are stored, CHUNK_ROWS or fewer at a time; the
    files' statistics spare those that hold no such row."""
    time, whole = pc.field(version.event_time), open_table(store, version.table, version.version)
    yield from whole.to_pyarrow_dataset().to_batches(
        columns=list(columns), filter=(time >= pa.scalar(start)) & (time < pa.scalar(end)),
        batch_size=CHUNK_ROWS, batch_readahead=1, fragment_readahead=1,
        fragment_scan_options=ParquetFragmentScanOptions(pre_buffer=False))


def count(store: Store, version: DataVersion, start: datetime, end: datetime) -> int:
    """How many rows of this version are of [start, end)."""
    return sum(map(len, batches(store, version, start, end, [version.event_time])))


def chunks(store: Store, version: DataVersion, columns: Sequence[str],
           share: tuple[int, int] = (0, 1)) -> Iterator[pd.DataFrame]:
    """The rows of exactly this version, CHUNK_ROWS or so at a time, files with the
    oldest events first. `share` (i, n): only the i-th of n equal parts of its files."""
    table = open_table(store, version.table, version.version)
    actions = pa.table(table.get_add_actions(flatten=True))
    # Delta keeps statistics of the first columns only: of a later one there is no minimum.
    oldest = f"min.{version.event_time}"
    oldest_by_path = dict(zip(actions["path"].to_pylist(),
                      actions[oldest].to_pylist() if oldest in actions.column_names else ()))
    whole = table.to_pyarrow_dataset()
    files = sorted(whole.get_fragments(), key=lambda file: (str(oldest_by_path.get(file.path)), file.path))
    batches: list[pa.RecordBatch] = []
    for file in files[share[0]::share[1]]:
        for batch in file.to_batches(whole.schema, columns=list(columns), batch_size=CHUNK_ROWS,
                                     batch_readahead=1, fragment_readahead=1):
            batches.append(batch)
            if sum(map(len, batches)) >= CHUNK_ROWS:
                yield pa.Table.from_batches(batches).to_pandas()
                batches = []
    if batches:
        yield pa.Table.from_batches(batches).to_pandas()
