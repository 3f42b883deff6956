"""Faults that `perennial demo --faults` puts into the data, and the verdict that each should lead to."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

Corruption = Callable[[pd.DataFrame], pd.DataFrame]


def celsius(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(temp=(rows["temp"] - 32) / 1.8)


def without_carrier(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(carrier=None)


def a_day_ahead_in_every_third(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(departs=rows["departs"]
                       + pd.to_timedelta(np.where(np.arange(len(rows)) % 3, 0, 24), unit="h"))


@dataclass(frozen=True)
class Fault:
    """From `first` until before `last` callers send rows changed by `spoil`. A window in it must get a
    verdict of `kind`, with a reason that the pattern `reason` matches. `refused`: the service answers such
    requests with 400."""

    name: str
    first: datetime
    last: datetime
    kind: str
    reason: str
    spoil: Corruption
    refused: bool = False

    def covers(self, start: datetime) -> bool:
        return self.first <= start < self.last

    def touches(self, week: Mapping[str, Any]) -> bool:
        return datetime.fromisoformat(week["window"]) < self.last and self.first < week["end"]

    def named(self, weeks: Sequence[Mapping[str, Any]]) -> bool:
        """Whether all windows that it touches name it."""
        touched = [week for week in weeks if self.touches(week)]
        return bool(touched) and all(
            week["kind"] == self.kind and any(re.search(self.reason, reason) for reason in week["reasons"])
            for week in touched)


FAULTS = (Fault("temperature in Celsius", datetime(2013, 5, 10), datetime(2013, 5, 20), "broken contract",
                "temp: .*another unit", celsius),
          Fault("carrier missing for a day", datetime(2013, 6, 12), datetime(2013, 6, 13), "broken contract",
                "refused.*carrier in", without_carrier, refused=True),
          Fault("a caller's clock a day ahead", datetime(2013, 7, 9), datetime(2013, 7, 12),
                "broken contract", "clock is wrong", a_day_ahead_in_every_third))


def corrupted(rows: pd.DataFrame, event_time: str, faults: Sequence[Fault]) -> pd.DataFrame:
    """The rows as callers send them."""
    times, parts = rows[event_time], [rows]
    for fault in faults:
        affected = (times >= fault.first) & (times < fault.last)
        if affected.any():
            parts = [*parts, fault.spoil(rows[affected])]
    return (pd.concat(parts).loc[lambda all_rows: ~all_rows.index.duplicated(keep="last")].sort_index()
            if len(parts) > 1 else rows)


def refused(rows: pd.DataFrame, event_time: str, faults: Sequence[Fault]) -> np.ndarray:
    """Whether the service must refuse each row, bool (n,)."""
    times = rows[event_time]
    masks = [((times >= fault.first) & (times < fault.last)).to_numpy() for fault in faults if fault.refused]
    return np.any(masks, axis=0) if masks else np.zeros(len(rows), bool)
