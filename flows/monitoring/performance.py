"""A window's labelled predictions, summed and checked, with those of windows before where they are few."""

from datetime import datetime

import numpy as np
import pyarrow as pa

from contracts.core.decay import judge_outcomes
from contracts.core.outcome_measures import BLOCKS, block_of
from contracts.core.outcome_sums import SlicedSums
from contracts.core.outcome_verdict import OutcomeFigures
from flows.monitoring.estimates import baseline_of
from flows.monitoring.outcomes import Outcomes, join_outcomes
from flows.monitoring.windows import MAX_WINDOWS
from registry import data
from registry.context import ModelContext
from service.model import Model


def outcome_figures(context: ModelContext, model: Model, version: str, start: datetime, outcomes: Outcomes,
                    sums: SlicedSums) -> OutcomeFigures:
    """The checks on the window's labels, by its `window_sums`. Where there are too few, those of the windows
    before it that the same version answered are added, MAX_WINDOWS in all."""
    contract, windows = context.contract, 1
    while sums.whole.rows < contract.drift.min_labels and windows < MAX_WINDOWS:
        earlier = start - windows * contract.drift.window
        before = join_outcomes(context, version, earlier)
        if not before.promised.rows:
            break
        sums, windows = sums + window_sums(context, model, before, earlier), windows + 1
    return judge_outcomes(contract.drift, contract.label.classes, sums, baseline_of(context, version),
                          windows=windows, coverage=coverage_of(outcomes))


def coverage_of(outcomes: Outcomes) -> float | None:
    """The share of the logged predictions with a label; None where they can't be joined."""
    return outcomes.coverage if outcomes.can_join else None


def window_sums(context: ModelContext, model: Model, outcomes: Outcomes, start: datetime) -> SlicedSums:
    """The sums of the logged answers that have a label; where they can't be joined (no log, or no key), of
    the model's answers to the events. No rows while there are no labels."""
    contract, sums = context.contract, outcomes.sums
    if sums.whole.rows or outcomes.can_join or not outcomes.events:
        return sums
    names = [*dict.fromkeys((*contract.request_columns, *contract.label.needs, *contract.gate.slices))]
    for batch in data.batches(context.store, data.newest(context.store, context.name), start,
                              start + contract.drift.window, names):
        rows = pa.Table.from_batches([batch]).to_pandas()
        columns = contract.columns_of(rows, tuple(names))
        slices = {name: columns[name] for name in contract.gate.slices}
        blocks = block_of(columns[contract.event_time], np.timedelta64(contract.drift.window))
        sums += SlicedSums.of(contract.labels_of(rows), model.probabilities(columns),
                              {BLOCKS: blocks, **slices})
    return sums
