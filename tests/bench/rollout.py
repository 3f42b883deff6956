"""Releases under load: what callers notice, how soon a killed replica is back, which challengers get through.

Containers behind Traefik, 200 one-record requests a second all the time. The gate is left out on purpose:
every challenger here carries its "passed", so that only what the rollout itself sees can refuse it.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import queue
import shutil
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from contracts.core.policies import Rollout
from deployments import fleet, load_balancer, processes, routes
from flows.ingest import ingest_batch
from flows.releasing import rollout
from flows.releasing.bento import build_bento
from flows.releasing.image import ship_image
from flows.releasing.rollback import roll_back
from flows.training import version
from registry import data, images
from registry.context import ModelContext, open_model
from service.model import records_of_columns
from tests.bench import fresh_addresses, write
from tests.verdicts import gate_verdict

RATE, THREADS = 200, 16
QUIET, BOUND = 60, 30  # seconds of quiet to compare with; seconds that a rollback may take

# Each is put into the bento's entry point: what may go wrong in a version that the gate liked.
BAD = {
    "crashes at start": "raise RuntimeError('no')",
    "ends after a second": "import os, threading; threading.Timer(1, lambda: os._exit(3)).start()",
    "never gets ready": "import time; time.sleep(600)",
    "crashes on some inputs": "ON('os._exit(9) if UNITED(body, sample) else None')",
    "fails on some inputs": "ON('1 / 0 if UNITED(body, sample) else None')",
    "hangs on some inputs": "ON('await asyncio.sleep(60) if UNITED(body, sample) else None')",
    "answers slowly": "ON('await asyncio.sleep(0.2)')",
    "answers some slowly": "ON('await asyncio.sleep(0.4) if UNITED(body, sample) else None')",
    "refuses what the contract allows": "AS('(400, b\"{}\") if UNITED(body, sample) else reply')",
    "wrong schema": "AS('(200, reply[1].replace(b\"probabilities\", b\"scores\"))')",
    "no JSON": "AS('(200, b\"<html>\")')",
    "swapped classes": "PROBABILITIES('found[:, ::-1]')",
    "swapped names of the predicted class": "import numpy as np\nCLASSES('2 - found')",
    "constant answer to callers": "import numpy as np\nCLASSES('found * 0 + 1 if len(found) < 50 else found')",  # noqa: E501
    "NaN probabilities": "PROBABILITIES('found * np.nan')",
    "NaN for some callers": "PROBABILITIES('np.where(np.asarray(columns[\"carrier\"] == \"UA\")[:, None] & (len(found) < 50), np.nan, found)')",  # noqa: E501
    "skewed features": "COLUMNS('{**columns, \"temp\": (columns[\"temp\"] - 32) / 1.8}')",
    "other features for callers": "COLUMNS('{**columns, \"visib\": columns[\"visib\"] * 0} if len(columns[\"temp\"]) < 50 else columns')",  # noqa: E501
    "leaks memory": "HELD = []\nON('HELD.append(bytearray(os.urandom(1)) * 4_000_000)')",
    "says another version": "app.Api.version = property(lambda self: '0' * 64, lambda self, _: None)",
}
TOOLS = '''
import asyncio, os
import numpy as np
from service import app, model
def UNITED(body, sample):
    """A sixth of the callers' flights; the sample check can't know which inputs hurt."""
    return b'"carrier":"UA"' in body and not sample
def ON(code):
    """Run code, in which `body` and `sample` are known, before each answer."""
    scope = {**globals()}
    exec("async def before(body, sample):\\n    " + code, scope)
    was = app.Api.predict
    async def predict(self, body, sample):
        await scope["before"](body, sample)
        return await was(self, body, sample)
    app.Api.predict = predict
def AS(code):
    was = app.Api.predict
    async def predict(self, body, sample):
        reply = await was(self, body, sample)
        return eval(code)
    app.Api.predict = predict
def CLASSES(code):
    was = model.Model.classes
    model.Model.classes = lambda self, probabilities: (lambda found: eval(code))(was(self, probabilities))
def PROBABILITIES(code):
    was = model.Model.probabilities
    model.Model.probabilities = lambda self, columns: eval(
        code, {**globals(), "found": was(self, columns), "columns": columns})
def COLUMNS(code):
    was = model.Model.probabilities
    model.Model.probabilities = lambda self, columns: was(self, eval(code))
'''


Asked = list[tuple[float, float, int | str]]  # (when, seconds, status or error) of each request


class Callers:
    """Steady load from another process, so that what the release itself computes holds up no caller."""

    def __init__(self, url: str, bodies: list[bytes]):
        context = multiprocessing.get_context("spawn")
        self.asked: Asked = []
        self._over, self._told = context.Event(), context.Queue()
        self._process = context.Process(target=call, args=(url, bodies, self._over, self._told), daemon=True)

    @contextmanager
    def calling(self) -> Iterator[None]:
        self._process.start()
        self._hear()
        try:
            yield
        finally:
            self._over.set()
            while self._process.is_alive() or not self._told.empty():
                with suppress(queue.Empty):
                    self.asked += self._told.get(timeout=0.1)

    def _hear(self) -> None:
        """Take in what was told, until something that was asked after now is among it."""
        now = time.monotonic()
        while not self.asked or self.asked[-1][0] < now:
            self.asked += self._told.get(timeout=60)

    def between(self, start: float, end: float) -> dict[str, Any]:
        if self._process.is_alive():
            self._hear()
        seen = [(seconds, said) for begun, seconds, said in self.asked if start <= begun < end]
        times = np.array([seconds for seconds, _ in seen]) * 1000
        failed = [said for _, said in seen if said != 200]
        return {"requests": len(seen), "requests_failed": len(failed),
                "failures": sorted({str(said) for said in failed}),
                "per_second": round(len(seen) / (end - start), 1), "p50_ms": float(np.percentile(times, 50)),
                "p99_ms": float(np.percentile(times, 99)), "max_ms": float(times.max())}


def call(url: str, bodies: list[bytes], over: Any, told: Any) -> None:
    """RATE requests a second from THREADS threads that keep their
    connections, told of twice a second, in order of time."""
    asked: deque = deque()
    threads = [threading.Thread(target=_ask, args=(url, bodies, index, over, asked))
               for index in range(THREADS)]
    for each in threads:
        each.start()
    while any(each.is_alive() for each in threads):
        time.sleep(0.5)
        if chunk := [asked.popleft() for _ in range(len(asked))]:
            told.put(chunk)
    told.put(list(asked))


def _ask(url: str, bodies: list[bytes], offset: int, over: Any, asked: deque) -> None:
    host = url.removeprefix("http://").split("/")[0]
    path, pace = "/" + url.split("/", 3)[3], THREADS / RATE
    connection, due, turn = http.client.HTTPConnection(host,
                                                       timeout=30), time.monotonic() + offset / RATE, offset
    while not over.is_set():
        time.sleep(max(0.0, due - time.monotonic()))
        begun, due, turn = time.monotonic(), max(due + pace, time.monotonic() - 1), turn + THREADS
        try:
            connection.request("POST", path, bodies[turn % len(bodies)], {"Content-Type": "application/json"})
            reply = connection.getresponse()
            reply.read()
            said: int | str = reply.status
        except (OSError, http.client.HTTPException) as error:
            said = repr(error)
            connection.close()
        asked.append((begun, time.monotonic() - begun, said))
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--releases", type=int, default=100, help="releases and rollbacks in a row")
    parser.add_argument("--good", type=int, default=20, help="good challengers, retrained on resampled data")
    parser.add_argument("--bad", type=int, default=len(BAD), help="how many of the bad challengers")
    asked = parser.parse_args()
    os.environ.setdefault("PERENNIAL_IMAGES", "127.0.0.1:5000/bench")
    os.environ.setdefault("PERENNIAL_BUILD_NETWORK", "host")
    with fresh_addresses():
        context = open_model("flights")
        context = replace(context, contract=replace(context.contract, rollout=Rollout()))
        try:
            write("rollout", measure(context, asked))
        finally:
            fleet.stop_all(context.run)


def measure(context: ModelContext, asked: argparse.Namespace) -> dict[str, Any]:
    ingest_batch(context, datetime(2013, 1, 1), datetime(2013, 2, 1))
    first, second = version_of(context, 0), version_of(context, 1)
    judged(context, first, None)
    image = ship(context, first)
    rollout.roll_out_version(context, first, image["reference"])
    found: dict[str, Any] = {"image": image, "second_image": ship(context, second),
                             "start": start_up(context, first, image["reference"])}
    rows = context.contract.source(datetime(2013, 2, 1), datetime(2013, 2, 8))
    records = records_of_columns(context.contract, context.contract.columns_of(rows))
    bodies = [json.dumps({"records": [record]}, separators=(",", ":")).encode() for record in records]
    callers = Callers(f"{load_balancer.start(context.run).url}/flights/predict", bodies)
    with callers.calling():
        found["quiet"] = during(callers, lambda: time.sleep(QUIET))
        print("quiet", json.dumps(found["quiet"]), flush=True)
        if asked.releases:
            found["releases"] = releases(context, callers, second, asked.releases)
            found["p99_ratio"] = found["releases"]["load"]["p99_ms"] / found["quiet"]["p99_ms"]
        found["kill"] = kill(context, callers)
        found["bad"] = [bad(context, callers, name) for name in list(BAD)[:asked.bad]]
        found["bad"].append(wrong_digest(context, callers))
        found["good"] = [good(context, callers, seed) for seed in range(2, 2 + asked.good)]
    found["load_in_all"] = callers.between(callers.asked[0][0], callers.asked[-1][0])
    return found


def during(callers: Callers, what: Callable[[], Any]) -> dict[str, Any]:
    begun = time.monotonic()
    what()
    return callers.between(begun, time.monotonic())


def version_of(context: ModelContext, seed: int) -> str:
    """A model on rows drawn anew, with replacement, from the same month; seed 0 takes each row once."""
    read = data.read

    def drawn(*arguments: Any, **named: Any) -> Any:
        rows = read(*arguments, **named)
        if not seed:
            return rows
        chosen = np.sort(np.random.default_rng(seed).integers(0, len(rows), len(rows)))
        return rows.iloc[chosen].reset_index(drop=True)

    data.read = drawn
    try:
        return version.fit_version(context)
    finally:
        data.read = read


def judged(context: ModelContext, version: str, against: str | None) -> None:
    context.ledger.judged(
        version, gate_verdict("passed", "by hand: the benchmark judges rollouts, not models"), against)


def ship(context: ModelContext, version: str) -> dict[str, Any]:
    """Build and push a version's image: how long, how large, and how much of it is its own."""
    bento = build_bento(context, version)
    begun = time.monotonic()
    reference = ship_image(context, version, bento)
    seconds, image = time.monotonic() - begun, images.present(reference)
    under = images.runtime(images.configured())
    return {"reference": reference, "build_and_push_s": seconds, "size_mb": image.attrs["Size"] / 1e6,
            "own_layer_mb": (image.attrs["Size"] - under.attrs["Size"]) / 1e6}


