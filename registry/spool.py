"""A local Parquet file that is written batch by batch, for rows that are more than memory should hold."""

from pathlib import Path
from types import TracebackType

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


class ParquetSpool:
    """A Parquet file of frames whose columns may differ in type.

    Where a type changes it is written again with one that holds both, in the end text, as in a CSV. Nothing
    stays of it if an error ends it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._narrow = path.with_suffix(".narrow")  # the file as it was, while it is written again
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "ParquetSpool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._close()
        if error is not None:
            self.path.unlink(missing_ok=True)
            self._narrow.unlink(missing_ok=True)

    def add(self, frame: pd.DataFrame) -> None:
        table = _table(frame)
        schema = _common(self._writer.schema, table.schema) if self._writer else table.schema
        if self._writer is None:
            self._writer = self._open(schema)
        elif schema != self._writer.schema:
            self._widen(schema)
        self._writer.write_table(_cast(table, schema))

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        return pq.ParquetWriter(self.path, schema, compression="zstd")

    def _close(self) -> None:
        if self._writer:
            self._writer.close()

    def _widen(self, schema: pa.Schema) -> None:
        """Write the file again with another schema."""
        self._close()
        self.path.rename(self._narrow)
        self._writer = self._open(schema)
        for batch in pq.ParquetFile(self._narrow).iter_batches():
            self._writer.write_table(_cast(pa.Table.from_batches([batch]), schema))
        self._narrow.unlink()


def _table(frame: pd.DataFrame) -> pa.Table:
    return pa.table({str(name): _array(values) for name, values in frame.items()})


def _array(values: pd.Series) -> pa.Array:
    """A column's cells; as text, if they are of several types."""
    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        array = pa.array(values.map(str, na_action="ignore"), from_pandas=True)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _common(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """The columns of both, each of a type that holds the cells of both."""
    names = dict.fromkeys((*first.names, *second.names))
    fields = {name: [schema.field(name) for schema in (first, second) if name in schema.names]
              for name in names}
    return pa.schema([_common_field(both) for both in fields.values()])


def _common_field(fields: list[pa.Field]) -> pa.Field:
    try:
        return pa.unify_schemas([pa.schema([field]) for field in fields],
                                promote_options="permissive").field(0)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.field(fields[0].name, pa.large_string())


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the schema's columns, those that it lacks without values."""
    return pa.table([table[field.name].cast(field.type, safe=False) if field.name in table.column_names
                     else pa.nulls(len(table), field.type) for field in schema], schema=schema)
