"""Will a flight leave New York late, by the weather alone? A second model on the flights' data: its inputs
move with the seasons, and it is trained again when the profiles of its traffic say so."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pandera.pandas as pa

from contracts.core.classification import Label
from contracts.core.contract import Contract
from contracts.core.features import category, number
from contracts.core.policies import Drift, Gate, Rollout, Schedule
from contracts.core.schema import column
from contracts.flights import FLIGHTS, WEATHER, minute_of_day, source


class Departures(pa.DataFrameModel):
    departs: pd.Timestamp = column(
        description="scheduled departure, local time in New York", source=FLIGHTS,
        ge=pd.Timestamp("2000-01-01"), lt=pd.Timestamp("2100-01-01"))
    carrier: str = column(description="two-character IATA airline code", source=FLIGHTS)
    flight: int = column(description="flight number", source=FLIGHTS, ge=1, le=9999)
    origin: str = column(description="departure airport", source=FLIGHTS, isin=["EWR", "JFK", "LGA"])
    temp: float = column(
        description="air temperature", unit="°F", source=WEATHER, ge=-40, le=130, nullable=True)
    dewp: float = column(description="dew point", unit="°F", source=WEATHER, ge=-60, le=100, nullable=True)
    wind_speed: float = column(
        description="wind speed", unit="mph", source=WEATHER, ge=0, le=200, nullable=True)
    precip: float = column(
        description="precipitation in the hour", unit="inch", source=WEATHER, ge=0, le=10, nullable=True)
    pressure: float = column(
        description="sea-level pressure", unit="millibar", source=WEATHER, ge=900, le=1100, nullable=True)
    visib: float = column(description="visibility", unit="mile", source=WEATHER, ge=0, le=10, nullable=True)
    dep_delay: float = column(
        description="departure delay; missing: cancelled", known="after", unit="min", source=FLIGHTS, ge=-120,
        le=2880, nullable=True)

    class Config:
        strict = "filter"


def has_left_late(dep_delay: np.ndarray) -> np.ndarray:
    """1 for more than 15 minutes late, or cancelled."""
    return np.where(dep_delay <= 15, 0, 1)


contract = Contract(
    name="departures",
    schema=Departures,
    source=source,
    event_time="departs",
    key=("departs", "carrier", "flight", "origin"),
    label=Label(classes=("in_time", "late"), needs=("dep_delay",), of=has_left_late,
                matures=timedelta(days=1)),
    features=(number("minute", "departs", compute=minute_of_day), category("origin"),
              *map(number, ("temp", "dewp", "wind_speed", "precip", "pressure", "visib"))),
    xgboost={"learning_rate": 0.1, "max_depth": 4, "subsample": 0.8, "min_child_weight": 50, "reg_lambda": 5,
             "max_bin": 64},
    rounds=120,
    gate=Gate(window=timedelta(days=14), log_loss=0.75, auc=0.5, calibration_error=0.25, recall={},
              margin=0.02, refit_shift=0.15),
    # The seasons move the temperature. Two weeks of three in which its profile is past the threshold, a
    # distance from what the model was trained on, ask for a training, every six weeks at most.
    drift=Drift(window=timedelta(days=7), cooldown=timedelta(days=42), retrain_on=("input drift",),
                persist=(2, 3),
                thresholds={"temp.values": 0.7} | {f"{name}.missing": 0.15 for name in (
                    "temp", "dewp", "wind_speed", "precip", "visib")},
                severity={"pressure.missing": "note"}),
    rollout=Rollout(requests=30),
    schedule=Schedule(data="0 1 * * 2", time_zone="America/New_York", since=datetime(2013, 1, 1),
                      lateness=timedelta(days=3), stale_after=timedelta(days=9)),
)
