"""Training/serving skew: what callers sent compared with what was ingested of the same events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress

from contracts.core.contract import Contract
from contracts.core.features import Columns

TOLERANCE = 1e-4  # relative difference that is no skew: a caller may round
MIN_R2 = 0.999  # of the line from sent to ingested values, for the column to be in another unit
MIN_SHARE = 0.8  # of the faulty rows in one value of a slice, for it to be named


@dataclass(frozen=True)
class Skew:
    """A column in which sent and ingested values disagree in a `share` of the events.

    `is_broken`: the cause is known to be the caller's, such as another unit.
    """

    column: str
    share: float
    reason: str
    is_broken: bool = False


def find_skew(contract: Contract, sent: Columns, ingested: Columns) -> list[Skew]:
    """The columns in which too many of n events were sent with
    other values than were ingested, the largest share first."""
    times, slices = sent[contract.event_time], {name: sent[name] for name in contract.gate.slices
                                                if name in sent}
    found = [_compared(contract, name, sent[name], ingested[name], times, slices) for name in ingested]
    return sorted((skew for skew in found if skew), key=lambda skew: -skew.share)


def find_answer_skew(contract: Contract, answered: np.ndarray, recomputed: np.ndarray,
                     times: np.ndarray) -> list[Skew]:
    """Whether the service answered other probabilities, (n, classes), than
    the registered model gives for the records that were sent."""
    differs = (np.abs(answered - recomputed) > TOLERANCE).any(axis=1)
    if not _matters(contract, differs):
        return []
    return [Skew("prediction", float(differs.mean()),
                 f"the service answered {differs.mean():.1%} of {len(differs)} records with other "
                 f"probabilities than the registered model gives{when(times, differs)}")]


def _compared(contract: Contract, name: str, sent: np.ndarray, ingested: np.ndarray, times: np.ndarray,
              slices: Mapping[str, np.ndarray]) -> Skew | None:
    is_number = sent.dtype.kind == "f" and ingested.dtype.kind == "f"
    differs = (~np.isclose(sent, ingested, rtol=TOLERANCE, equal_nan=True) if is_number
               else _differs(sent, ingested))
    if not _matters(contract, differs):
        return None
    unit = _other_unit(sent[differs], ingested[differs]) if is_number else ""
    reason = (f"{name}: sent with another value than ingested in {differs.mean():.1%} of {len(differs)} "
              f"records{where(differs, slices)}{when(times, differs)}")
    return Skew(name, float(differs.mean()), f"{reason}{unit}", bool(unit))


def _differs(sent: np.ndarray, ingested: np.ndarray) -> np.ndarray:
    both_missing = (sent == None) & (ingested == None)  # noqa: E711, elementwise
    return np.asarray((sent != ingested) & ~both_missing)


def _matters(contract: Contract, faulty: np.ndarray) -> bool:
    return bool(faulty.sum() > max(contract.drift.bad_rows, contract.drift.skew * len(faulty)))


def _other_unit(sent: np.ndarray, ingested: np.ndarray) -> str:
    """The line that turns sent values into ingested ones, if they lie
    on one; empty if not, and for a column of few distinct values."""
    both = np.isfinite(sent) & np.isfinite(ingested)
    if len(np.unique(sent[both])) < 5:
        return ""
    line = linregress(sent[both], ingested[both])
    if line.rvalue ** 2 < MIN_R2:
        return ""
    return f"; another unit: ingested = {line.slope:.4g} x sent {line.intercept:+.4g}"


def when(times: np.ndarray, faulty: np.ndarray) -> str:
    """Since when rows are faulty; and until when, if the last ones no longer are."""
    first, last = times[faulty].min(), times[faulty].max()
    over = (times > last).mean() > 0.1
    return f", from {_minute(first)} to {_minute(last)}" if over else f", since {_minute(first)}"


def _minute(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


def where(faulty: np.ndarray, slices: Mapping[str, np.ndarray]) -> str:
    """The value of a slice that holds most of the faulty rows,
    and at least twice its share of all rows; else empty."""
    for name, values in slices.items():
        texts, counts = np.unique(values[faulty].astype(str), return_counts=True)
        commonest, share = texts[counts.argmax()], counts.max() / faulty.sum()
        if share >= MIN_SHARE and (values.astype(str) == commonest).mean() < share / 2:
            return f", almost all with {name} {commonest}"
    return ""


def find_clock_skew(contract: Contract, unmatched: int, shifted: Mapping[str, int]) -> Sequence[Skew]:
    """Whether a caller's clock is wrong: predictions without an event at their
    event time, though there is one a fixed time before or after.

    `shifted`: by the name of that time ("1 h later"), how many of the `unmatched`
    predictions find an event there that no other prediction has.
    """
    name, matched = max(shifted.items(), key=lambda item: item[1], default=("", 0))
    if matched <= contract.drift.bad_rows or matched < unmatched / 2:
        return []
    return [Skew(contract.event_time, matched / unmatched,
                 f"{contract.event_time}: {matched} predictions are of events that happened {name}: a "
                 f"caller's clock is wrong", is_broken=True)]
