"""Read .parquet and .csv files."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from contracts.core.errors import PerennialError


def read_table(path: Path, here: Any = None) -> pd.DataFrame:
    """A file's rows, of a .csv all as text; a unit in a .csv's header, `temp [°C]`, is
    read as one. Of a .parquet file only those for which an Arrow expression holds."""
    if not path.is_file():
        raise PerennialError(f"no file {path}; name a .parquet or .csv file")
    if path.suffix not in (".parquet", ".csv"):
        raise PerennialError(f"{path} is a {path.suffix!r}; name a .parquet or .csv file")
    try:
        rows = (pd.read_parquet(path, filters=here) if path.suffix == ".parquet"
                else pd.read_csv(path, dtype="str"))
    except (ValueError, OSError) as error:  # pandas' and Arrow's own are among them
        raise PerennialError(f"{path} can't be read as {path.suffix}: {error}; mend it or name another "
                             f"--file") from error
    if path.suffix == ".csv":
        heads = [re.findall(r"^(.+?)(?: \[(.+)\])?$", head)[0] for head in rows]  # "dep_delay [min]"
        rows.columns = [name for name, _ in heads]
        rows.attrs["units"] = {name: unit for name, unit in heads if unit}
    return rows
