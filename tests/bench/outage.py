"""Two models that nobody looks after, on a folder and on S3: through six windows, with a source that raises,
with a worker that is killed in each step of a training, and with the server restarted in between.

It works in a copy of this project with a second contract, and takes about 20 minutes a store; `--store` names
one, `--steps` the steps that the worker is killed in. Nothing but traffic, the clock and those faults is made
here: whatever else happens the product does.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar
from uuid import uuid4

import boto3
import httpx
import psutil

from deployments import fleet, prefect_server, processes, stack
from registry.settings import CLOCK
from tests.bench import ROOT, figure, write

T = TypeVar("T")
MODELS = ("pumps", "fans")
WEEK, LOOK = timedelta(days=7), timedelta(hours=14)
FIRST = datetime(2024, 2, 12)
WINDOWS = 6
STEPS = ("read data", "preprocess", "fit", "evaluate", "register", "package", "start", "canary")
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest", "AWS_DEFAULT_REGION": "us-east-1"}
FANS = '''"""The pumps' readings under another name; its source raises while the file BROKEN is there."""

import os
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd

from contracts.pumps import contract as pumps
from contracts.pumps import readings


def source(start: datetime, end: datetime) -> pd.DataFrame:
    if Path(os.environ["PERENNIAL_RUN"], "BROKEN").exists():
        raise RuntimeError("the fans' bus is down")
    return readings(start, end)


# Its margin lets each challenger pass, so that each training comes to the last step.
contract = replace(pumps, name="fans", source=source, gate=replace(pumps.gate, margin=0.1),
                   drift=replace(pumps.drift, cooldown=timedelta(days=7), refusals=50))
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=("folder", "s3"))
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=STEPS, help="to kill the worker in")
    parser.add_argument("--home", help=argparse.SUPPRESS)  # in the copy
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what runs is ended
    if asked.home:
        print(json.dumps(trial(Path(asked.home), tuple(asked.steps))))
        return
    taken = {kind: in_a_copy(kind, asked.steps) for kind in ([asked.store] if asked.store
                                                             else ["folder", "s3"])}
    write("outage", {"figures": [line for kind, one in taken.items() for line in figures(kind, one)],
                     "taken": taken})


def figures(kind: str, taken: dict[str, Any]) -> list[dict[str, Any]]:
    resumed = [kill["resumed"] for kill in taken["kills"]]
    return [figure(f"{kind}: windows judged of {2 * WINDOWS}", 2 * WINDOWS, "at least", "windows",
                   [taken["judged"]]),
            figure(f"{kind}: failed requests of {taken['requests']:,}", 0, "at most", "requests",
                   [taken["failed"]]),
            figure(f"{kind}: runs that neither a schedule, an automation nor a parent run started", 0,
                   "at most", "runs", [taken["by_hand"]]),
            figure(f"{kind}: windows of the other model judged while a source raised", 1, "at least",
                   "windows", [taken["judged_beside_a_fault"]]),
            figure(f"{kind}: kills after which the run went on at the step it died in", 1, "at least",
                   "share", [sum(resumed) / len(resumed)] if resumed else []),
            figure(f"{kind}: from a kill to the end of its training", 600, "at most", "s",
                   [kill["seconds"] for kill in taken["kills"]])]


def in_a_copy(kind: str, steps: Sequence[str]) -> dict[str, Any]:
    """Run the trial in a copy of the project that has a second contract, on a folder or on S3."""
    with tempfile.TemporaryDirectory(prefix="perennial-outage-") as folder, addresses(kind) as known:
        copy, home = Path(folder, "project"), Path(folder, "home")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "__pycache__"))
        (copy / "contracts" / "fans.py").write_text(FANS)
        home.mkdir()
        environ = os.environ | stack.environment(home, profile_seconds=0.3) | known | {
            CLOCK: str(home / "clock"), "PYTHONPATH": str(copy), "PREFECT_LOGGING_LEVEL": "INFO"}
        (home / "clock").write_text(FIRST.replace(tzinfo=UTC).isoformat())
        process = subprocess.Popen([sys.executable, "-m", "tests.bench.outage", "--home", str(home),
                                    "--steps", *steps], cwd=copy, env=environ, stdout=subprocess.PIPE,
                                   text=True)
        try:
            output = process.communicate(timeout=7_200)[0]
        finally:
            process.kill()
            fleet.stop_all(home / "run")
        if process.returncode:
            raise RuntimeError(f"the trial on {kind} failed")
        taken: dict[str, Any] = json.loads(output.splitlines()[-1])
        return taken


