"""The labelled answers that a recalibration is fitted to and judged by."""

from datetime import datetime

import numpy as np
import pandas as pd

from contracts.core.recalibration import LabelledAnswers
from flows.monitoring.join import LABEL
from flows.monitoring.outcomes import join_outcomes
from flows.monitoring.windows import champions
from registry import data
from registry.context import ModelContext
from registry.predictions import prediction_files
from service.model import Model

MAX_ROWS = 200_000  # an even sample of more: a layer has few parameters


def labelled_answers(context: ModelContext, booster: Model, start: datetime,
                     until: datetime) -> LabelledAnswers:
    """The labelled answers to events of [start, until), whichever version gave them, and what `booster`, a
    model without a layer, says to what the callers sent.

    Predicted again, so that no layer is laid on another. A slice that callers do not send is left out. Of a
    window in which nothing was logged, or which has no label for what was logged, the ingested events are
    predicted instead.
    """
    contract, time = context.contract, context.contract.event_time
    first, windows = contract.window_of(start)[0], []
    while first < until:
        windows.append(_labelled_rows(context, first))
        first += contract.drift.window
    rows = pd.concat([frame for frame in windows if len(frame)] or windows[:1], ignore_index=True)
    rows = rows[(rows[time] >= start) & (rows[time] < until)].sort_values(time, kind="stable")
    rows = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_ROWS)).astype(int))]
    columns = contract.columns_of(rows)
    return LabelledAnswers(columns[time], rows[LABEL].to_numpy(np.int64), booster.probabilities(columns),
                           {name: rows[name].to_numpy() for name in contract.gate.slices if name in rows})


def _labelled_rows(context: ModelContext, start: datetime) -> pd.DataFrame:
    """A window's labelled rows: the columns sent, or of events as they were ingested, and LABEL."""
    contract, found = context.contract, []
    for version in champions(context):
        if not prediction_files(context, version, start):
            continue
        sample = join_outcomes(context, version, start).sample
        if len(sample) and sample[LABEL].notna().any():
            found.append(sample[sample[LABEL].notna()])
    if found:
        return pd.concat(found, ignore_index=True)
    names = tuple(dict.fromkeys((*contract.request_columns, *contract.gate.slices, *contract.label.needs)))
    rows = data.read(context.store, data.newest(context.store, context.name), start,
                     start + contract.drift.window)
    return pd.DataFrame(contract.columns_of(rows, names)).assign(**{LABEL: contract.labels_of(rows)})
