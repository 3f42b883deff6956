"""What is ordinary in a version's performance on labels, as it is stored with the version, and what that
says of a window whose labels are not in. Without scipy, which takes long to import."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, mean, stdev

import msgspec
from msgspec import Struct

from contracts.core.outcome_verdict import OutcomeMeasure

# The file of a version that holds what is ordinary in its performance.
BASELINE_FILE = "performance.json"
MIN_ERRORS = 3  # of earlier estimates, from which on an interval is given


class Ordinary(Struct, frozen=True):
    """A measure in ordinary windows: its mean, that mean's standard error, and the standard deviation from
    window to window beyond what sampling gives, as estimated from `windows` independent parts; `furthest`:
    the largest value seen."""

    mean: float = 0.0
    error: float = 0.0
    spread: float = 0.0
    windows: float = 1.0
    furthest: float = 0.0


class OutcomeBaseline(Struct, frozen=True):
    """What is ordinary by measure, and by slice's column and measure; the `shares` of the classes.

    `slices`: by column, value and measure, where a slice had enough rows; `columns`: pooled over a column's.
    `estimate_errors`: of each window, by how much the log loss that came true exceeded the promised one.
    """

    whole: dict[OutcomeMeasure, Ordinary]
    columns: dict[str, dict[OutcomeMeasure, Ordinary]]
    slices: dict[str, dict[str, dict[OutcomeMeasure, Ordinary]]]
    shares: list[float]
    estimate_errors: list[float] = []


def encode_baseline(baseline: OutcomeBaseline) -> bytes:
    return msgspec.json.encode(baseline)


def decode_baseline(content: bytes) -> OutcomeBaseline:
    return msgspec.json.decode(content, type=OutcomeBaseline)


def expected_loss(promised: float, errors: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a window's log loss while its labels are not in, from what its probabilities
    promise and by how much the log loss of earlier windows exceeded that; None for fewer than MIN_ERRORS."""
    if len(errors) < MIN_ERRORS:
        return None
    margin = _student(0.975, len(errors) - 1) * stdev(errors) * sqrt(1 + 1 / len(errors))
    middle = promised + mean(errors)
    return max(middle - margin, 0.0), middle + margin


def _student(share: float, freedom: int) -> float:
    """The quantile of Student's t (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    return (z + (z ** 3 + z) / (4 * freedom) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2)
            + (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / (384 * freedom ** 3))