@contextmanager
def addresses(kind: str) -> Iterator[dict[str, str]]:
    """What makes the store an S3 bucket of a local server; nothing for a folder."""
    if kind == "folder":
        yield {}
        return
    port = processes.available_port(5555)
    server = subprocess.Popen([sys.executable, "-m", "tests.s3_server", str(port)], stderr=subprocess.DEVNULL)
    try:
        known, bucket = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}, f"b{uuid4().hex}"
        os.environ |= known
        until(lambda: httpx.get(known["AWS_ENDPOINT_URL"]).status_code < 500, 30)
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield known | {"PERENNIAL_STORE": f"s3://{bucket}/team"}
    finally:
        server.kill()
        for name in (*KEYS, "AWS_ENDPOINT_URL"):
            os.environ.pop(name, None)


def until(done: Callable[[], T], seconds: float) -> T:
    """Wait for something true; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := done():
                return found
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"not within {seconds} s: {done}")


class Callers:
    """Callers of each model who send the records of the current week, one request after the other."""

    def __init__(self, url: str):
        self.sent, self.failed, self._url = 0, 0, url
        self._records: list[Any] = []
        self._ended = Event()
        self._threads = [Thread(target=self._call, args=(model,), daemon=True) for model in MODELS]

    def week(self, start: datetime, hotter: float = 0) -> None:
        """From now on send the readings of a week, some degrees hotter than they will be found to be."""
        from contracts.pumps import contract, readings
        from service.model import records_of_columns

        rows = readings(start, start + WEEK)
        columns = contract.columns_of(rows.assign(heat=rows["heat"] + hotter))
        self._records = records_of_columns(contract, columns)
        for model in MODELS:
            for at in range(0, len(self._records), 500):
                self._post(model, self._records[at:at + 500])

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _call(self, model: str) -> None:
        number = 0
        while not self._ended.wait(0.05):
            number += 1
            self._post(model, [self._records[number % len(self._records)]])

    def _post(self, model: str, records: list[Any]) -> None:
        self.sent += 1
        try:
            reply = httpx.post(f"{self._url}/{model}/predict", json={"records": records}, timeout=30)
            reply.raise_for_status()
        except httpx.HTTPError as error:
            self.failed += 1
            say(f"{model}: a request failed: {error!r}")


def say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def trial(home: Path, steps: tuple[str, ...]) -> dict[str, Any]:
    """Everything, in the copy of the project whose stack lives in `home`."""
    from flows.orchestration.deploying import deploy

    up = stack.up(home)
    deploy(MODELS)
    look(FIRST + LOOK)
    until(lambda: all(opened(model).ledger.state().champion and is_quiet(model) for model in MODELS), 300)
    callers, at = Callers(up.url), FIRST
    callers.week(at)
    callers.start()
    for _ in range(WINDOWS):
        at = pass_week(callers, at)
    taken = {"judged": sum(len(judged(model)) for model in MODELS), "trainings": trainings()}
    at, beside = break_source(home, callers, at)
    kills = []
    for number, step in enumerate(steps):
        if number == 2:
            restart_server(home)
        at, kill = kill_worker(home, callers, at, step)
        kills.append(kill)
    callers.end()
    return taken | {"judged_beside_a_fault": beside, "kills": kills, "requests": callers.sent,
                    "failed": callers.failed, "by_hand": len(started_by_hand()), "trainings": trainings()}


def pass_week(callers: Callers, at: datetime) -> datetime:
    """Let a week end: data comes, both models are judged, retrained where they must, and released."""
    begun = time.monotonic()
    look(at + WEEK + LOOK)
    until(lambda: all(at.isoformat() in judged(model) for model in MODELS), 300)
    time.sleep(3)
    until(lambda: all(map(is_quiet, MODELS)), 400)
    say(f"{at:%Y-%m-%d}: {[str(judged(model)[at.isoformat()].verdict.kind) for model in MODELS]}, "
        f"{time.monotonic() - begun:.0f} s")
    callers.week(at + WEEK)
    return at + WEEK


def break_source(home: Path, callers: Callers, at: datetime) -> tuple[datetime, int]:
    """Have one model's source raise for a week; how many windows of the other were judged meanwhile."""
    (home / "run" / "BROKEN").touch()
    look(at + WEEK + LOOK)
    until(lambda: at.isoformat() in judged("pumps"), 300)
    until(lambda: is_quiet("pumps"), 300)
    until(lambda: [run for run in runs() if run.state.is_failed() and run.parameters.get("model") == "fans"],
          300)
    beside = int(at.isoformat() in judged("pumps") and at.isoformat() not in judged("fans"))
    (home / "run" / "BROKEN").unlink()
    callers.week(at + WEEK)
    at = pass_week(callers, at + WEEK)
    until(lambda: (at - 2 * WEEK).isoformat() in judged("fans"), 60)
    say("the source raised for a week, and what was missed was judged after it")
    return at, beside


