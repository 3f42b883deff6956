"""A window's labelled predictions, summed and checked, with those of windows before where they are few."""

from datetime import datetime

import numpy as np
import pandas as pd

from contracts.core.classification import measure_performance
from contracts.core.contract import Contract
from contracts.core.decay import judge_outcomes
from contracts.core.outcome_measures import BLOCKS, block_of
from contracts.core.outcome_sums import SlicedSums
from contracts.core.outcome_verdict import OutcomeFigures
from contracts.core.verdict import Performance
from flows.monitoring.estimates import baseline_of
from flows.monitoring.outcomes import Outcomes, ingested_events, join_outcomes
from flows.monitoring.windows import MAX_WINDOWS
from registry.context import ModelContext
from service.model import Model


def outcome_figures(context: ModelContext, model: Model, version: str, start: datetime, outcomes: Outcomes,
                    events: pd.DataFrame) -> OutcomeFigures:
    """The checks on the window's labels. Where there are too few, those of the windows before it that the
    same version answered are added, MAX_WINDOWS in all."""
    contract = context.contract
    sums, coverage = window_sums(contract, model, outcomes, events), coverage_of(outcomes)
    windows = 1
    while sums.whole.rows < contract.drift.min_labels and windows < MAX_WINDOWS:
        earlier = start - windows * contract.drift.window
        events = ingested_events(context, earlier)
        before = join_outcomes(context, version, earlier, events)
        if before.logged.empty:
            break
        sums, windows = sums + window_sums(contract, model, before, events), windows + 1
    return judge_outcomes(contract.drift, contract.label.classes, sums, baseline_of(context, version),
                          windows=windows, coverage=coverage)


def coverage_of(outcomes: Outcomes) -> float | None:
    """The share of the logged predictions with a label; None where they can't be joined."""
    return outcomes.coverage if outcomes.can_join else None


def window_sums(contract: Contract, model: Model, outcomes: Outcomes, events: pd.DataFrame) -> SlicedSums:
    """The sums of the logged answers that have a label; where they can't be joined (no log, or no key), of
    the model's answers to the events."""
    if len(outcomes.labelled):
        return _sums(contract, outcomes.labelled, contract.label.probabilities_in(outcomes.labelled))
    if outcomes.can_join or events.empty:
        return SlicedSums.empty(len(contract.label.classes))
    return _sums(contract, events, model.probabilities(contract.columns_of(events)))


def _sums(contract: Contract, rows: pd.DataFrame, probabilities: np.ndarray) -> SlicedSums:
    times = rows[contract.event_time].to_numpy()
    slices = {name: rows[name].to_numpy() for name in contract.gate.slices if name in rows}
    blocks = block_of(times, np.timedelta64(contract.drift.window))
    return SlicedSums.of(contract.labels_of(rows), probabilities, {BLOCKS: blocks, **slices})


def performance_of(context: ModelContext, model: Model, outcomes: Outcomes,
                   events: pd.DataFrame) -> Performance | None:
    """The performance of the logged answers on the window's matured labels. If they can't be joined
    (no log, or no key) the model predicts the events again. None while there are no labels."""
    contract, labelled = context.contract, outcomes.labelled
    if len(labelled):
        return measure_performance(contract, contract.labels_of(labelled),
                                   contract.label.probabilities_in(labelled), outcomes.coverage)
    if outcomes.can_join or events.empty:
        return None
    return measure_performance(contract, contract.labels_of(events),
                               model.probabilities(contract.columns_of(events)))
