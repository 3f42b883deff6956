"""A small example model, on made-up readings: will a pump stop within twelve hours?"""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pandera.pandas as pa

from contracts.core.classification import Label
from contracts.core.contract import Contract
from contracts.core.features import number
from contracts.core.policies import Drift, Gate, Rollout, Schedule
from contracts.core.schema import column

WEAR_SHIFTS = datetime(2024, 3, 4)  # from here on the pumps run hotter, and heat starts to matter


class Pumps(pa.DataFrameModel):
    measured_at: pd.Timestamp = column(description="time of the reading, UTC", source="made up")
    vibration: float = column(description="vibration velocity", unit="mm/s", source="made up", ge=0, le=100)
    heat: float = column(
        description="bearing temperature", unit="°C", source="made up", ge=-50, le=300, nullable=True)
    starts: int = column(description="starts since service", unit="1", source="made up", ge=0)
    stopped: bool = column(description="stopped within 12 hours", known="after", source="made up")

    class Config:
        strict = "filter"


def readings(start: datetime, end: datetime) -> pd.DataFrame:
    """Four hundred readings a day, the same for every call."""
    days = pd.date_range(pd.Timestamp(start).normalize(), end, freq="D")
    rows = pd.concat([_day(day.to_pydatetime()) for day in days], ignore_index=True)
    return rows[(rows["measured_at"] >= start) & (rows["measured_at"] < end)].reset_index(drop=True)


def _day(day: datetime, n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(day.toordinal())
    worn = day >= WEAR_SHIFTS
    vibration, heat = rng.gamma(4, 2, n).clip(0, 100), rng.normal(90 if worn else 60, 8, n)
    starts = rng.integers(0, 200, n)
    risk = 0.5 * (vibration - 8) + 0.01 * (starts - 100) + (0.25 * (heat - 90) if worn else 0)
    stopped = rng.random(n) < 1 / (1 + np.exp(-risk))
    heat[rng.random(n) < 0.02] = np.nan
    seconds = np.sort(rng.integers(0, 86_400, n))
    times = np.datetime64(day, "s") + seconds.astype("timedelta64[s]")
    return pd.DataFrame({"measured_at": times, "vibration": vibration, "heat": heat, "starts": starts,
                         "stopped": stopped})


def has_stopped(stopped: np.ndarray) -> np.ndarray:
    return stopped.astype(np.int64)


contract = Contract(
    name="pumps",
    schema=Pumps,
    source=readings,
    event_time="measured_at",
    label=Label(classes=("runs", "stops"), needs=("stopped",), of=has_stopped, matures=timedelta(hours=12)),
    features=(number("vibration"), number("heat"), number("starts")),
    xgboost={"learning_rate": 0.2, "max_depth": 3},
    rounds=60,
    gate=Gate(window=timedelta(days=7), log_loss=0.69, auc=0.6, calibration_error=0.2,
              recall={"stops": 0.2}, min_rows=200),
    drift=Drift(window=timedelta(days=7), min_rows=200, min_labels=200, persist=(1, 1),
                cooldown=timedelta(days=14)),
    rollout=Rollout(requests=20, minutes=0.05),
    schedule=Schedule(data="0 13 * * *", since=datetime(2024, 1, 1)),
)
