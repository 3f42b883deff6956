"""Drift verdicts: false alarms and power by the size of a window, and what judging costs.

Windows are made up (20 columns of all kinds that never change) and real (a year of
flights, its days shuffled). Every window is judged by the same code as in production.
"judged": also below the rows that the contract's power calculation asks for.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pandera.pandas as pa

from contracts.core.binning import MonitoredColumn
from contracts.core.classification import Label
from contracts.core.contract import Contract
from contracts.core.features import category, number
from contracts.core.loading import load_contract
from contracts.core.policies import Drift, Gate
from contracts.core.reference import Reference, learn_reference
from contracts.core.schema import column
from contracts.core.verdict import WindowVerdict
from contracts.core.window_verdict import drift
from service import profiles
from tests.bench import PEERS, ROOT, peers, write

Rng = np.random.Generator
TRAINED, DAYS = 100_000, 60  # rows and days of the training data
SIZES = {200: 400, 1_000: 400, 10_000: 400, 100_000: 400, 1_000_000: 50}  # rows of a window: windows
TIMES = 200  # windows of each fault
LEARNT = 59
NUMBERS: dict[str, Callable[[Rng, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(60, 18, n),
    "normal_small": lambda rng, n: rng.normal(0, 1e-6, n),
    "normal_missing": lambda rng, n: _without(rng, rng.normal(5, 2, n), 0.1),
    "uniform": lambda rng, n: rng.random(n),
    "lognormal": lambda rng, n: rng.lognormal(3, 2, n),
    "pareto": lambda rng, n: rng.pareto(1.1, n),
    "student": lambda rng, n: rng.standard_t(2, n),
    "exponential_missing": lambda rng, n: _without(rng, rng.exponential(10, n), 0.4),
    "poisson": lambda rng, n: rng.poisson(3, n).astype(float),
    "geometric": lambda rng, n: rng.geometric(0.02, n).astype(float),
    "zero_inflated": lambda rng, n: np.where(rng.random(n) < 0.85, 0.0, rng.gamma(2, 3, n)),
    "rarely_there": lambda rng, n: _without(rng, rng.normal(0, 1, n), 0.98),
}
CATEGORIES: dict[str, tuple[int, float, float]] = {  # values, Zipf's exponent, share missing
    "two": (2, 0.5, 0), "five": (5, 1, 0), "tenth": (10, 0, 0), "twenty": (20, 1, 0.05), "hundred": (100, 1, 0),  # noqa: E501
    "hundred_even": (100, 0, 0), "thousand": (1_000, 1, 0), "rare": (30, 3, 0),
}


def _without(rng: Rng, values: np.ndarray, share: float) -> np.ndarray:
    return np.where(rng.random(len(values)) < share, np.nan, values)


@cache
def _vocabulary(name: str) -> tuple[np.ndarray, np.ndarray]:
    size, exponent, _ = CATEGORIES[name]
    shares = np.arange(1, size + 1) ** -float(exponent)
    return np.array([f"{name}-{index:04d}" for index in range(size)],
                    object), np.cumsum(shares / shares.sum())


def made_up(rng: Rng, n: int) -> dict[str, MonitoredColumn]:
    """One window of traffic in which nothing ever changes."""
    seen = {name: MonitoredColumn("number", draw(rng, n)) for name, draw in NUMBERS.items()}
    for name, (_, _, missing) in CATEGORIES.items():
        names, upto = _vocabulary(name)
        values = names[np.minimum(np.searchsorted(upto, rng.random(n)), len(names) - 1)]
        seen[name] = MonitoredColumn("category",
                                     np.where(rng.random(n) < missing, None, values) if missing else values)
    return seen


@cache
def contract() -> Contract:
    """Of the made-up columns, all defaults."""
    types = dict.fromkeys(NUMBERS, float) | dict.fromkeys(CATEGORIES, str) | {"at": pd.Timestamp, "hit": bool}
    fields = {name: column(description="made up", nullable=name in (*NUMBERS, *CATEGORIES),
                           known="after" if name == "hit" else "before") for name in types}
    return Contract(name="made-up",
                    schema=type("MadeUp", (pa.DataFrameModel,),
                                {"__annotations__": types, "__module__": __name__, **fields}),
                    event_time="at", label=Label(("no", "yes"), ("hit",), lambda hit: hit, timedelta(days=1)),
                    features=(*map(number, NUMBERS), *map(category, CATEGORIES)), xgboost={},
                    gate=Gate(window=timedelta(days=1), log_loss=1, auc=0.5, calibration_error=1, recall={}))


@cache
def trained() -> dict[str, Reference]:
    seconds = np.linspace(0, DAYS * 86_400 - 1, TRAINED).astype("timedelta64[s]")
    return learn_reference(made_up(np.random.default_rng(0), TRAINED),
                           np.datetime64("2024-01-01", "s") + seconds, contract().drift.window,
                           contract().drift.false_alarms)


def judged(seen: dict[str, MonitoredColumn], policy: Drift | None = None) -> WindowVerdict:
    """The verdict on a window; a column that it lacks is a column that the traffic lacks."""
    counts = {name: trained()[name].bins.count(one.values) for name, one in seen.items()}
    asked = replace(contract(), drift=policy or replace(contract().drift, min_rows=1))
    return drift(asked, trained(), counts, rows=max(len(one.values) for one in seen.values()))


def quiet(n: int, seed: int) -> dict[str, Any]:
    """Whether a window of n rows in which nothing changed gives an alarm, and whether it would count."""
    verdict = judged(made_up(np.random.default_rng([1, n, seed]), n))
    return {"alarm": verdict.outcome == "failed", "counts": n >= judged_from(), "why": list(verdict.reasons)}


@cache
def judged_from() -> int:
    return judged(made_up(np.random.default_rng(0), 100), contract().drift).figures.needed


def _moved(seen: dict[str, MonitoredColumn], name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    seen[name] = MonitoredColumn(seen[name].kind, change(seen[name].values))


def quarter(seen: dict[str, MonitoredColumn], rng: Rng) -> None:
    for name, deviation in (("normal", 18), ("normal_small", 1e-6), ("normal_missing", 2)):
        _moved(seen, name, lambda values, by=deviation / 4: values + by)


def half_more(seen: dict[str, MonitoredColumn], rng: Rng) -> None:
    """A category of 10 % has 15 %: the others give way."""
    _moved(seen, "tenth", lambda values: np.where(rng.random(len(values)) < 0.05 / 0.9, "tenth-0000", values))


def missing_column(seen: dict[str, MonitoredColumn], rng: Rng) -> None:
    del seen["five"]


def new_unit(seen: dict[str, MonitoredColumn], rng: Rng) -> None:
    _moved(seen, "normal", lambda values: (values - 32) / 1.8)


def new_category(seen: dict[str, MonitoredColumn], rng: Rng) -> None:
    _moved(seen, "twenty", lambda values: np.where(rng.random(len(values)) < 0.02, "another", values))


def nulls(seen: dict[str, MonitoredColumn], rng: Rng) -> None:
    _moved(seen, "normal", lambda values: _without(rng, values, 0.05))


def behind_an_outlier(seen: dict[str, MonitoredColumn], rng: Rng) -> None:
    _moved(seen, "normal", lambda values: np.append(values[1:] + 18, 1e300))


def one_row_of_a_new_category(seen: dict[str, MonitoredColumn], rng: Rng) -> None:
    _moved(seen, "thousand", lambda values: np.append(values[1:], "another"))


FAULTS: dict[str, tuple[Callable, tuple[str, ...], int, float]] = {  # what it does, to which columns, asked for at n, and how often  # noqa: E501
    "a quarter of σ in 3 of 20 columns": (quarter, ("normal", "normal_small", "normal_missing"), 1_000, 0.95),
    "a category's share from 10 % to 15 %": (half_more, ("tenth",), 2_000, 0.90),
    "a missing column": (missing_column, ("five",), 1_000, 0.99),
    "a new unit (°F to °C)": (new_unit, ("normal",), 1_000, 0.99),
    "a new category at 2 %": (new_category, ("twenty",), 1_000, 0.99),
    "nulls at 5 %": (nulls, ("normal",), 1_000, 0.99),
    "1 σ behind one outlier": (behind_an_outlier, ("normal",), 1_000, 0.99),
    "one row of a new category (no drift)": (one_row_of_a_new_category, ("thousand",), 10_000, 0.0),
}


def faulty(name: str, n: int, seed: int) -> tuple[bool, bool]:
    """Whether a window with the fault gives an alarm at all, and whether the alarm names the right column."""
    rng, (change, columns, _, _) = np.random.default_rng([2, n, seed, list(FAULTS).index(name)]), FAULTS[name]
    seen = made_up(rng, n)
    change(seen, rng)
    verdict = judged(seen)
    named = {reason.split(":")[0] for reason in verdict.reasons}
    return verdict.outcome == "failed", bool(named & {*columns})


def false_alarms(pool: ProcessPoolExecutor, sizes: dict[int, int]) -> dict[int, dict[str, Any]]:
    found = {}
    for n, windows in sizes.items():
        begun = time.monotonic()
        results = list(pool.map(quiet, [n] * windows, range(windows), chunksize=5))
        found[n] = {"windows": windows, "alarms": sum(one["alarm"] for one in results),
                    "counts": results[0]["counts"], "share": sum(one["alarm"] for one in results) / windows,
                    "why": [why for one in results for why in one["why"]][:5]}
        print(n, json.dumps(found[n]), f"{time.monotonic() - begun:.0f} s", flush=True)
    return found


def power(pool: ProcessPoolExecutor, times: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (_, _, asked_at, share) in FAULTS.items():
        by_size = {}
        for n in sorted({200, 500, 1_000, 2_000, 10_000, asked_at}):
            results = list(pool.map(faulty, [name] * times, [n] * times, range(times), chunksize=5))
            by_size[n] = {"alarm": float(np.mean([alarm for alarm, _ in results])),
                          "named": float(np.mean([named for _, named in results]))}
        found[name] = {"asked": share, "asked_at": asked_at, "windows": times, "by_size": by_size}
        print(name, json.dumps({n: one["named"] for n, one in by_size.items()}), flush=True)
    return found


def shuffled(seed: int) -> list[bool]:
    """Flights whose days are put into another order: whether
    each week after the first 59 days gives an alarm."""
    flights = load_contract("flights")
    rows = flights.source(datetime(2013, 1, 1), datetime(2014, 1, 1))
    day = rows["departs"].dt.day_of_year.to_numpy() - 1
    moved_to = np.random.default_rng([3, seed]).permutation(365)[day]
    columns = flights.columns_of(rows)
    seen = {feature.name: MonitoredColumn(feature.kind, feature.values(columns))
            for feature in flights.features}

    def only(first: int, last: int) -> tuple[dict[str, MonitoredColumn], np.ndarray]:
        here = (first <= moved_to) & (moved_to < last)
        return {name: MonitoredColumn(kind, values[here])
                for name, (kind, values) in seen.items()}, moved_to[here]

    past, days = only(0, LEARNT)
    reference = learn_reference(past, np.datetime64("2013-01-01", "s") + days.astype("timedelta64[D]"),
                                flights.drift.window, flights.drift.false_alarms)
    alarms = []
    for week in range(LEARNT, 365 - 6, 7):
        now, _ = only(week, week + 7)
        counts = {name: reference[name].bins.count(one.values) for name, one in now.items()}
        alarms.append(drift(flights, reference, counts, rows=len(now["origin"].values)).outcome == "failed")
    return alarms


def weeks(until: int = 365) -> Iterator[tuple[str, WindowVerdict]]:
    """Flights as they were: each week against January and February."""
    flights = load_contract("flights")
    past = flights.source(datetime(2013, 1, 1), datetime(2013, 3, 1))
    columns = flights.columns_of(past)
    reference = learn_reference({feature.name: MonitoredColumn(feature.kind, feature.values(columns))
                                 for feature in flights.features}, columns["departs"], flights.drift.window,
                                flights.drift.false_alarms)
    for start in pd.date_range("2013-03-04", "2013-12-30", freq="7D"):
        columns = flights.columns_of(flights.source(start, start + pd.Timedelta(days=7)))
        counts = {feature.name: reference[feature.name].bins.count(feature.values(columns))
                  for feature in flights.features}
        yield str(start.date()), drift(flights, reference, counts, rows=len(columns["departs"]))


def cost(features: int = 50, replicas: int = 8, rows: int = 5_000) -> dict[str, Any]:
    """Milliseconds to judge a window of many features from the
    profiles of many replicas, and the bytes of a profile."""
    rng = np.random.default_rng(4)

    def wide(n: int) -> dict[str, MonitoredColumn]:
        return dict(islice(((f"{name}_{copy}", one) for copy in count()
                            for name, one in made_up(rng, n).items()), features))

    times = np.datetime64("2024-01-01", "s") + np.linspace(0, DAYS * 86_400, 20_000).astype("timedelta64[s]")
    reference = learn_reference(wide(20_000), times, contract().drift.window, contract().drift.false_alarms)
    bins = {name: one.bins for name, one in reference.items()}
    contents = [profiles.to_bytes(profiles.profile_columns(wide(rows), bins)) for _ in range(replicas)]
    took = []
    for _ in range(20):
        begun = time.perf_counter()
        seen = sum(map(profiles.read_counts, contents), profiles.NO_TRAFFIC)
        drift(contract(), reference, seen.counts, rows=seen.rows)
        took.append((time.perf_counter() - begun) * 1000)
    small = profiles.profile_columns(made_up(rng, 1_000_000),
                                     {name: one.bins for name, one in trained().items()})
    return {"features": features, "replicas": replicas,
            "judged_ms": {"median": float(np.median(took)), "max": max(took)},
            "bytes_of_20_features": len(profiles.to_bytes(small))}


def side_by_side(windows: int) -> dict[str, Any]:
    """Alarms on the same windows by Perennial and by the detectors
    of tests/bench/peers, in an environment of their own."""
    sets: dict[str, tuple[int, str | None]] = {
        **{f"nothing changed, n = {n:,}": (n, None) for n in (200, 1_000, 10_000)},
        "a quarter of σ in 3 columns, n = 1,000": (1_000, "a quarter of σ in 3 of 20 columns"),
        "10 % to 15 %, n = 2,000": (2_000, "a category's share from 10 % to 15 %"),
        "nulls at 5 %, n = 1,000": (1_000, "nulls at 5 %"),
        "1 σ behind one outlier, n = 1,000": (1_000, "1 σ behind one outlier")}
    python, found = peers("drift"), {}
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as folder:
        _frame(made_up(np.random.default_rng(0), TRAINED)).to_parquet(f"{folder}/reference.parquet")
        for name, (n, fault) in sets.items():
            seen, mine = [], []
            for seed in range(windows):
                rng = np.random.default_rng([5, n, seed])
                window = made_up(rng, n)
                if fault:
                    FAULTS[fault][0](window, rng)
                begun = time.perf_counter()
                mine.append((judged(window).outcome == "failed", time.perf_counter() - begun))
                seen.append(_frame(window).assign(window=seed))
            pd.concat(seen).to_parquet(f"{folder}/{name}.parquet")
            found[name] = {"Perennial": {"alarms": sum(alarm for alarm, _ in mine), "windows": windows,
                                         "seconds_a_window": float(np.mean([took for _, took in mine]))}}
        asked = subprocess.run(
            [python, PEERS / "drift.py", folder], stdout=subprocess.PIPE, text=True, check=True,
            env=os.environ
            | {"WHYLOGS_NO_ANALYTICS": "True", "DO_NOT_TRACK": "True", "PYTHONWARNINGS": "ignore"})
    return {name: one | json.loads(asked.stdout)[name] for name, one in found.items()}


def _frame(seen: dict[str, MonitoredColumn]) -> pd.DataFrame:
    return pd.DataFrame({name: one.values for name, one in seen.items()})


def draw(found: dict[str, Any]) -> Path:
    """Who raised an alarm in which share of the same windows;
    the first sets should have none, the others all."""
    sets, names = list(found), ["Perennial", "whylogs", "Evidently", "NannyML"]
    figure, axes = plt.subplots(figsize=(10, 0.9 * len(sets) + 1), layout="constrained")
    for place, name in enumerate(names):
        shares = [found[one][name].get("alarms", 0) / found[one][name].get("windows", 1) for one in sets]
        at = np.arange(len(sets)) + (place - 1.5) * 0.2
        bars = axes.barh(at, shares, 0.19, label=name,
                         color=("#0072b2", "#b9c6d2", "#98a7b5", "#77868f")[place])
        axes.bar_label(bars,
                       [f"{share:.0%}" if "alarms" in found[one][name] else "failed"
                        for one, share in zip(sets, shares)], fontsize=7)
    axes.set(xlim=(0, 1.08), xlabel="share of windows with an alarm on any of 20 columns")
    axes.set_yticks(range(len(sets)), sets)
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    place = ROOT / "build" / "bench" / "drift.svg"
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="a twentieth of the windows, none of more than 10,000 rows")
    parser.add_argument("--peers", type=int, default=40,
                        help="windows that other detectors judge as well; 0: none")
    asked = parser.parse_args()
    sizes = ({n: max(windows // 20, 10) for n, windows in SIZES.items() if n <= 10_000} if asked.quick
             else SIZES)
    with ProcessPoolExecutor(2) as pool:
        found = {"needed": judged_from(), "false_alarms": false_alarms(pool, sizes),
                 "power": power(pool, 20 if asked.quick else TIMES)}
        alarms = [alarm for order in pool.map(shuffled, range(2 if asked.quick else 10)) for alarm in order]
    found["flights_shuffled"] = {"windows": len(alarms), "alarms": int(sum(alarms)),
                                 "share": float(np.mean(alarms))}
    found["cost"] = cost()
    if asked.peers:
        found["side_by_side"] = side_by_side(asked.peers)
        print("drawn:", draw(found["side_by_side"]).relative_to(ROOT))
    write("drift", found)


if __name__ == "__main__":
    main()