def start_up(context: ModelContext, version: str, image: str, times: int = 5) -> dict[str, Any]:
    """Seconds from `docker run` to the first 200 on /readyz,
    one container at a time, nothing else going on."""
    took = []
    for _ in range(times):
        begun = time.monotonic()
        started = fleet.start(image, version, 1, context.run, "startup")
        while not processes.is_answering(f"{started[0].url}/readyz"):
            time.sleep(0.02)
        took.append(time.monotonic() - begun)
        fleet.stop(started, context.run, "startup")
    return {"ready_s": took, "median_s": statistics.median(took)}


def releases(context: ModelContext, callers: Callers, second: str, times: int) -> dict[str, Any]:
    """A release and a rollback, in turn."""
    judged(context, second, context.ledger.state().champion)
    image = ship_image(context, second, build_bento(context, second))
    took: dict[str, list[float]] = {"release": [], "rollback": []}
    refused, begun = 0, time.monotonic()
    for turn in range(times):
        kind, start = ("rollback", "release")[turn % 2 == 0], time.monotonic()
        if kind == "release":
            refused += rollout.roll_out_version(context, second, image)["outcome"] != "released"
        elif context.ledger.state().champion == second:
            roll_back("flights", "previous", "the benchmark")
        took[kind].append(time.monotonic() - start)
        print(f"{turn + 1}/{times} {kind} {took[kind][-1]:.1f} s",
              json.dumps(callers.between(start, time.monotonic())), flush=True)
    return {"times": times, "refused": refused, "load": callers.between(begun, time.monotonic()),
            **{f"{kind}_s": {"median": statistics.median(all_), "max": max(all_)}
               for kind, all_ in took.items() if all_}}


