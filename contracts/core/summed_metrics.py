"""The metrics that the gate has limits for, from sums over a window's labelled predictions."""

import numpy as np

from contracts.core.classification import CALIBRATION_BINS
from contracts.core.contract import Contract
from contracts.core.metrics import Metrics
from contracts.core.outcome_measures import ranked
from contracts.core.outcome_sums import OutcomeSums


def metrics_of_sums(contract: Contract, sums: OutcomeSums) -> Metrics:
    """As `classification_metrics` gives them, None where undefined. Log loss and recalls are exact; AUC and
    calibration error follow from fine bins of the probability, see `outcome_sums`."""
    if not sums.rows:
        return Metrics(rows=0)
    observed = sums.observed
    areas = [area for _, _, area, _ in ranked(sums)]
    recalls = [int(recalled) / int(rows) if rows else None for recalled, rows in zip(sums.recalled, observed)]
    return Metrics(
        rows=sums.rows, log_loss=sums.loss / sums.rows, calibration_error=_calibration_error(sums),
        auc=float(np.mean(areas)) if observed.all() else None,
        recall=dict(zip(contract.label.classes, recalls)))


def _calibration_error(sums: OutcomeSums) -> float:
    """Expected calibration error in CALIBRATION_BINS equal bins, into which a finer bin goes as a whole."""
    errors = []
    for counts, hits, promised in zip(sums.counts, sums.hits, sums.probabilities):
        share = promised / np.maximum(counts, 1)
        bins = np.clip((share * CALIBRATION_BINS).astype(int), 0, CALIBRATION_BINS - 1)
        errors.append(np.abs(np.bincount(bins, promised - hits, CALIBRATION_BINS)).sum() / sums.rows)
    return float(np.mean(errors))
