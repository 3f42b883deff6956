"""What a core serves through `bentoml serve` of the built
bento, everything on, beside what a user would pick instead.

The server has the first core, the client the last. Both sides of a ratio are asked
in turn; a figure is the median of those turns, and its spread the least and the
most. `--long` gives the tail and the soak five minutes instead of half of one.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime
from http.client import HTTPConnection
from statistics import median
from typing import Any

import httpx
import msgspec
import numpy as np

from flows.ingest import ingest_batch
from flows.training.version import fit_version
from registry.context import ModelContext, fetch_version, open_model
from service.model import Model, columns_of_records, load_model, records_of_columns
from tests.bench import figure, fresh_addresses, write
from tests.bench.beside import FASTAPI, FLOOR, MLSERVER, OFF, OURS, started
from tests.bench.load import CORES, Load, Server, load, need_wrk, on_core

CONNECTIONS, TURNS, SECONDS = 32, 3, 2  # of the race of all servers
MANY = 1_000  # records of a large request
FEW = 4  # connections that send large requests: what waits of 32 would be more bytes than may
PATIENT = 8  # callers beside the crowd who wait between requests
ROWS = 1_000_000
CROWD = 1_500  # connections at overload, three times as many as may wait
FIRST = 50_000  # requests after which memory shall grow no more
START, END = datetime(2013, 1, 1), datetime(2013, 3, 1)

Figures = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="tail and soak over five minutes")
    asked = parser.parse_args()
    need_wrk()
    with fresh_addresses():
        context = open_model("flights")
        ingest_batch(context, START, END)
        write("serve", measured(context, fit_version(context), windows=30 if asked.long else 3))


def measured(context: ModelContext, version: str, windows: int) -> dict[str, Any]:
    """All figures; those of the tail and the soak over so many windows of ten seconds."""
    folder, begun = fetch_version(context, version), time.monotonic()
    model = load_model(context.contract, folder)
    samples = json.loads((folder / "samples.json").read_bytes())["records"]
    # A raw tensor as JSON can't say that a value is missing.
    servers = started(context, version, next(each for each in samples if None not in each.values()))
    ours, off = servers[OURS], servers[OFF]
    tail, tails = through(ours, windows)
    peers, raced = race(servers)
    overload, crowded = crowd(ours)
    figures = [*raced, *tails, *alone(ours), *large(ours, model, samples), *profiled(ours, off), *crowded,
               equal(ours, model, context)]
    return {"figures": figures, "peers": peers, "tail": tail, "overload": overload,
            "connections": CONNECTIONS, "tail_seconds": 10 * windows,
            "took_seconds": time.monotonic() - begun}


def race(servers: dict[str, Server]) -> tuple[dict[str, Any], Figures]:
    """One-record requests: every server in turn, so many times."""
    for server in servers.values():
        load(server, CONNECTIONS, 1)
    turns = [{name: load(server, CONNECTIONS, SECONDS) for name, server in servers.items()}
             for _ in range(TURNS)]
    peers = {name: raced([turn[name] for turn in turns]) for name in servers}

    def times(other: str) -> list[float]:
        return ([] if "failed" in peers[other]
                else [turn[OURS].a_second / turn[other].a_second for turn in turns])

    return peers, [figure("one-record requests, one core, 32 connections", 3_000, "at least", "requests/s",
                          peers[OURS].get("requests_per_second", [])),
                   figure(f"the same, of {FASTAPI}", 20, "at least", "times", times(FASTAPI)),
                   figure(f"the same, of {MLSERVER}", 2.5, "at least", "times", times(MLSERVER)),
                   figure(f"the same, of {FLOOR}", 0.6, "at least", "times", times(FLOOR))]


def raced(turns: list[Load]) -> dict[str, Any]:
    """What one server did in all turns; why it has no figure where not every answer was right."""
    try:
        rates = [right(turn).a_second for turn in turns]
    except AssertionError as error:
        return {"failed": str(error)}
    return {"requests_per_second": rates, "p50_ms": median(turn.p50 for turn in turns),
            "p99_ms": median(turn.p99 for turn in turns)}


def right(seen: Load) -> Load:
    """Refuse to time answers that are wrong or lacking."""
    if seen.wrong or seen.broken or seen.later or not seen.answered:
        raise AssertionError(f"not every answer was 200: {seen}")
    return seen


def through(ours: Server, windows: int) -> tuple[dict[str, Any], Figures]:
    """The tail of one-record requests, and how memory grows."""
    answered, worker_mb, seen = right(load(ours, CONNECTIONS, 10)).answered, [], []
    while answered < FIRST:
        answered += load(ours, CONNECTIONS, 1).answered
    worker_mb.append(ours.worker_mb())
    for _ in range(windows):
        seen.append(right(load(ours, CONNECTIONS, 10)))
        worker_mb.append(ours.worker_mb())
    requests = sum(one.answered for one in seen)
    return {
        "windows": [asdict(one) for one in seen], "worker_mb": worker_mb,
        "requests": requests}, [figure("99th percentile of one-record requests", 3, "at most",
                                       "times the median", [one.p99 / one.p50 for one in seen]),
                                figure("the longest of them", 50, "at most", "ms", [one.most for one in seen])
                                | {"measured": max(one.most for one in seen)}, figure(f"memory of the worker "
                                                                                      f"after {requests:,} "
                                                                                      f"requests", 10,
                                                                                      "at most",
                                                                                      "MB more than after "
                                                                                      "50,000",
                                                                                      [worker_mb[-1]
                                                                                       - worker_mb[0]])]


def alone(ours: Server) -> Figures:
    return [figure("one connection, median", 1.0, "at most", "ms",
                   [right(load(ours, 1, SECONDS)).p50 for _ in range(3)])]


def large(ours: Server, model: Model, samples: list[Any]) -> Figures:
    """Records a second in large requests, beside the booster on a matrix that is ready, in turn."""
    records = (samples * MANY)[:MANY]
    server = replace(ours, body=json.dumps({"records": records}))
    matrix = model.matrix(columns_of_records(model.contract, records))
    load(server, FEW, 1)
    turns = [right(load(server, FEW, SECONDS)).a_second * MANY / limit(model, matrix) for _ in range(TURNS)]
    return [figure("records in 1,000-record requests, of inplace_predict in a loop", 0.4, "at least", "times",
                   turns)]


def limit(model: Model, matrix: np.ndarray) -> float:
    """Rows a second of `inplace_predict` on the server's core, in one thread."""
    with on_core(CORES[0]):
        begun, calls = time.perf_counter(), 0
        while time.perf_counter() < begun + SECONDS:
            model.booster.inplace_predict(matrix)
            calls += 1
        return calls * len(matrix) / (time.perf_counter() - begun)


