"""Read the cells of a text file as the types that a contract names."""

from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

MAX_EXACT, MAX_INTEGER = 2**53, 2**63  # of a float64, of an int64
TEXT_DTYPE = pd.StringDtype(na_value=np.nan)  # what `astype("str")` gives


def read_cells(values: pd.Series, kind: type) -> pd.Series:
    """A column's cells as `kind`, text read as in a CSV; a cell that can't be read becomes missing."""
    if kind is str and isinstance(values.dtype, pd.StringDtype):
        return values if values.dtype == TEXT_DTYPE else values.astype(TEXT_DTYPE)
    if kind is bool and values.dtype == bool:
        return values.astype("boolean")
    if kind is int and values.dtype.kind == "i":
        return values.astype("Int64")
    if kind is datetime and values.dtype.kind != "O":
        naive = values.dtype.kind == "M" and values.dt.tz is None
        return values if naive else pd.Series(pd.NaT, values.index, "datetime64[us]", values.name)
    return _read(values.astype(object) if values.dtype.kind == "O" else values, kind)


def _read(plain: pd.Series, kind: type) -> pd.Series:
    if kind is str:
        return plain.where(plain.map(lambda cell: isinstance(cell, str)), None).astype(TEXT_DTYPE)
    if kind is bool:
        return plain.astype(str).str.lower().map({"true": True, "false": False}).astype("boolean")
    if kind is datetime:
        return pd.to_datetime(plain.map(_time)).astype("datetime64[us]")
    numbers = pd.to_numeric(plain if plain.dtype.kind in "iufO" else plain.map(lambda _: None),
                            errors="coerce")
    return _integers(plain, numbers) if kind is int else numbers.astype(float)


def _integers(plain: pd.Series, numbers: pd.Series) -> pd.Series:
    """The whole ones of the numbers in these cells: where one is missing they are floats, which have 53 bits,
    so the larger ones are read again. One with more than 64 bits is missing."""
    whole = numbers.where(numbers % 1 == 0)
    integers = whole.where(whole.abs() < MAX_INTEGER).astype("Int64")
    if numbers.dtype.kind == "f" and plain.dtype.kind == "O":
        for place in np.flatnonzero(whole.abs() >= MAX_EXACT):
            with suppress(ValueError):  # "1e16" is what its float is
                exact = int(plain.iloc[place])
                integers.iloc[place] = exact if -MAX_INTEGER <= exact < MAX_INTEGER else pd.NA
    return integers


def _time(cell: Any) -> datetime | None:
    """A time without a zone, or its text in ISO 8601."""
    try:
        time = datetime.fromisoformat(cell) if isinstance(cell, str) else cell
    except ValueError:
        return None
    return time if isinstance(time, datetime) and time.tzinfo is None else None
