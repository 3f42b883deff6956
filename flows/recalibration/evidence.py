"""The labelled answers that a recalibration is fitted to and judged by."""

from datetime import datetime

import numpy as np
import pandas as pd

from contracts.core.recalibration import LabelledAnswers
from flows.monitoring.outcomes import ingested_events, join_outcomes
from flows.monitoring.windows import champions
from registry.context import ModelContext
from registry.layout import PREDICTIONS
from registry.traffic import traffic_keys
from service.model import Model

MAX_ROWS = 200_000  # an even sample of more: a layer has few parameters


def labelled_answers(context: ModelContext, booster: Model, start: datetime,
                     until: datetime) -> LabelledAnswers:
    """The labelled answers to events of [start, until), whichever version gave them, and what `booster`, a
    model without a layer, says to what the callers sent.

    Predicted again, so that no layer is laid on another. Of a window in which nothing was logged, or which
    has no label for what was logged, the ingested events are predicted instead.
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
    return LabelledAnswers(columns[time], contract.labels_of(rows), booster.probabilities(columns),
                           {name: rows[name].to_numpy() for name in contract.gate.slices})


def _labelled_rows(context: ModelContext, start: datetime) -> pd.DataFrame:
    """A window's labelled rows: the columns sent, or of events as they were ingested, and the label's."""
    events, found = ingested_events(context, start), []
    for version in champions(context):
        if not traffic_keys(context, PREDICTIONS, version, start):
            continue
        outcomes = join_outcomes(context, version, start, events)
        if len(outcomes.labelled):
            needs = ["id", *context.contract.label.needs]
            sent = outcomes.logged.drop(columns=[name for name in needs[1:] if name in outcomes.logged])
            found.append(outcomes.labelled[needs].merge(sent, on="id"))
    return pd.concat(found, ignore_index=True) if found else events
