"""Ingest ten million rows from each kind of source, and the peak memory that it takes.

A function that gives Arrow batches, Parquet files by day, a Delta table, and a query on SQLite; on PostgreSQL
too, where PERENNIAL_BENCH_POSTGRESQL names one with a table `readings` that this may replace.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import sqlalchemy
from deltalake import write_deltalake

from contracts.core.sources import DeltaSource, ParquetFiles, SqlQuery
from registry.context import ModelContext, open_model
from tests.bench import figure, fresh_addresses, write

START, DAY = datetime(2024, 1, 1), timedelta(days=1)
DAYS, ROWS_A_DAY = 250, 40_000
QUERY = "SELECT * FROM readings WHERE measured_at >= :start AND measured_at < :end"
POSTGRESQL = os.environ.get("PERENNIAL_BENCH_POSTGRESQL", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, help="take the rows of this kind in this process")
    asked = parser.parse_args()
    if asked.kind:
        print(json.dumps(measured(asked.kind)))
        return
    rows = DAYS * ROWS_A_DAY
    kinds = [kind for kind in KINDS if kind != "postgresql" or POSTGRESQL]
    taken = {kind: in_a_process(kind) for kind in kinds}
    figures = [figure(f"peak memory of ingesting {rows:,} rows: {kind}", 1_000, "at most", "MB",
                      [one["peak_mb"]]) for kind, one in taken.items()]
    write("sources", {"figures": figures, "taken": taken})


def in_a_process(kind: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", "tests.bench.sources", "--kind", kind],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind}: {taken}", flush=True)
    return taken


def day(number: int) -> pd.DataFrame:
    rng, n = np.random.default_rng(number), ROWS_A_DAY
    seconds = np.sort(rng.integers(0, 86_400, n)).astype("timedelta64[s]")
    times = np.datetime64(START + number * DAY, "s") + seconds
    return pd.DataFrame({"measured_at": times, "vibration": rng.gamma(4, 2, n).clip(0, 100),
                         "heat": rng.normal(60, 8, n), "starts": rng.integers(0, 200, n),
                         "stopped": rng.random(n) < 0.3})


def function(start: datetime, end: datetime) -> Iterator[pa.RecordBatch]:
    for number in range((start - START).days, -(-(end - START) // DAY)):
        rows = day(number)
        inside = (rows["measured_at"] >= start) & (rows["measured_at"] < end)
        yield from pa.Table.from_pandas(rows[inside], preserve_index=False).to_batches()


def write_files(home: Path) -> None:
    for number in range(DAYS):
        day(number).to_parquet(home / f"{START + number * DAY:%Y-%m-%d}.parquet")


def write_table(home: Path) -> None:
    for number in range(0, DAYS, 10):
        rows = pd.concat([day(number + offset) for offset in range(10)])
        write_deltalake(str(home / "table"), pa.Table.from_pandas(rows, preserve_index=False), mode="append")


def write_database(url: str) -> None:
    engine = sqlalchemy.create_engine(url)
    day(0).head(0).to_sql("readings", engine, index=False, if_exists="replace")
    for number in range(DAYS):
        add_rows(engine, day(number))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE INDEX by_time ON readings (measured_at)"))


def add_rows(engine: sqlalchemy.Engine, rows: pd.DataFrame) -> None:
    """Add rows to `readings`, on PostgreSQL by COPY: a statement a row takes minutes."""
    if engine.dialect.name != "postgresql":
        rows.to_sql("readings", engine, index=False, if_exists="append")
        return
    with engine.begin() as connection:
        cursor = connection.connection.cursor()
        with cursor.copy("COPY readings FROM STDIN (FORMAT csv)") as copy:
            copy.write(rows.to_csv(index=False, header=False))


KINDS = ("function", "files", "delta", "sqlite", "postgresql")


def measured(kind: str) -> dict[str, float]:
    """How many rows were taken, in how many seconds, at which peak of memory."""
    with fresh_addresses() as home:
        child = os.fork()  # whose memory does not count
        if child == 0:
            write_rows(kind, home)
            os._exit(0)
        os.waitpid(child, 0)
        context = open_model("pumps")
        context = replace(context, contract=replace(context.contract, source=source_of(kind, home)))
        begun = time.monotonic()
        rows = ingested(context)
        return {"rows": rows, "seconds": round(time.monotonic() - begun, 1),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def ingested(context: ModelContext) -> int:
    from flows.ingest import ingest_batch

    return ingest_batch(context, START, START + DAYS * DAY)[0].rows


def write_rows(kind: str, home: Path) -> None:
    match kind:
        case "files":
            write_files(home)
        case "delta":
            write_table(home)
        case "sqlite":
            write_database(f"sqlite:///{home / 'readings.db'}")
        case "postgresql":
            write_database(POSTGRESQL)


def source_of(kind: str, home: Path) -> object:
    return {"function": function, "files": ParquetFiles(str(home / "%Y-%m-%d.parquet")),
            "delta": DeltaSource(str(home / "table")),
            "sqlite": SqlQuery(QUERY, f"sqlite:///{home / 'readings.db'}"),
            "postgresql": SqlQuery(QUERY, "${PERENNIAL_BENCH_POSTGRESQL}")}[kind]


if __name__ == "__main__":
    main()
