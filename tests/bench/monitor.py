"""Judging a window: time and peak memory by the number of its logged predictions, and with a long history.

A made-up model of pumps' readings, each with a 64-bit number and a time in microseconds, by which predictions
in Parquet files meet their labels in a Delta table. `--rows 60000000` judges one window of that size as well.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from contracts import pumps
from contracts.core.features import category, number
from contracts.core.schema import column
from contracts.pumps import Pumps, readings
from flows.ingest import ingest_batch
from registry import data, layout
from registry.context import ModelContext, fetch_version, open_model
from registry.predictions import NUMBER, REPLICA, parquet
from registry.traffic import ship
from service.model import load_model
from service.profiler import Profiler
from service.profiles import bins_in
from tests.bench import ROOT, figure, fresh_addresses, write

WEEK, TRAINED, FIRST = timedelta(days=7), datetime(2024, 1, 1), datetime(2024, 2, 12)
SIZES = (0, 1_000_000, 4_000_000, 16_000_000)
# Rows that repeat, with other times and pumps; of a file of the log; values of the slice.
BLOCK, FILE_ROWS, SITES = 500_000, 100_000, 40
HISTORY = 200  # windows that were judged before, each with the traffic of several replicas


class Readings(Pumps):
    pump: int = column(description="number of the pump", source="made up", ge=0)
    site: str = column(description="where the pump is", source="made up")


contract = replace(
    pumps.contract, name="readings", schema=Readings, key=("measured_at", "pump"),
    features=(number("vibration"), number("heat"), number("starts"), category("site")),
    gate=replace(pumps.contract.gate, slices=("site",)),
    source=lambda start, end: with_pumps(readings(start, end)))


def with_pumps(rows: pd.DataFrame, first: int = 0) -> pd.DataFrame:
    """The rows with numbers that no float64 holds, and sites."""
    index = np.arange(first, first + len(rows))
    sites = np.array([f"site {site}" for site in range(SITES)], object)
    return rows.assign(pump=2**53 + 2 * index + 1, site=sites[index * 7 % SITES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, help="judge one more window, of so many predictions")
    parser.add_argument("--judge", help="judge the window that starts then, in this process")
    asked = parser.parse_args()
    if asked.judge:
        print(json.dumps(judged(datetime.fromisoformat(asked.judge))))
        return
    sizes = [*SIZES, *([asked.rows] if asked.rows else [])]
    with fresh_addresses():
        context = open_model("tests.bench.monitor")
        version = champion(context)
        windows = {rows: FIRST + index * WEEK for index, rows in enumerate(sizes)}
        for rows, start in windows.items():
            begun = time.monotonic()
            make_window(context, version, start, rows)
            print(f"{rows:,} predictions were made up in {time.monotonic() - begun:.0f} s", flush=True)
        found = {rows: in_a_process(start) for rows, start in windows.items()}
        make_history(context, version)
        late = in_a_process(windows[SIZES[1]])
    write("monitor", {"figures": figures(found, late), "with_history": late,
                      "by_window": [{"rows": rows, **one} for rows, one in found.items()]})


def figures(found: dict[int, dict[str, float]], late: dict[str, float]) -> list[dict[str, Any]]:
    """`found`: by the window's predictions; `late`: the second of SIZES, with a long history."""
    few, many, largest = found[SIZES[2]], found[SIZES[3]], max(found)
    return [
        figure(f"peak memory of judging {largest:,} predictions, beyond an empty window's", 1_000, "at most",
               "MB", [found[largest]["peak_mb"] - found[0]["peak_mb"]]),
        figure(f"peak memory of judging {SIZES[3]:,} predictions, of that of {SIZES[2]:,}", 1.3, "at most",
               "times", [many["peak_mb"] / few["peak_mb"]]),
        figure(f"processor time of judging {SIZES[3]:,} predictions, of that of {SIZES[2]:,}", 4.4, "at most",
               "times", [many["cpu_s"] / few["cpu_s"]]),
        figure(f"processor time of judging {SIZES[1]:,} predictions after {HISTORY} other windows, of that "
               f"after none", 1.3, "at most", "times", [late["cpu_s"] / found[SIZES[1]]["cpu_s"]]),
        figure(f"judging {largest:,} predictions", 240, "at most", "s", [found[largest]["seconds"]])]


