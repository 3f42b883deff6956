"""Checks on labels: false alarms and power by the number of labels.

Traffic is made up (20 columns, correlated, with heavy tails, with and without daily and weekly seasons; two
classes and three) and real (a year of flights, its days in another order). Models are trained, and what is
ordinary is learnt, by the code of production; windows follow the training in time. A relation is broken by
drawing labels without regard to the features: the class shares stay.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa

from contracts.core.classification import Label
from contracts.core.contract import Contract
from contracts.core.decay import judge_outcomes
from contracts.core.features import Columns, category, number
from contracts.core.loading import load_contract
from contracts.core.ordinary import OutcomeBaseline
from contracts.core.outcome_measures import BLOCKS, block_of
from contracts.core.outcome_sums import SlicedSums
from contracts.core.outcome_verdict import OutcomeFigures
from contracts.core.policies import Drift, Gate
from contracts.core.schema import column
from flows.training.blocks import Block
from flows.training.booster import train_booster
from flows.training.out_of_time import learn_outcome_baseline
from service.model import Model
from tests.bench import figure, write

Rng = np.random.Generator
TRAINED, DAYS, ROUNDS = 100_000, 60, 60  # rows, days and trees of the trainings
NUMBERS = tuple(f"x{place:02d}" for place in range(19))
SITES = np.array([f"site-{letter}" for letter in "ABCDEFGH"], object)
START = np.datetime64("2024-01-01", "s")
LEARNT = 59  # days of the shuffled flights that the model is trained on
SIZES = {200: 200, 1_000: 200, 5_000: 200, 100_000: 20, 1_000_000: 4}  # labels of a window: windows
# What is broken, in which share of the rows, asked for at n labels in which share of the windows.
FAULTS = {"broken": (1.0, 1_000, 0.98), "a third broken": (1 / 3, 5_000, 0.90)}


@dataclass(frozen=True)
class World:
    """A generator of events: how many classes, whether there are seasons, and how strongly the columns say
    which class it is."""

    name: str
    classes: int
    seasons: bool
    strength: float


WORLDS = {world.name: world for world in (
    World("two classes", 2, False, 0.35), World("two classes, weak, seasons", 2, True, 0.15),
    World("three classes, seasons", 3, True, 0.25))}


@cache
def contract(world: World) -> Contract:
    """All defaults, and the sites as slices."""
    types = dict.fromkeys(NUMBERS, float) | {"site": str, "at": pd.Timestamp, "outcome": int}
    fields = {name: column(description="made up", known="after" if name == "outcome" else "before")
              for name in types}
    return Contract(
        name="made-up", schema=type("MadeUp", (pa.DataFrameModel,),
                                    {"__annotations__": types, "__module__": __name__, **fields}),
        event_time="at", label=Label(tuple(f"class-{place}" for place in range(world.classes)), ("outcome",),
                                     lambda outcome: outcome, timedelta(days=1)),
        features=(*map(number, NUMBERS), category("site")),
        xgboost={"max_depth": 5, "learning_rate": 0.15, "max_bin": 64},
        gate=Gate(window=timedelta(days=7), log_loss=2, auc=0.5, calibration_error=1, recall={},
                  slices=("site",)))


def events(world: World, rng: Rng, rows: int, first: int, days: int) -> tuple[Columns, np.ndarray]:
    """Events of some days, in time order, and their class indices."""
    seconds = np.sort(rng.random(rows)) * days * 86_400 + first * 86_400
    fixed = np.random.default_rng(8)
    values = rng.normal(0, 1, (rows, len(NUMBERS))) @ (
        np.eye(len(NUMBERS)) + fixed.normal(0, 0.3, (len(NUMBERS), len(NUMBERS))))
    values[:, :4] += rng.standard_t(2, (rows, 4))
    values[:, 4:6] = np.exp(values[:, 4:6])
    hour, weekday = seconds % 86_400 / 3_600, seconds // 86_400 % 7
    tide = np.sin(hour / 24 * 2 * np.pi)
    if world.seasons:
        values[:, 7] += tide
        values[:, 8] += weekday > 4
        values[:, 9] = hour
    scores = np.tanh(values) @ fixed.normal(0, world.strength * 1.2, (len(NUMBERS), world.classes))
    scores[:, 0] += world.seasons * (tide + 0.7 * (weekday > 4))
    labels = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    columns = {name: values[:, place] for place, name in enumerate(NUMBERS)}
    return columns | {"site": SITES[(rng.random(rows) ** 2 * len(SITES)).astype(int)],
                      "at": START + seconds.astype("timedelta64[s]")}, labels


@cache
def trained(world: World) -> tuple[Model, OutcomeBaseline]:
    columns, labels = events(world, np.random.default_rng(1), TRAINED, 0, DAYS)
    made = contract(world)
    vocabularies = {"site": tuple(map(str, SITES))}
    matrix = Model(made, vocabularies, None).matrix(columns)
    block = Block(matrix, labels.astype(np.float32), columns["at"])
    model = Model(made, vocabularies, train_booster(made, iter([block]), 1, ROUNDS, 1))
    baseline = learn_outcome_baseline(model, columns, labels, ROUNDS)
    assert baseline
    return model, baseline


def judged(made: Contract, policy: Drift, baseline: OutcomeBaseline, columns: Columns, labels: np.ndarray,
           probabilities: np.ndarray) -> OutcomeFigures:
    blocks = block_of(columns[made.event_time], policy.window)
    slices = {name: columns[name] for name in made.gate.slices}
    sums = SlicedSums.of(labels, probabilities, {BLOCKS: blocks, **slices})
    return judge_outcomes(policy, made.label.classes, sums, baseline)


def broken(rng: Rng, labels: np.ndarray, share: float) -> np.ndarray:
    changed, chosen = labels.copy(), rng.random(len(labels)) < share
    changed[chosen] = rng.permutation(labels[chosen])
    return changed


def made_up_window(name: str, rows: int, seed: int) -> dict[str, list[str]]:
    """What failed in one window of a world, as it is and with each fault."""
    world = WORLDS[name]
    rng, (model, baseline) = np.random.default_rng([7, rows, seed]), trained(world)
    columns, labels = events(world, rng, rows, DAYS + 10 + 7 * (seed % 4), 7)
    probabilities, made = model.probabilities(columns), model.contract
    of = {"as it is": labels} | {fault: broken(rng, labels, share) for fault, (share, _, _) in FAULTS.items()
                                 if rows <= 5_000}
    return {fault: [f"{check.measure} {check.slice}".strip() for check in judged(
        made, made.drift, baseline, columns, each, probabilities).failed] for fault, each in of.items()}


def made_up(pool: ProcessPoolExecutor, sizes: dict[int, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in WORLDS:
        for rows, windows in sizes.items():
            begun = time.monotonic()
            results = list(pool.map(made_up_window, [name] * windows, [rows] * windows, range(windows),
                                    chunksize=5 if rows <= 5_000 else 1))
            found.setdefault(name, {})[rows] = _shares(results)
            print(name, rows, json.dumps(found[name][rows]), f"{time.monotonic() - begun:.0f} s", flush=True)
    return found


def _shares(results: list[dict[str, list[str]]]) -> dict[str, Any]:
    return {"windows": len(results),
            **{fault: float(np.mean([bool(result[fault]) for result in results])) for fault in results[0]},
            "why": [why for result in results for why in result["as it is"]][:5]}


def shuffled_flights(seed: int) -> dict[str, list[dict[str, list[str]]]]:
    """Flights whose days are put into another order: what failed in each week after the first LEARNT days,
    by the number of labels. The threshold of the class shares is learnt, as that of all else."""
    made = load_contract("flights")
    policy, rng = replace(made.drift, label_gap=None), np.random.default_rng([3, seed])
    rows = made.source(datetime(2013, 1, 1), datetime(2014, 1, 1))
    day = rows["departs"].dt.day_of_year.to_numpy() - 1
    moved_to = rng.permutation(365)[day]
    rows = rows.assign(departs=rows["departs"] + (moved_to - day).astype("timedelta64[D]"))
    rows = rows.iloc[np.lexsort([rows["departs"].to_numpy()])]
    day, columns, labels = np.sort(moved_to), made.columns_of(rows), made.labels_of(rows)
    past = day < LEARNT
    known = {name: values[past] for name, values in columns.items()}
    vocabularies = {feature.name: tuple(sorted({*feature.values(known)} - {None}))
                    for feature in made.features if feature.kind == "category"}
    matrix = Model(made, vocabularies, None).matrix(known)
    block = Block(matrix, labels[past].astype(np.float32), known["departs"])
    model = Model(made, vocabularies, train_booster(made, iter([block]), 1, 40, 1))
    baseline = learn_outcome_baseline(model, known, labels[past], 40)
    assert baseline
    probabilities, found = model.probabilities(columns), {}
    for week in range(LEARNT, 365 - 6, 7):
        here = np.flatnonzero((week <= day) & (day < week + 7))
        for size in (1_000, 5_000, len(here)):
            chosen = np.sort(rng.choice(here, min(size, len(here)), replace=False))
            of = {"as it is": labels[chosen]} | {fault: broken(rng, labels[chosen], share)
                                                 for fault, (share, _, _) in FAULTS.items()}
            found.setdefault("whole" if size > 5_000 else str(size), []).append({
                fault: [f"{check.measure} {check.slice}".strip() for check in judged(
                    made, policy, baseline, {name: values[chosen] for name, values in columns.items()}, each,
                    probabilities[chosen]).failed] for fault, each in of.items()})
    return found


def flights(pool: ProcessPoolExecutor, orders: int) -> dict[str, Any]:
    results = list(pool.map(shuffled_flights, range(orders)))
    found = {size: _shares([window for result in results for window in result[size]]) for size in results[0]}
    print("flights", json.dumps(found), flush=True)
    return found


def figures(found: dict[str, Any], shuffled: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the page: the highest share of false alarms, and each fault's power."""
    alarms = [100 * part["as it is"] for world in found.values() for part in world.values()]
    lines = [figure("windows of unchanged traffic, made up, with a failed check on labels", 1, "at most", "%",
                    alarms),
             figure("weeks of shuffled flights with a failed check on labels", 1, "at most", "%",
                    [100 * shuffled["whole"]["as it is"]])]
    for fault, (_, rows, share) in FAULTS.items():
        lines += [figure(f"{fault}, {rows:,} labels, made up: found", 100 * share, "at least", "%",
                         [100 * world[rows][fault] for world in found.values() if rows in world]),
                  figure(f"{fault}, {rows:,} labels of flights: found", 100 * share, "at least", "%",
                         [100 * shuffled[str(rows)][fault]])]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the windows, the small ones")
    asked = parser.parse_args()
    sizes = {rows: max(windows // 10, 10) for rows, windows in SIZES.items()
             if rows <= 5_000} if asked.quick else SIZES
    with ProcessPoolExecutor(2) as pool:
        found, shuffled = made_up(pool, sizes), flights(pool, 2 if asked.quick else 8)
    write("decay", {"made_up": found, "flights": shuffled, "figures": figures(found, shuffled)})


if __name__ == "__main__":
    main()
