"""Read .parquet and .csv files."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from contracts.core.errors import PerennialError
from registry.frames import INTEGERS


def read_table(path: Path, condition: Any = None) -> pd.DataFrame:
    """A file's rows; a .csv's cells are text, and a unit in its header, `temp [°C]`, goes to
    `attrs["units"]`. Of a .parquet file only the rows that fulfil an Arrow expression."""
    if not path.is_file():
        raise PerennialError(f"no file {path}; name a .parquet or .csv file")
    if path.suffix not in (".parquet", ".csv"):
        raise PerennialError(f"{path} is a {path.suffix!r}; name a .parquet or .csv file")
    try:
        rows = (pd.read_parquet(path, filters=condition, to_pandas_kwargs={"types_mapper": INTEGERS.get})
                if path.suffix == ".parquet" else pd.read_csv(path, dtype="str"))
    except (ValueError, OSError) as error:  # pandas' and Arrow's errors are subclasses
        raise PerennialError(f"{path} can't be read as {path.suffix}: {error}; correct it or name another "
                             f"--file") from error
    if path.suffix == ".csv":
        heads = [re.findall(r"^(.+?)(?: \[(.+)\])?$", head)[0] for head in rows]  # "dep_delay [min]"
        rows.columns = [name for name, _ in heads]
        rows.attrs["units"] = {name: unit for name, unit in heads if unit}
    return rows