def kill(context: ModelContext, callers: Callers) -> dict[str, Any]:
    """SIGKILL to one replica's first process under load, and how long until both answer again."""
    [one, *_] = fleet.running(context.run, context.name)
    begun, pid = time.monotonic(), one.pid
    os.kill(pid, signal.SIGKILL)
    processes.wait_until(lambda: one.pid not in (0, pid), 30)
    back = processes.wait_until(lambda: processes.is_answering(f"{one.url}/readyz"), 30)
    seconds = time.monotonic() - begun
    time.sleep(5)
    return {"back": back, "full_strength_s": seconds, "load": callers.between(begun, time.monotonic())}


def bad(context: ModelContext, callers: Callers, name: str) -> dict[str, Any]:
    """A challenger with something wrong in it: refused, by what, and what callers saw of it."""
    version = version_of(context, 100 + list(BAD).index(name))
    bento = build_bento(context, version)
    tampered = bento.parent / f"{bento.name}-bad"
    shutil.copytree(bento, tampered)
    entry = tampered / "src" / "service" / "bento.py"
    entry.write_text(TOOLS + BAD[name] + "\n" + entry.read_text().replace('"""The entry', '\n"""The entry'))
    image = images.build(images.configured(), tampered, {"bad": name})
    return tried(context, callers, name, version, images.push(images.configured(), image, "flights", "bad"))


