"""Logged predictions: from the replicas' spool to the store, and there joined with what came true."""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.contract import PROBABILITY, Columns, Contract
from contracts.drift import estimated
from flows.memory import Memory
from registry import data
from registry.store import Taken
from service.predictions import NOT_A_LOG, SUFFIX, unpacked
from service.profiles import START_FORMAT

LATER = ".later"  # ends the name of a column as it was ingested, beside the one that the caller sent
ENOUGH, LONG = 4 * 2**20, 600  # bytes, or seconds that the first of them waited, that are packed while nobody asks for them

SHIFTS = {f"{abs(hours)} hours {'earlier' if hours < 0 else 'later'}": timedelta(hours=hours) for hours in (-24, -12, -1, 1, 12, 24)}

log = logging.getLogger("perennial.predictions")


@dataclass(frozen=True)
class Outcomes:
    """A version's logged predictions of a window, and those of them whose event was ingested since."""

    logged: pd.DataFrame
    met: pd.DataFrame
    could_meet: bool  # that callers sent the key

    @property
    def coverage(self) -> float:
        return len(self.met) / max(len(self.logged), 1)

    @property
    def unmet(self) -> pd.DataFrame:
        return self.logged[~self.logged["id"].isin(self.met["id"])]


def ship_predictions(memory: Memory, patient: bool = False) -> int:
    """Pack the spool's files of a version and window into a Parquet file of the store; how many were packed.

    The `patient` wait for ENOUGH of them. A crash between the store and the spool packs them once more: a prediction's id
    tells that it is there already.
    """
    files, packed = sorted(memory.spool.glob(f"{memory.name}/*/*/*{SUFFIX}")), 0
    for folder, here in groupby(files, lambda path: path.parent):
        parts = _readable(here)
        if parts and not (patient and _young(parts)):
            table = pa.concat_tables([pa.table(columns) for _, columns in parts.values()], promote_options="permissive")
            name = sha256("".join(path.name for path in parts).encode()).hexdigest()[:32]
            with suppress(Taken):  # packed, and not yet removed
                memory.store.create(f"predictions/{folder.relative_to(memory.spool).as_posix()}/{name}.parquet", _parquet(table))
            for path in parts:
                path.unlink(missing_ok=True)
            packed += len(parts)
    return packed


def _young(parts: dict[Path, tuple[bytes, Columns]]) -> bool:
    return sum(len(content) for content, _ in parts.values()) < ENOUGH and time.time() - next(iter(parts)).stat().st_mtime < LONG


def _readable(paths: Iterable[Path]) -> dict[Path, tuple[bytes, Columns]]:
    """The files' bytes and columns; what is no log is set aside beside it for a person to look at."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):  # another one has packed it
            content = path.read_bytes()
            try:
                found[path] = content, unpacked(content)
            except NOT_A_LOG as error:
                log.warning("%s holds no predictions: %s; look at it", path.replace(path.with_suffix(".junk")), error)
    return found


def _parquet(table: pa.Table) -> bytes:
    file = BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def logged(memory: Memory, version: str, start: datetime) -> pd.DataFrame:
    """A version's predictions of the events of a window, each once: id, what the caller sent, each class's probability."""
    keys = memory.store.list(f"predictions/{memory.name}/{version}/{start:{START_FORMAT}}/")
    tables = [pq.read_table(BytesIO(memory.store.get(key))) for key in keys]
    if not tables:
        return pd.DataFrame({"id": []})
    return pa.concat_tables(tables, promote_options="permissive").to_pandas().drop_duplicates("id", ignore_index=True)


def unlabelled(memory: Memory) -> list[dict[str, Any]]:
    """The windows whose labels are not all in, oldest first: how many predictions each logged, and what these promise."""
    contract, labels = memory.contract, data.newest(memory.store, memory.name).end
    promoted, keys = memory.ledger.state().promoted, [key.split("/") for key in memory.store.list(f"predictions/{memory.name}/")]
    open_ = {datetime.strptime(start, START_FORMAT) for _, _, version, start, _ in keys if version in promoted}
    told = []
    for start in sorted(start for start in open_ if (start + contract.drift.window).isoformat() > labels):
        found = pd.concat([logged(memory, version, start) for version in promoted])
        told.append({"window": start.isoformat()} | estimated(probabilities_of(contract, found)))
    return told


def outcomes(memory: Memory, version: str, start: datetime, events: pd.DataFrame) -> Outcomes:
    """A window's predictions and events, joined on the contract's key; none is met where it names no key or callers send none."""
    answered, key = logged(memory, version, start), list(memory.contract.key)
    told = answered.dropna(subset=key) if key and {*key} <= {*answered} else answered.head(0)
    if told.empty:
        return Outcomes(answered, told, False)
    return Outcomes(answered, told.merge(_once(key, events), on=key, suffixes=("", LATER)), True)


def _once(key: list[str], events: pd.DataFrame) -> pd.DataFrame:
    return events.drop_duplicates(key, keep="last")


def shifted(contract: Contract, found: Outcomes, events: pd.DataFrame) -> dict[str, int]:
    """How many predictions that met no event meet one, that nobody else predicted, a while before or after."""
    key, unmet = list(contract.key), found.unmet
    if unmet.empty:
        return {}
    left = events.merge(found.met[key].drop_duplicates(), on=key, how="left", indicator="whose")
    left = _once(key, left[left["whose"] == "left_only"])[key]
    there = {name: unmet[key].assign(**{contract.event_time: unmet[contract.event_time] + while_}) for name, while_ in SHIFTS.items()}
    return {name: len(moved.merge(left, on=key)) for name, moved in there.items()}


def ingested(memory: Memory, start: datetime) -> pd.DataFrame:
    """The events of a window as they were ingested, typed as a request's columns are."""
    contract = memory.contract
    rows = data.read(memory.store, data.newest(memory.store, memory.name), start, start + contract.drift.window)
    names = tuple(dict.fromkeys((*contract.sent_columns, *contract.key, *contract.label.needs)))
    return pd.DataFrame(contract.columns_of(rows, names))


def labels_of(contract: Contract, met: pd.DataFrame) -> np.ndarray:
    """The class index of every event that came true, int64 (n,)."""
    names = {name: f"{name}{LATER}" if f"{name}{LATER}" in met else name for name in contract.label.needs}
    return contract.labels_of(met[list(names.values())].set_axis(list(names), axis=1))


def probabilities_of(contract: Contract, predictions: pd.DataFrame) -> np.ndarray:
    """What was answered, (n, classes)."""
    return predictions[[PROBABILITY + name for name in contract.label.classes]].to_numpy()
