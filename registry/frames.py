"""Arrow tables as data frames, with integers that stay integers where some are missing: pandas would make
them floats, which have 53 bits."""

import pandas as pd
import pyarrow as pa

INTEGERS = {pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype(),
            pa.int64(): pd.Int64Dtype(), pa.uint8(): pd.UInt8Dtype(), pa.uint16(): pd.UInt16Dtype(),
            pa.uint32(): pd.UInt32Dtype(), pa.uint64(): pd.UInt64Dtype()}


def to_frame(rows: pa.Table | pa.RecordBatch) -> pd.DataFrame:
    """The rows; a column of integers is one of numpy's where none is missing."""
    has_missing = any(column.null_count and pa.types.is_integer(column.type) for column in rows.columns)
    return rows.to_pandas(types_mapper=INTEGERS.get if has_missing else None)