def wrong_digest(context: ModelContext, callers: Callers) -> dict[str, Any]:
    version = version_of(context, 99)
    return tried(context, callers, "wrong digest", version,
                 f"{images.configured().repository('flights')}@sha256:{'0' * 64}")


def good(context: ModelContext, callers: Callers, seed: int) -> dict[str, Any]:
    version = version_of(context, seed)
    return tried(context, callers, f"resampled {seed}", version,
                 ship_image(context, version, build_bento(context, version)))


def tried(context: ModelContext, callers: Callers, name: str, version: str, image: str) -> dict[str, Any]:
    """Put a challenger in front as a release would; a good one
    is then rolled back, so that all meet the same champion."""
    champion = context.ledger.state().champion
    judged(context, version, champion)
    begun = time.monotonic()
    try:
        done = rollout.roll_out_version(context, version, image)
        outcome, why = done["outcome"], "; ".join((done["canary"] or {}).get("reasons", ()))
    except Exception as error:
        outcome, why = "refused", f"{type(error).__name__}: {error}"
    seconds, champion_now = time.monotonic() - begun, context.ledger.state().champion
    served = routes.champion_urls(context.run, context.name)
    alone = {each.version for each in fleet.running(context.run, context.name) if each.url in served}
    if champion_now != champion:
        roll_back("flights", champion, "the benchmark")
    result = {"name": name, "outcome": outcome, "why": why[:300], "became_champion": champion_now == version,
              "served_all": version in alone, "seconds": seconds,
              "load": callers.between(begun, time.monotonic())}
    print(json.dumps(result), flush=True)
    return result


if __name__ == "__main__":
    main()
