"""The profiles, logged predictions and labels of a model's
traffic, in the spool of this machine and in the store."""

import logging
import signal
import time
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

from contracts.core.errors import Conflict, Corrupt, NotFound
from contracts.core.features import Columns
from registry import layout
from registry.context import ModelContext
from registry.events import LabelsStored
from registry.layout import PREDICTIONS, PROFILES
from service.prediction_log import NOT_A_LOG, SUFFIX, unpack_log

if TYPE_CHECKING:
    from service.profiles import WindowCounts

log = logging.getLogger("perennial.traffic")


def ship(context: ModelContext, patient: bool = False) -> int:
    """Copy the replicas' profiles and predictions from this machine's
    spool to the store, newer over older; how many were new.

    What is no profile is set aside as a `.junk` file beside it, for a person to look at.
    """
    shipped, junk = ship_predictions(context, patient), []
    for path in sorted(context.spool.glob(f"{context.name}/*/*/*.bin")):
        try:
            shipped += _replace(context, layout.from_spool(PROFILES, context.spool, path), path.read_bytes())
        except Corrupt:
            junk.append(str(path.replace(path.with_suffix(".junk"))))
    if junk:
        log.warning("%d files are no profiles and were set aside; look at them: %s", len(junk),
                    ", ".join(junk))
    return shipped


def ship_periodically(context: ModelContext, seconds: float) -> int:
    """Ship every so often; SIGTERM and SIGINT end it after a
    last time, when the replica beside it has written all."""
    told, shipped = Event(), 0
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: told.set())
    while not told.wait(seconds):
        shipped += ship(context, patient=True)
    return shipped + ship(context)


def _replace(context: ModelContext, key: str, content: bytes) -> bool:
    """Put a profile in the store unless as much is there
    already; once more where another monitor came first."""
    while True:
        try:
            there, tag = context.store.read(key)
        except NotFound:
            there, tag = None, ""
        # A replica's profile only grows.
        if there == content or _records(content) <= (_records(there) if there else -1):
            return False
        with suppress(Conflict):
            context.store.swap(key, content, tag) if tag else context.store.create(key, content)
            return True


def _records(content: bytes) -> int:
    """All that a profile counts; raises Corrupt."""
    from service import profiles  # whylogs is slow to import

    try:
        seen = profiles.read_counts(content)
        return seen.rows + seen.bad + seen.elsewhere
    except Exception as error:  # whylogs raises of all kinds on bytes that are not its own
        raise Corrupt(f"{len(content)} bytes are no profile: {error}; remove them") from error


def window_counts(context: ModelContext, version: str, start: datetime) -> "WindowCounts":
    """What all replicas of a version saw in a window."""
    from service.profiles import NO_TRAFFIC, read_counts  # whylogs is slow to import

    keys = context.store.list(layout.traffic(PROFILES, context.name, version, start))
    return sum((read_counts(context.store.get(key)) for key in keys), NO_TRAFFIC)


# Bytes, or seconds that the first of them waited, that are packed while nobody asks for them.
ENOUGH, LONG = 4 * 2**20, 600

NO_PREDICTIONS = pd.DataFrame({"id": np.array([], object)})


def ship_predictions(context: ModelContext, patient: bool = False) -> int:
    """Pack the spool's files of a version and window into a Parquet file of the store; how many were packed.

    The `patient` wait for ENOUGH of them. A crash between the store and the
    spool packs them once more: a prediction's id tells that it is there already.
    """
    files, packed = sorted(context.spool.glob(f"{context.name}/*/*/*{SUFFIX}")), 0
    for folder, here in groupby(files, lambda path: path.parent):
        parts = _readable(here)
        if parts and not (patient and _young(parts)):
            table = pa.concat_tables([pa.table(columns) for _, columns in parts.values()],
                                     promote_options="permissive")
            name = sha256("".join(path.name for path in parts).encode()).hexdigest()[:32]
            with suppress(Conflict):  # packed, and not yet removed
                context.store.create(
                    f"{layout.from_spool(PREDICTIONS, context.spool, folder)}/{name}.parquet", parquet(table))
            for path in parts:
                path.unlink(missing_ok=True)
            packed += len(parts)
    return packed


def _young(parts: dict[Path, tuple[bytes, Columns]]) -> bool:
    return (sum(len(content) for content, _ in parts.values()) < ENOUGH
            and time.time() - next(iter(parts)).stat().st_mtime < LONG)


def _readable(paths: Iterable[Path]) -> dict[Path, tuple[bytes, Columns]]:
    """The files' bytes and columns; what is no log is set aside beside it for a person to look at."""
    found: dict[Path, tuple[bytes, Columns]] = {}
    for path in paths:
        with suppress(FileNotFoundError):  # another one has packed it
            content = path.read_bytes()
            try:
                found[path] = content, unpack_log(content)
            except NOT_A_LOG as error:
                log.warning("%s holds no predictions: %s; look at it",
                            path.replace(path.with_suffix(".junk")), error)
    return found


def parquet(table: pa.Table) -> bytes:
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def logged_predictions(context: ModelContext, version: str, start: datetime) -> pd.DataFrame:
    """A version's predictions of the events of a window, each
    once: id, what the caller sent, each class's probability."""
    return read_predictions(context,
                            context.store.list(layout.traffic(PREDICTIONS, context.name, version, start)))


def read_predictions(context: ModelContext, keys: list[str]) -> pd.DataFrame:
    tables = [pq.read_table(BytesIO(context.store.get(key))) for key in keys]
    if not tables:
        return NO_PREDICTIONS
    return pa.concat_tables(
        tables, promote_options="permissive").to_pandas().drop_duplicates("id", ignore_index=True)


def labels_by_id(context: ModelContext) -> pd.DataFrame:
    """All labels that came for ids, each id once: the first that the ledger knows of."""
    kept = [stored.labels for stored in context.ledger.state().of_kind(LabelsStored)]
    found = [pq.read_table(BytesIO(context.store.get(layout.labels(context.name, digest)))).to_pandas()
             for digest in kept]
    return pd.concat(found).drop_duplicates("id", ignore_index=True) if found else NO_PREDICTIONS
