"""The statistical tests behind the drift checks, and how many rows they need."""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, hypergeom, ncx2

from contracts.core.policies import Drift
from contracts.core.reference import CHI_SQUARE_SCALE, Reference, jensen_shannon_distance

POOLED = 10  # expected rows below which a bin is pooled with other rare ones
POWER = 0.9  # with which a window must find a shift of `Drift.detect`, else it is insufficient
TYPICAL = 10  # bins of the column for which that power is computed


def fisher_exact(before: np.ndarray, now: np.ndarray, index: int, baseline_effect: float) -> float:
    """The p-value of Fisher's exact test that a share rose this far, or fell,
    where it may be `baseline_effect` above or below the training data's."""
    all_before, all_now = int(before.sum()), int(now.sum())
    high, low = (int(np.clip(round(before[index] + sign * baseline_effect * all_before), 0, all_before))
                 for sign in (1, -1))
    rise = hypergeom.sf(now[index] - 1, all_before + all_now, high + now[index], all_now)
    if index:
        return float(rise)  # fewer new values are no fault
    return float(
        min(1.0, 2 * min(rise, hypergeom.cdf(now[index], all_before + all_now, low + now[index], all_now))))


def chi_square(before: np.ndarray, now: np.ndarray, baseline_effect: float) -> float:
    """The p-value of two lists of counts (bins,) that differ at least this much, where
    their distributions may be `baseline_effect` (a Jensen-Shannon distance) apart.

    The squared distance times the sample size follows Pearson's chi-square where the distributions are the
    same, and a noncentral one where they differ. Bins with few expected rows are pooled.
    """
    table = np.array([before, now], np.float64)
    rows = table.sum(axis=1)
    if not rows.all():
        return 1.0
    rare = table.sum(axis=0) * rows.min() / rows.sum() < POOLED
    pooled = table[:, rare].sum(axis=1, keepdims=True)
    table = table[:, ~rare]
    if pooled.sum() * rows.min() / rows.sum() >= POOLED:
        table = np.column_stack([table, pooled])
    elif pooled.sum() and table.shape[1]:  # even pooled they are few: added to the rarest other bin
        table[:, [table.sum(axis=0).argmin()]] += pooled
    if table.shape[1] < 2:
        return 1.0
    size = CHI_SQUARE_SCALE * rows.prod() / rows.sum()
    return float(ncx2.sf(size * jensen_shannon_distance(*table) ** 2, table.shape[1] - 1,
                         size * baseline_effect ** 2))


def rows_needed(policy: Drift, reference: Mapping[str, Reference], checks: int) -> int | None:
    """The rows that a window needs to find a shift of `policy.detect` with POWER, corrected for the number of
    checks; `policy.min_rows` where that is set; None where the training data itself has too few rows."""
    if policy.min_rows is not None:
        return max(policy.min_rows, 1)
    trained = min((int(column.counts.sum()) for column in reference.values()), default=0)
    limit = chi2.isf(policy.false_alarms / max(checks, 1), TYPICAL - 1)
    strength = CHI_SQUARE_SCALE * policy.detect ** 2
    pairs = brentq(lambda noncentral: ncx2.sf(limit, TYPICAL - 1, noncentral) - POWER, 1e-6, 1e4) / strength
    return int(np.ceil(1 / (1 / pairs - 1 / trained))) if trained > pairs else None
