"""Store labels that callers send for the ids of predictions."""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from contracts.core.cells import read_cells
from contracts.core.errors import PerennialError
from flows.tables import read_table
from registry.context import ModelContext
from registry.data import content_digest
from registry.events import LabelsStored
from registry.labels import put_labels


def store_labels(context: ModelContext, file: str) -> int:
    """Store labels of prediction ids from a .parquet or .csv file; returns how many. The same
    file again changes nothing; of an id with several labels the first one holds."""
    needs, rows = context.contract.label.needs, read_table(Path(file))
    if lacking := [name for name in ("id", *needs) if name not in rows]:
        raise PerennialError(f"{file} has no column {', '.join(lacking)}; it holds a prediction's id and "
                             f"{', '.join(needs)} on each row")
    if rows.empty:
        raise PerennialError(f"{file} has no row; name a file with a prediction's id and its label on each")
    typed = {name: read_cells(rows[name], context.contract.python_type(name)) for name in needs}
    for name, values in typed.items():
        if (bad := rows[name].notna() & values.isna()).any():
            raise PerennialError(f"{file}: {name} is {rows.loc[bad, name].iloc[0]!r} in row "
                                 f"{int(bad.to_numpy().argmax())}, not of type "
                                 f"{context.contract.python_type(name).__name__}; {int(bad.sum())} rows are "
                                 f"like it: correct them")
    ids = rows["id"].astype(str).tolist()
    cells = {name: values.array for name, values in typed.items()}
    digest = content_digest(pd.DataFrame({"id": ids, **cells}))
    put_labels(context, ids, {name: pa.array(values, from_pandas=True) for name, values in typed.items()},
               digest)
    context.ledger.record(LabelsStored(labels=digest, rows=len(rows), by_replica=True), once=("labels",))
    return len(rows)