def in_a_process(start: datetime) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", "tests.bench.monitor", "--judge", start.isoformat()],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def judged(start: datetime) -> dict[str, Any]:
    from flows.monitoring.evaluation import evaluate_window
    from flows.monitoring.windows import due

    context, begun = open_model("tests.bench.monitor"), time.monotonic()
    windows = len(due(context))
    figures = evaluate_window(context, start).figures
    used = resource.getrusage(resource.RUSAGE_SELF)
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    performance = figures.performance
    return {"predictions": figures.estimate.rows if figures.estimate else 0,
            "labels": performance.rows if performance else 0, "due": windows,
            "seconds": time.monotonic() - begun, "cpu_s": used.ru_utime + used.ru_stime,
            "peak_mb": int(peak) / 1024}


def champion(context: ModelContext) -> str:
    """A version that was trained on six weeks."""
    from flows.training.version import fit_version
    from tests.verdicts import gate_verdict

    ingest_batch(context, TRAINED, FIRST)
    version = fit_version(context)
    context.ledger.judged(version, gate_verdict(), None)
    context.ledger.promote(version, expect=None)
    return version


def make_window(context: ModelContext, version: str, start: datetime, rows: int) -> None:
    """A window's profile of a few rows, its log, and its labelled events, which come at even intervals."""
    files = fetch_version(context, version)
    model = load_model(contract, files)
    block = with_pumps(pd.concat([readings(TRAINED, FIRST)] * 30, ignore_index=True).head(BLOCK))
    columns = contract.columns_of(block.assign(measured_at=start))
    probabilities = model.probabilities(columns)
    profile(context, version, columns, probabilities)
    interval = WEEK / max(rows, 1)
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        offsets = (np.arange(first, first + count) * (interval / timedelta(microseconds=1))).astype("int64")
        times = np.datetime64(start, "us") + offsets.astype("timedelta64[us]")
        part = with_pumps(block.head(count).assign(measured_at=times), first)
        for begin in range(0, count, FILE_ROWS):
            log_file(context, version, start, part.iloc[begin:begin + FILE_ROWS],
                     probabilities[begin:begin + FILE_ROWS], first + begin)
        end = start + WEEK if first + count == rows else times[-1].item() + timedelta(microseconds=1)
        data.append(context.store, contract, part[[*contract.columns]], times[0].item(), end)


def profile(context: ModelContext, version: str, columns: Any, probabilities: np.ndarray) -> None:
    """The profile of a few predictions, which are not logged."""
    few, unlogged = slice(20_000), replace(contract, logged=0.0)
    profiler = Profiler(unlogged, bins_in(fetch_version(context, version)), version, context.spool,
                        seconds=1_000, replica="made-up")
    profiler.add({name: values[few] for name, values in columns.items()}, probabilities[few],
                 contract.label.predicted(probabilities[few]))
    profiler.close()
    ship(context)


def log_file(context: ModelContext, version: str, start: datetime, rows: pd.DataFrame,
             probabilities: np.ndarray, first: int) -> None:
    """A file as it is packed from a replica's logs."""
    columns = contract.columns_of(rows, contract.request_columns) | {
        "measured_at": rows["measured_at"].to_numpy(), "pump": rows["pump"].to_numpy()}
    replica = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), [f"{first // 5_000_000:032x}"])
    table = pa.table({REPLICA: replica, NUMBER: np.arange(first, first + len(rows)), **columns,
                      **contract.label.probability_columns(probabilities[:len(rows)])})
    folder = layout.traffic(layout.PREDICTIONS, contract.name, version, start)
    context.store.create(f"{folder}{first:012d}.parquet", parquet(table))


def make_history(context: ModelContext, version: str) -> None:
    """Windows long ago, with the profiles and logs of several replicas, and as many data versions."""
    block = with_pumps(readings(TRAINED, TRAINED + timedelta(days=1)))
    for back in range(1, HISTORY + 1):
        start = TRAINED - back * WEEK
        rows = block.assign(measured_at=np.datetime64(start, "us") + np.arange(len(block)).astype("m8[s]"))
        data.append(context.store, contract, rows[[*contract.columns]], start, start + WEEK)
        for replica in range(10):
            for kind, suffix in ((layout.PROFILES, "bin"), (layout.PREDICTIONS, "parquet")):
                folder = Path(context.store.address) / layout.traffic(kind, contract.name, version, start)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"old-{replica}.{suffix}").write_bytes(b"not read")


if __name__ == "__main__":
    main()