def kill_worker(home: Path, callers: Callers, at: datetime, step: str) -> tuple[datetime, dict[str, Any]]:
    """Have a drifted week of the fans end, kill the worker and its runs in a step of the training that
    follows, and start a worker again; what became of the training."""
    callers.week(at, hotter=40)
    log = home / "run" / "logs" / "prefect-worker.log"
    position = log.stat().st_size
    look(at + WEEK + LOOK)
    until(lambda: at.isoformat() in judged("fans"), 300)
    reached = until(lambda: begun(log, position, "fans", step), 300)
    pids = kill(worker())
    killed = time.monotonic()
    prefect_server.start_worker(home / "run")
    claim = until(lambda: finished(at), 900)
    seconds = time.monotonic() - killed
    again = [run for run in runs() if run.parameters.get("window") == claim.key
             and run.parameters.get("model") == "fans"]
    cached = cached_steps(again)
    expected = [one for one in STEPS[:STEPS.index(step)] if one not in ("register", "package", "start")]
    told = {"step": step, "reached": reached, "ended": len(pids), "seconds": round(seconds, 1),
            "failures": claim.failures, "outcome": claim.outcome, "cached": cached,
            "resumed": claim.failures >= 1 and set(expected) <= set(cached)}
    say(f"killed in {step}: {told}")
    until(lambda: all(at.isoformat() in judged(model) and is_quiet(model) for model in MODELS), 900)
    callers.week(at + WEEK)
    return at + WEEK, told


def finished(at: datetime) -> Any:
    claim = opened("fans").ledger.state().claims.get(at.isoformat())
    return claim if claim and claim.outcome else None


def begun(log: Path, position: int, model: str, step: str) -> str:
    """The line of a log after which a step of a model's training has begun; empty before."""
    before = dict(zip(STEPS[1:], STEPS, strict=False)).get(step, "")
    with log.open() as file:
        file.seek(position)
        for line in file:
            if not before and "perennial.training.started" in line and model in line:
                return "its run had begun"
            if before and re.search(rf'"{before} [^"]*{model}', line) and "Finished in state" in line:
                return f"{before} had ended"
    return ""


def worker() -> psutil.Process:
    [found] = [process for process in psutil.process_iter(["cmdline", "environ"])
               if (process.info["cmdline"] or [])[4:6] == ["worker", "start"]
               and (process.info["environ"] or {}).get("PREFECT_API_URL") == os.environ["PREFECT_API_URL"]]
    return found


def kill(process: psutil.Process) -> list[int]:
    """Kill a worker and the flow runs below it, as the end of its machine would; not the replicas."""
    runs = [child for child in process.children(recursive=True)
            if any("prefect" in word for word in child.cmdline())]
    for one in (process, *runs):
        one.send_signal(signal.SIGKILL)
    return [one.pid for one in (process, *runs)]


def restart_server(home: Path) -> None:
    api = os.environ["PREFECT_API_URL"]
    [server] = {process for process in psutil.process_iter(["cmdline", "environ"])
                if (process.info["cmdline"] or [])[4:6] == ["server", "start"]
                and (process.info["environ"] or {}).get("PREFECT_API_URL") == api}
    server.send_signal(signal.SIGKILL)
    server.wait(30)
    time.sleep(5)
    prefect_server.start_server(home / "run", api)
    say("the server was killed and started again")


def look(to: datetime) -> None:
    from flows.orchestration.clock import move_clock

    move_clock([opened(model).contract for model in MODELS], to.replace(tzinfo=UTC))


def opened(model: str) -> Any:
    from registry.context import open_model

    return open_model(model)


def judged(model: str) -> dict[str, Any]:
    return dict(opened(model).ledger.state().windows)


def is_quiet(model: str) -> bool:
    return not any(claim.is_granted for claim in opened(model).ledger.state().claims.values())


def trainings() -> list[str]:
    """Each retraining that has ended, as "fans 2024-03-04: released"."""
    return [f"{model} {key[:10]}: {claim.outcome}" for model in MODELS
            for key, claim in opened(model).ledger.state().claims.items() if claim.outcome]


def runs() -> list[Any]:
    from flows.demo.chain import all_runs

    return all_runs()


def started_by_hand() -> list[str]:
    from flows.demo.chain import started_by_nobody

    return started_by_nobody(runs())


def cached_steps(trained: list[Any]) -> list[str]:
    """The steps that a later run of a training took from an earlier one."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(
            id=FlowRunFilterId(any_=[run.id for run in trained])), limit=200)
    return sorted({step for task in tasks for step in STEPS
                   if task.name.startswith(step) and task.state_name == "Cached"})


if __name__ == "__main__":
    main()
