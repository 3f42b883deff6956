"""How many rows of each class were ingested before the gate's window."""

from collections import Counter
from datetime import datetime

import numpy as np
import pandas as pd

from contracts.core.absent_classes import ClassHistory
from registry import data
from registry.context import ModelContext


def class_history(context: ModelContext, source: data.DataVersion, until: datetime) -> ClassHistory:
    """Count the labelled rows of a data version before `until`, some at a time."""
    contract = context.contract
    rows: Counter[str] = Counter()
    newest: dict[str, datetime] = {}
    columns = tuple(dict.fromkeys((contract.event_time, *contract.label.needs)))
    for chunk in data.chunks(context.store, source, columns):
        older = chunk[chunk[contract.event_time] < until]
        labels = contract.labels_of(older) if len(older) else np.zeros(0, np.int64)
        for name, times in older[contract.event_time].groupby(np.asarray(contract.label.classes)[labels]):
            rows[name] += len(times)
            newest[name] = max(newest.get(name, datetime.min), pd.Timestamp(times.max()).to_pydatetime())
    return ClassHistory(until, dict(rows), newest)
