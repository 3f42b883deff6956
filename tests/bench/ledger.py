"""A ledger of 100,000 events: appending at any length, a cold start, and its requests, on a folder and on S3.

On S3 (moto's server) the folder's ledger is copied, of the single events the newest: a cold start reads no
other, and which requests it makes is counted where they are sent.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import boto3
import httpx

from contracts.core.verdict import (
    CheckKind,
    ColumnCheck,
    Outcome,
    WindowFigures,
    WindowKind,
    WindowVerdict,
)
from deployments import processes
from registry import layout
from registry.event_log import segments
from registry.event_log.verification import verify
from registry.events import Data, Ingested, LabelsStored, WindowJudged
from registry.folder_store import FolderStore
from registry.ledger import Ledger
from registry.s3_store import S3Store
from tests.bench import figure, write

EVENTS, TURNS, ROUNDS = 100_000, 1_000, 5
MODEL = "bench"
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "benchbench",
        "AWS_DEFAULT_REGION": "us-east-1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help="how many are appended")
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as home:
        folder = FolderStore(Path(home) / "store")
        appended = append(Ledger(folder, MODEL), events)
        turns = in_turn(folder, FolderStore(Path(home) / "fresh"), FolderStore(Path(home) / "bare"), events)
        cold = [cold_seconds(folder) for _ in range(ROUNDS)]
        reads = reading(folder)
        with s3_copy(folder) as store:
            requests = requests_on_s3(store)
    count = f"{events:,}"
    write("ledger", {"figures": [
        figure(f"an append at {count} events, of one to a new ledger", 3, "at most", "×",
               [turns["old"] / turns["fresh"]]),
        figure(f"an append at {count} events, of a bare put-if-absent", 3, "at most", "×",
               [turns["old"] / turns["bare"]]),
        figure(f"requests of a cold start at {count} events, on S3", 10, "at most", "requests",
               requests["state"]),
        figure(f"requests of a cold start and the whole history of the state at {count} events, on S3", 10,
               "at most", "requests", requests["state and history"]),
        figure(f"requests of all {count} events, cold, on S3", 10, "at most", "requests",
               requests["events"]),
        figure(f"appending {count} events", 300, "at most", "s", [appended["seconds"]]),
        figure(f"a cold start at {count} events", 0.2, "at most", "s", cold)],
        "append_ms": appended["ms"], "turns_ms": turns, "requests": requests, "reading_s": reads})


def happened(number: int) -> Data:
    """Mostly labels, and of fifty events a data version and the verdict on a window of twenty columns."""
    if number % 50 == 0:
        check = ColumnCheck(effect=0.0123456789, threshold=0.1, p_value=0.123456789, drifted=False)
        checks = {f"column_{column}": {CheckKind.VALUES: check, CheckKind.MISSING: check}
                  for column in range(20)}
        return WindowJudged(key=f"w{number // 50:06d}", labels=digest(number), verdict=WindowVerdict(
            outcome=Outcome.PASSED, kind=WindowKind.FINE, figures=WindowFigures(rows=number, checks=checks)))
    if number % 50 == 25:
        return Ingested(start="2024-01-01T00:00:00", end="2024-01-02T00:00:00", data=digest(number),
                        rows=number, bad=0)
    return LabelsStored(labels=digest(number), rows=number)


def digest(number: int) -> str:
    return sha256(b"%d" % number).hexdigest()


def once(event: Data) -> tuple[str, ...]:
    return {LabelsStored: ("labels",), Ingested: ("data",)}.get(type(event), ())


def append(ledger: Ledger, events: int) -> dict:
    """Append so many events; seconds in all, and ms an event for each thousand."""
    begun, took = time.perf_counter(), {}
    for first in range(0, events, 1_000):
        start = time.perf_counter()
        for number in range(first, min(first + 1_000, events)):
            event = happened(number)
            ledger.record(event, once=once(event))
        took[first] = time.perf_counter() - start
        if first % 10_000 == 0:
            print(f"{first:,}: {took[first]:.2f} ms an event", flush=True)
    return {"seconds": time.perf_counter() - begun, "ms": took}


def in_turn(folder: FolderStore, fresh: FolderStore, bare: FolderStore, events: int) -> dict[str, float]:
    """Milliseconds an append to the long ledger and to a new one, and a bare put of as much, in turn."""
    ledgers = {"old": Ledger(folder, MODEL), "fresh": Ledger(fresh, MODEL)}
    ledgers["old"].state()
    took: Counter[str] = Counter()
    for turn in range(TURNS):
        event = happened(events + turn)
        for name, ledger in ledgers.items():
            begun = time.perf_counter()
            ledger.record(event, once=once(event))
            took[name] += time.perf_counter() - begun
        content = folder.get(layout.event(MODEL, events + turn))
        begun = time.perf_counter()
        bare.create(f"bare/{turn:08d}.json", content)
        took["bare"] += time.perf_counter() - begun
    return {name: seconds / TURNS * 1_000 for name, seconds in took.items()}


def cold_seconds(folder: FolderStore) -> float:
    begun = time.perf_counter()
    Ledger(folder, MODEL).state()
    return time.perf_counter() - begun


def reading(folder: FolderStore) -> dict[str, float]:
    """Seconds of what reads more than the present state."""
    def seconds(read: Callable[[Ledger], object]) -> float:
        ledger = Ledger(folder, MODEL)
        ledger.state()
        begun = time.perf_counter()
        read(ledger)
        return time.perf_counter() - begun

    at = Ledger(folder, MODEL).events(1_000, 1_001)[0].at
    return {"all windows": seconds(lambda ledger: list(ledger.state().windows.values())),
            "all labels": seconds(lambda ledger: ledger.state().of_kind(LabelsStored)),
            "the last 50 events": seconds(lambda ledger: ledger.events(ledger.length - 50)),
            "50 events of long ago": seconds(lambda ledger: ledger.events(1_000, 1_050)),
            "the state of long ago": seconds(lambda ledger: ledger.state(at=at).champion),
            "events that name a window": seconds(lambda ledger: ledger.events_with("w000100")),
            "all events": seconds(lambda ledger: ledger.events()),
            "verify": seconds(lambda ledger: verify(ledger.store, MODEL))}


@contextmanager
def s3_copy(folder: FolderStore) -> Iterator[S3Store]:
    """The ledger on moto's S3 server."""
    port = processes.available_port(None)
    server = subprocess.Popen([sys.executable, "-m", "tests.s3_server", str(port)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        processes.wait_until(lambda: answers(port), 60)
        bucket = f"b{uuid4().hex}"
        boto3.client("s3").create_bucket(Bucket=bucket)
        store = S3Store(bucket, "bench")
        head, _ = segments.read_head(folder, MODEL)
        assert head
        for path in sorted(folder.folder.rglob("*")):
            key = path.relative_to(folder.folder).as_posix()
            number = layout.event_number(key)
            is_read = number is None or number >= head.covered
            if is_read and path.is_file() and not path.name.startswith("."):
                store.create(key, path.read_bytes())
        yield store
    finally:
        server.terminate()
        server.wait()


def answers(port: int) -> bool:
    try:
        return bool(httpx.get(f"http://127.0.0.1:{port}/", timeout=1).status_code)
    except httpx.TransportError:
        return False


def requests_on_s3(store: S3Store) -> dict[str, list[int]]:
    """How many requests each reading sends from the start of a process on, at each distance to the head, and
    how many a hundred appends."""
    sent: Counter[str] = Counter()
    store.client.meta.events.register("before-send.s3", lambda **_: sent.update(["all"]))

    def requests(read: Callable[[Ledger], object]) -> int:
        sent.clear()
        read(Ledger(store, MODEL))
        return sent["all"]

    def history(ledger: Ledger) -> None:
        state = ledger.state()
        assert state.windows["w000001"] and len(state.of_kind(LabelsStored)) and state.champion is None

    readings: dict[str, Callable[[Ledger], object]] = {
        "state": lambda ledger: ledger.state().champion, "state and history": history,
        "events": lambda ledger: ledger.events(),
        "50 events of long ago": lambda ledger: ledger.events(1_000, 1_050)}
    counts: dict[str, list[int]] = {name: [] for name in readings}
    writer = Ledger(store, MODEL)
    for turn in range(segments.EVERY):
        for name, read in readings.items():
            counts[name].append(requests(read))
        writer.record(LabelsStored(labels=f"s3 {turn}", rows=1))
    sent.clear()
    for turn in range(100):
        writer.record(LabelsStored(labels=f"s3, too {turn}", rows=1))
    return counts | {"100 appends": [sent["all"]]}


if __name__ == "__main__":
    main()
