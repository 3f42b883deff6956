"""Read .parquet and .csv files."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from contracts.core.errors import PerennialError
from registry.frames import to_frame


def read_table(path: Path, condition: Any = None) -> pd.DataFrame:
    """A file's rows; a .csv's cells are text, and a unit in its header, `temp [°C]`, goes to
    `attrs["units"]`. Of a .parquet file only the rows that fulfil an Arrow expression."""
    if not path.is_file():
        raise PerennialError(f"no file {path}; name a .parquet or .csv file")
    if path.suffix not in (".parquet", ".csv"):
        raise PerennialError(f"{path} is a {path.suffix!r}; name a .parquet or .csv file")
    try:
        rows = (_read_parquet(path, condition) if path.suffix == ".parquet"
                else pd.read_csv(path, dtype="str"))
    except (ValueError, OSError) as error:  # pandas' and Arrow's errors are subclasses
        raise PerennialError(f"{path} can't be read as {path.suffix}: {error}; correct it or name another "
                             f"--file") from error
    if path.suffix == ".csv":
        heads = [re.findall(r"^(.+?)(?: \[(.+)\])?$", head)[0] for head in rows]  # "dep_delay [min]"
        rows.columns = [name for name, _ in heads]
        rows.attrs["units"] = {name: unit for name, unit in heads if unit}
    return rows


def _read_parquet(path: Path, condition: Any) -> pd.DataFrame:
    """As `pandas.read_parquet`, which would make floats of integers where some are missing."""
    table = pq.read_table(path, filters=condition)
    rows = to_frame(table)
    rows.attrs = json.loads((table.schema.metadata or {}).get(b"PANDAS_ATTRS", b"{}"))
    return rows
