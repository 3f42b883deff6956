"""The profiles, logged predictions and labels of a model's
traffic, in the spool of this machine and in the store."""

import logging
import signal
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from itertools import groupby
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.core.errors import Conflict, Corrupt, NotFound, Unavailable
from contracts.core.features import Columns
from registry import layout
from registry.clock import machine_time
from registry.context import ModelContext
from registry.events import LabelsStored
from registry.layout import PREDICTIONS, PROFILES
from service.prediction_log import SUFFIX, UNREADABLE, unpack_log

if TYPE_CHECKING:
    from service.profiles import WindowCounts

log = logging.getLogger("perennial.traffic")


def ship(context: ModelContext, wait_for_batch: bool = False) -> int:
    """Copy the replicas' profiles and predictions from this machine's
    spool to the store, newer over older; returns how many were new.

    A file that can't be read is renamed to `.junk`, for a person to look at.
    """
    shipped, junk = ship_predictions(context, wait_for_batch), []
    for path in sorted(context.spool.glob(f"{context.name}/*/*/*.bin")):
        try:
            key = layout.from_spool(PROFILES, context.spool, path)
            shipped += _put_profile(context, key, path.read_bytes())
        except Corrupt:
            junk.append(str(path.replace(path.with_suffix(".junk"))))
    if junk:
        log.warning("%d files are not profiles and were renamed; look at them: %s", len(junk),
                    ", ".join(junk))
    return shipped


def ship_periodically(context: ModelContext, seconds: float) -> int:
    """Ship every so many seconds, and have the replicas that share the folder answer as the champion if it is
    recalibrated; SIGTERM and SIGINT end it after a last time, when the replica in the same pod has written
    its traffic."""
    stopping, shipped = Event(), 0
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stopping.set())
    _publish(context)
    while not stopping.wait(seconds):
        shipped += ship(context, wait_for_batch=True)
        _publish(context)
    return shipped + ship(context)


def _publish(context: ModelContext) -> None:
    """Tell the replicas the champion's layer; a store that does not answer is asked again the next time."""
    from registry.layers import publish_champion  # imported here: scipy is slow, and `status` does without

    try:
        publish_champion(context)
    except (Unavailable, OSError) as error:
        log.warning("%s: the champion's layer could not be read: %s", context.name, error)


def _put_profile(context: ModelContext, key: str, content: bytes) -> bool:
    """Put a profile in the store, unless one that counts as much is there; tries again after a conflict."""
    while True:
        try:
            stored, tag = context.store.read(key)
        except NotFound:
            stored, tag = None, ""
        # A replica's profile only grows.
        if stored == content or _records(content) <= (_records(stored) if stored else -1):
            return False
        with suppress(Conflict):
            context.store.swap(key, content, tag) if tag else context.store.create(key, content)
            return True


def _records(content: bytes) -> int:
    """The number of records that a profile counts; raises Corrupt."""
    from service import profiles  # whylogs is slow to import

    try:
        counts = profiles.read_counts(content)
        return counts.rows + counts.bad + counts.unprofiled
    except Exception as error:  # whylogs raises errors of all kinds on other bytes
        raise Corrupt(f"{len(content)} bytes are not a profile: {error}; remove them") from error


def traffic_keys(context: ModelContext, kind: str, version: str | None = None,
                 start: datetime | None = None) -> dict[str, layout.TrafficKey]:
    """The keys of PROFILES or PREDICTIONS and their parts: of a model, a version, or one window of that."""
    keys = context.store.list(layout.traffic(kind, context.name, version, start))
    return {key: parts for key in keys if (parts := layout.parse_traffic(key))}


def window_counts(context: ModelContext, version: str, start: datetime) -> "WindowCounts":
    """The counts of all replicas of a version in a window."""
    from service.profiles import NO_TRAFFIC, read_counts  # whylogs is slow to import

    keys = traffic_keys(context, PROFILES, version, start)
    return sum((read_counts(context.store.get(key)) for key in keys), NO_TRAFFIC)


# With `wait_for_batch`: bytes of logs, or seconds since the first of them, from which on they are packed.
BATCH_BYTES, BATCH_SECONDS = 4 * 2**20, 600

NO_PREDICTIONS = pd.DataFrame({"id": np.array([], object)})


def ship_predictions(context: ModelContext, wait_for_batch: bool = False) -> int:
    """Pack the spool's logs of each version and window into a Parquet file of the store; returns how many.

    With `wait_for_batch` only once there is enough for a file. After a crash between the two
    steps they are packed again, and reading drops the second row of a prediction id.
    """
    files, packed = sorted(context.spool.glob(f"{context.name}/*/*/*{SUFFIX}")), 0
    for folder, paths in groupby(files, lambda path: path.parent):
        parts = _read_logs(paths)
        if parts and not (wait_for_batch and _may_grow(parts)):
            table = pa.concat_tables([pa.table(columns) for _, columns in parts.values()],
                                     promote_options="permissive")
            name = sha256("".join(path.name for path in parts).encode()).hexdigest()[:32]
            with suppress(Conflict):  # packed before a crash
                context.store.create(
                    f"{layout.from_spool(PREDICTIONS, context.spool, folder)}/{name}.parquet", parquet(table))
            for path in parts:
                path.unlink(missing_ok=True)
            packed += len(parts)
    return packed


def _may_grow(parts: dict[Path, tuple[bytes, Columns]]) -> bool:
    return (sum(len(content) for content, _ in parts.values()) < BATCH_BYTES
            and machine_time().timestamp() - next(iter(parts)).stat().st_mtime < BATCH_SECONDS)


def _read_logs(paths: Iterable[Path]) -> dict[Path, tuple[bytes, Columns]]:
    """The logs' bytes and columns; a file that can't be read is renamed to `.junk`."""
    readable: dict[Path, tuple[bytes, Columns]] = {}
    for path in paths:
        with suppress(FileNotFoundError):  # another process has packed it
            content = path.read_bytes()
            try:
                readable[path] = content, unpack_log(content)
            except UNREADABLE as error:
                log.warning("%s is not a prediction log: %s; look at it",
                            path.replace(path.with_suffix(".junk")), error)
    return readable


def parquet(table: pa.Table) -> bytes:
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def logged_predictions(context: ModelContext, version: str, start: datetime) -> pd.DataFrame:
    """A version's logged predictions of a window, without
    duplicates: id, the columns sent, each class's probability."""
    return read_predictions(context,
                            [*traffic_keys(context, PREDICTIONS, version, start)])


def read_predictions(context: ModelContext, keys: list[str]) -> pd.DataFrame:
    tables = [pq.read_table(BytesIO(context.store.get(key))) for key in keys]
    if not tables:
        return NO_PREDICTIONS
    return pa.concat_tables(
        tables, promote_options="permissive").to_pandas().drop_duplicates("id", ignore_index=True)


def labels_by_id(context: ModelContext) -> pd.DataFrame:
    """All labels sent for prediction ids; of an id that was sent twice the first."""
    digests = [stored.labels for stored in context.ledger.state().of_kind(LabelsStored)]
    readable = [pq.read_table(BytesIO(context.store.get(layout.labels(context.name, digest)))).to_pandas()
             for digest in digests]
    return pd.concat(readable).drop_duplicates("id", ignore_index=True) if readable else NO_PREDICTIONS
