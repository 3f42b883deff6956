"""The columns that identify an event, exactly: integers with 64 bits, times in microseconds. A cell that is
missing, or not known exactly, is null and is joined with none."""

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from contracts.core.contract import Contract

KINDS = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string(),
         datetime: pa.timestamp("us")}
MAX_EXACT, MAX_INT64 = 2**53, 2**63 - 1


@dataclass(frozen=True)
class EventKey:
    """The contract's key in tables that are joined, as k0, k1, … in the order of its columns.

    `in_seconds`: times are compared in seconds, as some replica's log knows no other.
    """

    contract: Contract
    in_seconds: bool = False

    @property
    def names(self) -> list[str]:
        return [f"k{index}" for index in range(len(self.contract.key))]

    def columns(self, table: pa.Table) -> dict[str, pa.Array]:
        """A table's key; a column that the table lacks is null."""
        missing = pa.chunked_array([pa.nulls(len(table))])
        return {key: exact(table[name] if name in table.column_names else missing,
                           self.contract.python_type(name))
                for key, name in zip(self.names, self.contract.key)}

    def of(self, table: str) -> list[str]:
        """The key of a table in SQL, as it is compared."""
        return [f"date_trunc('second', {table}.{key})"
                if self.in_seconds and self.contract.python_type(name) is datetime else f"{table}.{key}"
                for key, name in zip(self.names, self.contract.key)]

    def match(self, table: str, other: str) -> str:
        """The condition in SQL that rows of two tables have the same key."""
        return " AND ".join(f"{one} = {another}" for one, another in zip(self.of(table), self.of(other)))


def exact(values: pa.ChunkedArray, kind: type) -> pa.Array:
    """A column's cells as the type of a contract's `kind`; null where that would change them."""
    cells = values.combine_chunks()
    if pa.types.is_floating(cells.type):
        is_known = pc.invert(pc.is_nan(cells))  # NaN is a missing cell
        if kind is int:
            # Older logs hold integers as floats: beyond 53 bits they may be other ones.
            is_known = pc.and_(pc.less_equal(pc.abs(cells), MAX_EXACT), pc.equal(pc.floor(cells), cells))
        cells = pc.if_else(is_known, cells, None)
        if kind is bool:
            return pc.not_equal(cells, 0)
    if pa.types.is_uint64(cells.type) and kind is int:
        cells = pc.if_else(pc.less_equal(cells, pa.scalar(MAX_INT64, pa.uint64())), cells, None)
    return cells.cast(KINDS[kind])
