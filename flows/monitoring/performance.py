"""A window's labelled predictions, summed and checked, with those of windows before where they are few."""

from datetime import datetime

import pyarrow as pa

from contracts.core.classification import performance_of_sums
from contracts.core.contract import Contract
from contracts.core.decay import judge_outcomes
from contracts.core.metrics import Metrics
from contracts.core.outcome_measures import BLOCKS, block_of
from contracts.core.outcome_sums import SlicedSums
from contracts.core.outcome_verdict import OutcomeFigures
from contracts.core.summed_metrics import metrics_of_sums
from contracts.core.verdict import Performance
from flows.monitoring.estimates import baseline_of
from flows.monitoring.outcomes import Outcomes, join_outcomes
from flows.monitoring.windows import MAX_WINDOWS
from registry import data
from registry.context import ModelContext
from service.model import Model


def outcome_figures(context: ModelContext, model: Model, version: str, start: datetime, outcomes: Outcomes,
                    sums: SlicedSums) -> OutcomeFigures:
    """The checks on the window's labels. Where there are too few, those of the windows before it that the
    same version answered are added, MAX_WINDOWS in all."""
    contract, windows = context.contract, 1
    while sums.whole.rows < contract.drift.min_labels and windows < MAX_WINDOWS:
        earlier = start - windows * contract.drift.window
        before = join_outcomes(context, version, earlier)
        if not before.promised.rows:
            break
        sums, windows = sums + labelled_sums(context, model, before, earlier), windows + 1
    return judge_outcomes(contract.drift, contract.label.classes, sums, baseline_of(context, version),
                          windows=windows, coverage=outcomes.coverage if outcomes.can_join else None)


def performance_of(contract: Contract, outcomes: Outcomes, sums: SlicedSums) -> Performance | None:
    """The performance on the window's matured labels; None while there are none."""
    coverage = outcomes.coverage if outcomes.sums.whole.rows else None
    return performance_of_sums(contract, sums.whole, coverage) if sums.whole.rows else None


def metrics_of(contract: Contract, outcomes: Outcomes, sums: SlicedSums) -> Metrics | None:
    """The metrics that the gate has limits for; None where the labels are too few to hold the limits against:
    fewer than `Gate.min_rows`, or of less than `Drift.coverage` of what was logged."""
    is_covered = not outcomes.can_join or outcomes.coverage >= contract.drift.coverage
    has_enough = sums.whole.rows >= contract.gate.min_rows
    return metrics_of_sums(contract, sums.whole) if has_enough and is_covered else None


def labelled_sums(context: ModelContext, model: Model, outcomes: Outcomes, start: datetime) -> SlicedSums:
    """The sums of the logged answers on the window's matured labels. If they can't be joined
    (no log, or no key) the model predicts the events again. No rows while there are no labels."""
    contract, sums = context.contract, outcomes.sums
    if sums.whole.rows or not outcomes.events or outcomes.can_join:
        return sums
    names = [*dict.fromkeys((*contract.request_columns, *contract.label.needs, *contract.gate.slices))]
    for batch in data.batches(context.store, data.newest(context.store, context.name), start,
                              start + contract.drift.window, names):
        rows = pa.Table.from_batches([batch]).to_pandas()
        columns = contract.columns_of(rows, (*contract.request_columns, *contract.gate.slices))
        slices = {name: columns[name] for name in contract.gate.slices}
        blocks = block_of(columns[contract.event_time], contract.drift.window)
        sums += SlicedSums.of(contract.labels_of(rows), model.probabilities(columns),
                              {BLOCKS: blocks, **slices}, contract.label.class_weights)
    return sums
