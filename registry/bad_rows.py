"""Rows that broke a rule, in a Delta table beside the model's data, with their reasons."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from contracts.core.contract import Contract
from contracts.core.errors import PerennialError
from registry import layout
from registry.delta import MAX_ATTEMPTS, create_table, delta_options, open_table, transaction
from registry.store import Store


def set_aside(store: Store, contract: Contract, bad: pd.DataFrame, start: datetime, end: datetime) -> None:
    """Store the bad rows of a batch of [start, end) that are not stored yet: looks may overlap."""
    name = layout.bad_rows_table(contract.name)
    whole = pa.Table.from_pandas(bad.assign(batch_start=start, batch_end=end), preserve_index=False)
    for _ in range(MAX_ATTEMPTS):
        table = _table(store, contract.name) or create_table(store, name, whole)
        rows = whole.filter(~_are_stored(table, contract.event_time, bad))
        if not len(rows):
            return
        try:
            write_deltalake(table, rows, mode="append", commit_properties=transaction(table.version() + 1),
                            storage_options=delta_options(store.address))
        except DeltaError:
            if open_table(store, name).version() == table.version():
                raise
            continue  # another writer came first, perhaps with the same rows
        return
    raise PerennialError(f"{contract.name}: {MAX_ATTEMPTS} other writers came first; ingest [{start}, "
                         f"{end}) again")


def read(store: Store, model: str) -> pd.DataFrame:
    """All rows that were set aside, with reasons and the window of the batch that had them first."""
    table = _table(store, model)
    return table.to_pandas() if table else pd.DataFrame()


def _table(store: Store, model: str) -> DeltaTable | None:
    try:
        return open_table(store, layout.bad_rows_table(model))
    except TableNotFoundError:
        return None


def _are_stored(table: DeltaTable, event_time: str, bad: pd.DataFrame) -> np.ndarray:
    """For each bad row, bool (rows,), whether one with the same cells and reasons is in the table."""
    whole, names = table.to_pyarrow_dataset(), list(bad)
    if not {*names} <= {*whole.schema.names}:
        return np.zeros(len(bad), bool)
    time, times = pc.field(event_time), bad[event_time]
    condition = time.is_null()
    if times.notna().any():
        condition |= (time >= pa.scalar(times.min())) & (time <= pa.scalar(times.max()))
    stored = {*_cells(whole.to_table(columns=names, filter=condition))}
    rows = pa.Table.from_pandas(bad, pa.schema(map(whole.schema.field, names)), preserve_index=False)
    return np.array([row in stored for row in _cells(rows)])


def _cells(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Each row's cells; missing ones are None, which equals itself."""
    return zip(*(column.to_pylist() for column in rows.columns), strict=True)
