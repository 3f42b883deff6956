"""Training/serving skew: what callers sent compared with what was ingested of the same events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress

from contracts.core.contract import Contract
from contracts.core.features import Columns

CLOSE = 1e-4  # relative: a caller may round
STRAIGHT = 0.999  # the least R² at which one column is the other in another unit
MOSTLY = 0.8  # of the faulty rows in one value of a slice, for it to be named


@dataclass(frozen=True)
class Skew:
    """One column that disagrees; `is_broken` where the caller's fault has a name, as another unit."""

    column: str
    share: float
    reason: str
    is_broken: bool = False


def find_skew(contract: Contract, sent: Columns, later: Columns) -> list[Skew]:
    """The columns in which too many of n events were sent
    otherwise than they were ingested, the most first."""
    times, slices = sent[contract.event_time], {name: sent[name] for name in contract.gate.slices
                                                if name in sent}
    found = [_compared(contract, name, sent[name], later[name], times, slices) for name in later]
    return sorted((one for one in found if one), key=lambda one: -one.share)


def find_answer_skew(contract: Contract, answered: np.ndarray, recomputed: np.ndarray,
                     times: np.ndarray) -> list[Skew]:
    """Whether the registered model gives other probabilities,
    (n, classes), for what was sent than the service answered."""
    apart = (np.abs(answered - recomputed) > CLOSE).any(axis=1)
    if not _matters(contract, apart):
        return []
    return [Skew("prediction", float(apart.mean()),
                 f"the service answered {apart.mean():.1%} of {len(apart)} records otherwise than the "
                 f"registered model does{when(times, apart)}")]


def _compared(contract: Contract, name: str, sent: np.ndarray, later: np.ndarray, times: np.ndarray,
              slices: Mapping[str, np.ndarray]) -> Skew | None:
    number = sent.dtype.kind == "f" and later.dtype.kind == "f"
    differs = ~np.isclose(sent, later, rtol=CLOSE, equal_nan=True) if number else _unlike(sent, later)
    if not _matters(contract, differs):
        return None
    unit = _other_unit(sent[differs], later[differs]) if number else ""
    reason = (f"{name}: sent otherwise than ingested in {differs.mean():.1%} of {len(differs)} records"
            f"{where(differs, slices)}{when(times, differs)}")
    return Skew(name, float(differs.mean()), f"{reason}{unit}", bool(unit))


def _unlike(sent: np.ndarray, later: np.ndarray) -> np.ndarray:
    both_missing = (sent == None) & (later == None)  # noqa: E711, elementwise
    return np.asarray((sent != later) & ~both_missing)


def _matters(contract: Contract, faulty: np.ndarray) -> bool:
    return bool(faulty.sum() > max(contract.drift.bad_rows, contract.drift.skew * len(faulty)))


def _other_unit(sent: np.ndarray, later: np.ndarray) -> str:
    """What the ingested values are of those sent, if a straight
    line says it; nothing for a column of few values."""
    both = np.isfinite(sent) & np.isfinite(later)
    if len(np.unique(sent[both])) < 5:
        return ""
    line = linregress(sent[both], later[both])
    if line.rvalue ** 2 < STRAIGHT:
        return ""
    return f"; another unit: ingested = {line.slope:.4g} x sent {line.intercept:+.4g}"


def when(times: np.ndarray, faulty: np.ndarray) -> str:
    """From when on rows are faulty, and until when if they no longer are."""
    first, last = times[faulty].min(), times[faulty].max()
    over = (times > last).mean() > 0.1
    return f", from {_minute(first)} to {_minute(last)}" if over else f", since {_minute(first)}"


def _minute(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


def where(faulty: np.ndarray, slices: Mapping[str, np.ndarray]) -> str:
    """The value of a slice that holds most of the faulty
    rows though not most of all rows, if there is one."""
    for name, values in slices.items():
        found, times = np.unique(values[faulty].astype(str), return_counts=True)
        most = found[times.argmax()]
        if (times.max() >= MOSTLY * faulty.sum()
            and (values.astype(str) == most).mean() < times.max() / faulty.sum() / 2):
            return f", almost all with {name} {most}"
    return ""


def find_clock_skew(contract: Contract, unmet: int, shifted: Mapping[str, int]) -> Sequence[Skew]:
    """Predictions of events that never happened, though they
    did so a while before or after: whose clock is wrong.

    `shifted`: by a name for the while, how many of the `unmet`
    predictions find an event there that nobody else predicted.
    """
    name, many = max(shifted.items(), key=lambda item: item[1], default=("", 0))
    if many <= contract.drift.bad_rows or many < unmet / 2:
        return []
    return [Skew(contract.event_time, many / unmet,
                 f"{contract.event_time}: {many} predictions are of events that happened {name}: a caller's "
                 f"clock is wrong", is_broken=True)]
