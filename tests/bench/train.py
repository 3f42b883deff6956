"""Training: the plain functions beside bare XGBoost on the
year's flights, and memory and time while the rows grow tenfold.

Bare is the least that the recipe needs: read the data version, make one float32
matrix with pandas and numpy, and call `xgboost.train` three times, to learn when
to stop, for the twin and for the model that serves. Nothing is checked or saved.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import xgboost

from contracts.flights import contract as flights
from flows.ingest import ingest_batch
from flows.training import judging, version
from flows.training.booster import booster_params, feature_types
from flows.training.version import judged_from
from registry import data, models
from registry.context import ModelContext, open_model
from tests.bench import ROOT, figure, fresh_addresses, write
from tests.bench.flights_like import flights_like

START, END = datetime(2013, 1, 1), datetime(2014, 1, 1)
# Rows, and ten times as many; rounds, one a block; turns beside bare XGBoost.
SHORT, LONG = (1_000_000, 10, 2), (3_000_000, 30, 5)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument(
        "--rows", type=int,
        help="ingest or train on as many rows in this process and print seconds and peak memory")
    asked.add_argument("--rounds", type=int, default=LONG[1], help="of that training")
    asked.add_argument("--long", action="store_true",
                       help="3 and 30 million rows, some 12 minutes; else 1 and 10 million")
    given = asked.parse_args()
    if given.rows:
        print(json.dumps(grown(given.rows, given.rounds)))
        return
    rows, rounds, turns = LONG if given.long else SHORT
    ratios = beside_bare(turns)
    few, many = alone(rows, rounds), alone(10 * rows, rounds)
    write("train", {"figures": [figure("plain functions' time by bare xgboost.train + reading, 336,776 "
                                       "flights", 1.10, "at most", "times", ratios["ratios"]),
                                *(figure(f"{what} {many['rows']:,} rows, of that on {few['rows']:,}", asked,
                                         "at most", "times", [many[name] / few[name]])
                                  for what, asked, name in (("peak memory of training on", 1.3,
                                                             "train_peak_mb"),
                                                            ("time of training on", 12, "train_s"),
                                                            ("peak memory of ingesting", 1.3,
                                                             "ingest_peak_mb")))], "beside_bare": ratios,
                    "by_rows": [{"rows": one["rows"], "seconds": one["train_s"],
                                 "peak_mb": one["train_peak_mb"]} for one in (few, many)],
                    "grown": [few, many]})


def beside_bare(turns: int) -> dict[str, list[float]]:
    with fresh_addresses():
        ingest_batch(open_model("flights"), START, END)
        context = open_model("flights")
        rounds = trained_rounds(context, version.fit_version(context))  # and imports, caches
        bare(context, rounds)
        pairs = [(ours(context), bare(context, rounds)) for _ in range(turns)]
    return {"ratios": [one / other for one, other in pairs], "functions_s": [one for one, _ in pairs],
            "bare_s": [other for _, other in pairs]}


def ours(context: ModelContext) -> float:
    """Seconds of the plain functions that the train flow calls, up to the gate's verdict."""
    begun = time.perf_counter()
    assert judging.judge(context, version.fit_version(context)).passed
    return time.perf_counter() - begun


def trained_rounds(context: ModelContext, version: str) -> int:
    return models.manifest(context.store, context.name, version)["metrics"]["rounds"]


def bare(context: ModelContext, rounds: int) -> float:
    """Seconds of the same three trainings without Perennial, each in as many rounds as Perennial's."""
    begun = time.perf_counter()
    version = data.newest(context.store, context.name)
    rows = data.read(context.store, version)
    at = rows["departs"].dt
    minute = at.hour * 60 + at.minute
    codes = {name: rows[name].astype("category").cat.codes for name in ("carrier", "origin", "dest")}
    weather = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
    features = [minute, at.day_of_week, rows["arrives"], (rows["arrives"] - minute) % 1440, *codes.values(),
                rows["distance"], *(rows[name] for name in weather), at.year - rows["built"], rows["seats"]]
    matrix = np.column_stack([np.asarray(values, np.float32) for values in features])
    labels = np.where(~(rows["arr_delay"] <= 60), 2, np.where(rows["arr_delay"] > 15, 1, 0))
    older = int((rows["departs"] < judged_from(context, version)).sum())
    cut = older - int(older * flights.stop_share)

    def of(part: slice) -> xgboost.DMatrix:
        return xgboost.DMatrix(matrix[part], labels[part], feature_types=feature_types(flights),
                               enable_categorical=True)
    params = booster_params(flights, 0)
    xgboost.train(params, of(slice(cut)), min(rounds + flights.patience, flights.rounds),
                  evals=[(of(slice(cut, older)), "newest")], verbose_eval=False)
    for part in (slice(older), slice(None)):
        xgboost.train(params, of(part), rounds)
    return time.perf_counter() - begun


def alone(rows: int, rounds: int) -> dict[str, float]:
    """What `grown` measures, each stage in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as home:
        environ = os.environ | {"PERENNIAL_STORE": f"{home}/store", "PERENNIAL_RUN": f"{home}/run",
                                "TMPDIR": home}
        found: dict[str, float] = {}
        for _ in ("ingest", "train"):
            command = [sys.executable, "-m", "tests.bench.train", "--rows", str(rows), "--rounds",
                       str(rounds)]
            said = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True,
                                  check=True).stdout
            found |= json.loads(said.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def grown(rows: int, rounds: int) -> dict[str, float]:
    """Ingest so many rows, a year at a time, where nothing is there yet; else train on them."""
    context = open_model("flights")
    context = replace(context, contract=replace(context.contract, rounds=rounds))
    known, begun = data.versions(context.store, context.name), time.perf_counter()
    if known:
        judging.judge(context, version.fit_version(context))
    else:
        _ingest(context, rows)
    stage = "train" if known else "ingest"
    # Getrusage tells of the parent's memory too.
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {"rows": rows, f"{stage}_s": time.perf_counter() - begun, f"{stage}_peak_mb": int(peak) / 1024}


def _ingest(context: ModelContext, rows: int) -> None:
    start, file = datetime(2000, 1, 1), Path(tempfile.mkdtemp()) / "year.parquet"
    for frame in flights_like(rows):
        end = max(frame["departs"].max().to_pydatetime() + timedelta(minutes=1), start + timedelta(minutes=1))
        frame.to_parquet(file)
        ingest_batch(context, start, end, str(file))
        start = end


if __name__ == "__main__":
    main()