def profiled(ours: Server, off: Server) -> Figures:
    """What profile and log cost: on and off in turn."""
    turns = [[right(load(server, CONNECTIONS, 5)) for server in (ours, off)] for _ in range(TURNS)]
    return [figure("profile and log on, of the requests/s without", 0.95, "at least", "times",
                   [on.a_second / no.a_second for on, no in turns]), figure("profile and log on, 99th "
                                                                            "percentile more than without",
                                                                            1.0, "at most", "ms",
                                                                            [on.p99 - no.p99
                                                                             for on, no in turns])]


def crowd(ours: Server) -> tuple[dict[str, Any], Figures]:
    """More callers than can be answered; a few others beside them tell what each of theirs met with."""
    before = ours.worker_mb()
    with ThreadPoolExecutor(PATIENT + 1) as pool:
        crowding = pool.submit(load, ours, CROWD, 10)
        time.sleep(2)  # until all are there
        met = [one for asked in [pool.submit(patient, ours, 6) for _ in range(PATIENT)]
               for one in asked.result()]
    seen, after = crowding.result(), ours.worker_mb()
    if (seen.wrong or seen.broken or not seen.later
        or not all(later for _, status, later in met if status == 503)):
        raise AssertionError(f"at overload: {seen}, {met[:20]}")
    accepted, refused = ([took for took, status, _ in met if status == wanted] for wanted in (200, 503))
    told = {"connections": CROWD, "answered_a_second": seen.a_second,
            "refused_a_second": seen.later / seen.seconds, "accepted_ms": spread(accepted),
            "refused_ms": spread(refused), "worker_mb": [before, after]}
    return told, [figure(f"{CROWD:,} connections: accepted requests, 99th percentile", 500, "at most", "ms",
                         p99_of(accepted)), figure(f"{CROWD:,} connections: a 503 with Retry-After, 99th "
                                                   f"percentile", 500, "at most", "ms", p99_of(refused)),
                  figure(f"{CROWD:,} connections: memory of the worker", 10, "at most", "MB more than before",
                         [after - before])]


def patient(ours: Server, seconds: float) -> list[tuple[float, int, str | None]]:
    """A caller who asks, hears and waits a little: milliseconds, status and Retry-After of each answer."""
    where, met, ends = httpx.URL(ours.url), [], time.monotonic() + seconds
    connection = HTTPConnection(where.host, where.port, timeout=30)
    while time.monotonic() < ends:
        begun = time.perf_counter()
        connection.request("POST", where.path, ours.body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        met.append(((time.perf_counter() - begun) * 1000, answer.status, answer.getheader("retry-after")))
        time.sleep(0.05)
    connection.close()
    return met


def p99_of(values: list[float]) -> list[float]:
    return [float(np.quantile(values, 0.99))] if values else []


def spread(values: list[float]) -> dict[str, float]:
    if not values:  # on a slow machine nobody may be answered in time
        return {"requests": 0}
    return {"requests": len(values), "p50": float(np.median(values)), "p99": float(np.quantile(values, 0.99)),
            "max": max(values)}


def equal(ours: Server, model: Model, context: ModelContext) -> dict[str, Any]:
    """Answers through HTTP beside the model's own, to the last
    bit, on a million rows that never were of values that were."""
    known, rng = context.contract.columns_of(context.contract.source(START, END)), np.random.default_rng(0)
    columns = {name: rng.choice(values, ROWS) for name, values in known.items()}
    expected, differ = model.probabilities(columns), 0
    with httpx.Client(trust_env=False, timeout=30) as client:
        for start in range(0, ROWS, MANY):
            part = {name: values[start:start + MANY] for name, values in columns.items()}
            body = msgspec.json.encode({"records": records_of_columns(context.contract, part)})
            answers = msgspec.json.decode(client.post(ours.url,
                                                      content=body).raise_for_status().content)["predictions"]
            here, classes = expected[start:start + MANY], model.classes(expected[start:start + MANY])
            found = np.array([list(answer["probabilities"].values()) for answer in answers])
            named = np.array([model.contract.label.classes.index(answer["class"]) for answer in answers])
            differ += int(((found != here).any(axis=1) | (named != classes)).sum())
    return figure(f"answers that differ from the trainer's by a bit, of {ROWS:,}", 0, "at most", "answers",
                  [differ])


if __name__ == "__main__":
    main()
