"""What came true of a window's logged predictions, in bounded memory however many they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa

from contracts.core.classification import estimate_of_sums
from contracts.core.outcome_sums import PromisedSums, SlicedSums
from contracts.core.verdict import Estimate
from flows.monitoring.clock_shift import joins_if_shifted
from flows.monitoring.event_keys import EventKey
from flows.monitoring.join import LABEL, Joined, join, sent_labels
from flows.monitoring.logged import CODE, NUMBER_OF, SENT, LoggedPredictions
from flows.monitoring.spill import spill
from flows.monitoring.window_events import WindowEvents
from registry import data
from registry.context import ModelContext
from registry.predictions import prediction_files, read_predictions
from service.prediction_log import NO_NUMBER, prediction_id

INGESTED = ".later"  # suffix of a column as it was ingested, beside the one that the caller sent
NO_LABELS = pd.DataFrame({name: np.zeros(0, np.int64) for name in (CODE, NUMBER_OF, LABEL)})


@dataclass(frozen=True)
class Outcomes:
    """A version's logged predictions of a window, joined with ingested events by the contract's key, and with
    labels sent for their ids.

    `promised`: sums over all logged predictions; `sums`: over all that are labelled; how many are `joined`
    with one of the window's `events`, by the key. `can_join`: whether callers sent the key, or labels were
    sent for ids. `shifted`: see `joins_if_shifted`. `sample`: some of the logged predictions as they were
    sent, with their id, probabilities, and `label`, the index of their class, missing where it is unknown;
    `sample_joined`: those of them with an event, whose columns are there, too, with the suffix INGESTED.
    """

    promised: PromisedSums
    sums: SlicedSums
    joined: int = 0
    events: int = 0
    can_join: bool = False
    shifted: Mapping[str, int] = field(default_factory=dict)
    sample: pd.DataFrame = field(default_factory=pd.DataFrame)
    sample_joined: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def coverage(self) -> float:
        return self.sums.whole.rows / max(self.promised.rows, 1)

    @property
    def estimate(self) -> Estimate | None:
        return estimate_of_sums(self.promised) if self.promised.rows else None


def join_outcomes(context: ModelContext, version: str, start: datetime) -> Outcomes:
    """Join a window's predictions with its events, and with labels sent for ids; without a key, or where
    callers leave it out, with the latter alone."""
    with spill(context.run) as opened:
        logged = LoggedPredictions(context.contract, opened)
        for table in read_predictions(context, prediction_files(context, version, start)):
            logged.add(table)
        ingested = data.newest(context.store, context.name)
        span = start, start + context.contract.drift.window
        sample, key = logged.sample.table(), EventKey(context.contract, logged.in_seconds)
        if sample is None:
            return Outcomes(logged.sums, SlicedSums.empty(len(context.contract.label.classes)),
                            events=data.count(context.store, ingested, *span))
        events = WindowEvents(key, opened, sample) if logged.with_key else None
        if events:
            events.read(context.store, ingested, *span)
        pa.default_memory_pool().release_unused()  # of both passes: the join needs memory of its own
        joined = join(key, opened, logged, events, sent_labels(context, opened, logged))
        found = events.of_sample() if events else None
        rows = _as_frame(logged, sample, joined)
        return Outcomes(
            logged.sums, joined.sums, joined.joined,
            events.rows if events else data.count(context.store, ingested, *span),
            bool(logged.with_key or joined.sums.whole.rows),
            joins_if_shifted(key, opened, logged, events, joined),
            rows, _with_events(context, rows, *found) if found else pd.DataFrame())


def _as_frame(logged: LoggedPredictions, sample: pa.Table, joined: Joined) -> pd.DataFrame:
    """The sample with ids and labels."""
    names, codes, numbers = logged.replicas.names, sample[CODE].to_pylist(), sample[NUMBER_OF].to_pylist()
    ids = [names[code] if number == NO_NUMBER else prediction_id(names[code], number)
           for code, number in zip(codes, numbers)]
    sent = [name for name in sample.column_names if name.startswith(SENT)]
    frame = sample.select([CODE, NUMBER_OF, *sent]).to_pandas()
    labels = pa.concat_tables(joined.labelled).to_pandas() if joined.labelled else NO_LABELS
    labelled = frame[[CODE, NUMBER_OF]].merge(labels, on=[CODE, NUMBER_OF], how="left")[LABEL]
    return frame[sent].set_axis([name.removeprefix(SENT) for name in sent], axis=1).assign(
        id=ids, label=labelled.astype("Int64").array)


def _with_events(context: ModelContext, sample: pd.DataFrame, rows: np.ndarray,
                 events: pa.Table) -> pd.DataFrame:
    """Rows of the sample with their events."""
    contract, ingested = context.contract, events.to_pandas()
    columns = {f"{name}{INGESTED}" if name in sample else name: ingested[name].array
               for name in ingested if name not in contract.key}
    return sample.iloc[rows].reset_index(drop=True).assign(**columns)
