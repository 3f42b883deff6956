"""The statistical tests behind the drift checks, and how many rows they need."""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, hypergeom, ncx2

from contracts.core.policies import Drift
from contracts.core.reference import CHI_SQUARE_SCALE, Reference, jensen_shannon_distance

POOLED = 10  # rows that are expected in a bin, below which it is tested together with others that are as rare
# With which a window must find a shift of `Drift.detect` in a column of TYPICAL bins, or it is insufficient.
POWER = 0.9
TYPICAL = 10


def fisher_exact(before: np.ndarray, now: np.ndarray, index: int, ordinary: float) -> float:
    """Fisher's exact chance that a share rose this far, or fell,
    where it may be `ordinary` above or below the training data's."""
    all_before, all_now = int(before.sum()), int(now.sum())
    high, low = (int(np.clip(round(before[index] + sign * ordinary * all_before), 0, all_before))
                 for sign in (1, -1))
    rise = hypergeom.sf(now[index] - 1, all_before + all_now, high + now[index], all_now)
    if index:
        return float(rise)  # that fewer values are new is no news
    return float(
        min(1.0, 2 * min(rise, hypergeom.cdf(now[index], all_before + all_now, low + now[index], all_now))))


def chi_square(before: np.ndarray, now: np.ndarray, ordinary: float) -> float:
    """The chance of two lists of counts at least this unlike,
    where their distributions may be `ordinary` apart.

    Squared and times the size of both, their Jensen-Shannon distance follows Pearson's chi-square where it
    is small, and a noncentral one where the truth is apart. Bins of few expected rows are taken together.
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
    elif pooled.sum() and table.shape[1]:  # even together they are few: with the rarest of the others
        table[:, [table.sum(axis=0).argmin()]] += pooled
    if table.shape[1] < 2:
        return 1.0
    size = CHI_SQUARE_SCALE * rows.prod() / rows.sum()
    return float(ncx2.sf(size * jensen_shannon_distance(*table) ** 2, table.shape[1] - 1,
                         size * ordinary ** 2))


def rows_needed(policy: Drift, reference: Mapping[str, Reference], checks: int) -> int | None:
    """How many rows find a shift of `policy.detect` in a typical column with
    POWER, after correction for the number of checks; None where the training data
    itself has too few. `policy.min_rows` takes the place of the calculation."""
    if policy.min_rows is not None:
        return max(policy.min_rows, 1)
    trained = min((int(one.counts.sum()) for one in reference.values()), default=0)
    limit = chi2.isf(policy.false_alarms / max(checks, 1), TYPICAL - 1)
    strength = CHI_SQUARE_SCALE * policy.detect ** 2
    pairs = brentq(lambda noncentral: ncx2.sf(limit, TYPICAL - 1, noncentral) - POWER, 1e-6, 1e4) / strength
    return int(np.ceil(1 / (1 / pairs - 1 / trained))) if trained > pairs else None
