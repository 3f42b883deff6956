"""Windows whose labels are not all in, and how the model should have done in them."""

from datetime import datetime

from contracts.core.classification import estimate_of_sums
from contracts.core.verdict import Estimate
from flows.monitoring.logged import LoggedPredictions
from flows.monitoring.spill import spill
from registry import data, layout
from registry.context import ModelContext
from registry.predictions import prediction_files, read_predictions
from registry.traffic import windows_of


def unlabelled_windows(context: ModelContext) -> dict[str, Estimate]:
    """The estimated performance on windows whose labels are not all in, by their starts, oldest first."""
    contract, length = context.contract, context.contract.drift.window
    labelled_until = data.newest(context.store, context.name).complete_until(contract.schedule.stale_after)
    since = contract.window_of(labelled_until)[0]
    files: dict[datetime, list[str]] = {}
    for version in context.ledger.state().promoted:
        for start in windows_of(context, layout.PREDICTIONS, version, since):
            if start + length > labelled_until:
                files.setdefault(start, []).extend(prediction_files(context, version, start))
    estimates = {}
    for start, keys in sorted(files.items()):
        with spill(context.run) as opened:
            logged = LoggedPredictions(contract, opened, sums_only=True)
            for table in read_predictions(context, keys, contract.label.probability_names):
                logged.add(table)
        if logged.sums.rows:
            estimates[start.isoformat()] = estimate_of_sums(logged.sums)
    return estimates
