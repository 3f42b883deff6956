"""The gate: may this challenger take the champion's place?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from contracts.core.classification import class_distance, classification_metrics, probability_fault, row_losses
from contracts.core.contract import Contract
from contracts.core.policies import Gate
from contracts.core.verdict import Verdict

RESAMPLES = 1_000
MISSING, OTHERS = "(missing)", "(others)"  # the slices of rows without a value, and of values with too few rows


def gate(
    contract: Contract, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray | None,
    slices: Mapping[str, np.ndarray], *, latency_ms: float, size_mb: float, disagreement: float, refit_shift: float,
) -> Verdict:
    """May this challenger be promoted? Both models' probabilities are of the same newest labelled rows.

    `latency_ms`: 99th percentile of one record. `disagreement`: the largest difference between the saved
    model's probabilities, computed by a new process, and the trainer's. `refit_shift`: the mean absolute
    difference between the probabilities judged here and those of the model refitted on every row, which serves.
    """
    limits = contract.gate
    costs = {"latency_ms": latency_ms, "size_mb": size_mb, "disagreement": disagreement, "refit_shift": refit_shift}
    figures: dict[str, Any] = {"challenger": classification_metrics(contract, labels, challenger)}
    figures |= {name: cost if np.isfinite(cost) else None for name, cost in costs.items()}  # the ledger holds no NaN
    flaw = probability_fault(contract, challenger)
    unknown = [] if flaw else _undefined(limits, figures["challenger"])
    reasons = [f"the challenger {flaw}"] if flaw else [] if unknown else _absolute(limits, figures["challenger"])
    for name, value, limit in (("latency", latency_ms, limits.latency_ms), ("size", size_mb, limits.size_mb),
                               ("disagreement with the saved model", disagreement, 0.0),
                               ("shift of the refitted model", refit_shift, limits.refit_shift)):
        if not value <= limit:
            reasons.append(f"{name} {value:.4g} is above {limit:.4g}")
    if champion is not None and (lack := probability_fault(contract, champion)):
        unknown.append(f"the champion {lack}: nothing to compare with")
    elif champion is not None and not flaw and not unknown:
        figures["champion"] = classification_metrics(contract, labels, champion)
        figures["paired"] = paired(limits, labels, challenger, champion)
        figures["apart"] = class_distance(contract, challenger, champion)
        figures["slices"], thin = _slices(limits, labels, challenger, champion, slices)
        reasons += _not_better(limits, figures["paired"]) + _behind(limits, figures["slices"])
        unknown += thin
    outcome = "failed" if reasons else "insufficient" if unknown else "passed"
    return Verdict("gate", outcome, (*reasons, *unknown), figures)


def _undefined(limits: Gate, figures: Mapping[str, Any]) -> list[str]:
    if figures["rows"] < limits.min_rows:
        return [f"{figures['rows']} labelled rows, at least {limits.min_rows} are needed"]
    absent = [name for name, recall in figures["recall"].items() if recall is None]
    return [f"no labelled row of class {', '.join(absent)}: AUC and recall are undefined"] if absent else []


def _absolute(limits: Gate, figures: Mapping[str, Any]) -> list[str]:
    reasons = []
    if not figures["log_loss"] <= limits.log_loss:
        reasons.append(f"log loss {figures['log_loss']:.4f} is above {limits.log_loss}")
    if not figures["auc"] >= limits.auc:
        reasons.append(f"AUC {figures['auc']:.4f} is below {limits.auc}")
    if not figures["calibration_error"] <= limits.calibration_error:
        reasons.append(f"calibration error {figures['calibration_error']:.4f} is above {limits.calibration_error}")
    for name, least in limits.recall.items():
        if not figures["recall"][name] >= least:
            reasons.append(f"recall of {name} {figures['recall'][name]:.4f} is below {least}")
    return reasons


def paired(limits: Gate, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray) -> dict[str, float]:
    """Challenger minus champion: mean log loss of the same rows and its bootstrap interval (below 0: better)."""
    difference = row_losses(labels, challenger) - row_losses(labels, champion)
    if np.ptp(difference) == 0:  # the very same model: scipy's interval would be NaN
        return {"difference": float(difference[0]), "low": float(difference[0]), "high": float(difference[0])}
    interval = bootstrap((difference,), np.mean, n_resamples=RESAMPLES, batch=50, method="percentile",
                         confidence_level=limits.confidence, rng=0).confidence_interval
    return {"difference": float(difference.mean()), "low": float(interval.low), "high": float(interval.high)}


def _not_better(limits: Gate, difference: Mapping[str, float]) -> list[str]:
    if difference["high"] <= limits.margin and difference["difference"] < limits.margin:
        return []
    return [
        f"not better than the champion: log loss differs by {difference['difference']:+.4f}, "
        f"{limits.confidence:.0%} interval [{difference['low']:+.4f}, {difference['high']:+.4f}], "
        f"its upper end must not exceed {limits.margin:+.4f}"
    ]


def _slices(
    limits: Gate, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray, slices: Mapping[str, np.ndarray],
) -> tuple[list[dict[str, Any]], list[str]]:
    """How far the challenger is behind in each slice; and the columns of which no value has enough rows.

    Rows without a value are a slice; values with too few rows are one together.
    """
    difference = row_losses(labels, challenger) - row_losses(labels, champion)
    judged, thin = [], []
    for column in limits.slices:
        values = pd.Series(slices[column], dtype=object)
        enough = values.map(values.value_counts()) >= limits.slice_rows
        if not enough.any():
            thin.append(f"no slice of {column} has {limits.slice_rows} rows")
        groups = pd.Series(difference).groupby(values.where(enough, OTHERS).mask(values.isna(), MISSING).astype(str))
        judged += [{"column": column, "value": value, "rows": int(row["size"]), "behind": float(row["mean"])}
                   for value, row in groups.agg(["size", "mean"]).iterrows()]
    return judged, thin


def _behind(limits: Gate, judged: list[dict[str, Any]]) -> list[str]:
    """Too few rows, of all small slices together or of those without a value, are shown and not judged."""
    return [
        f"{one['column']}={one['value']} falls behind the champion by {one['behind']:.4f}, "
        f"the margin is {limits.slice_margin}"
        for one in judged if one["rows"] >= limits.slice_rows and one["behind"] > limits.slice_margin
    ]
