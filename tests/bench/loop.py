"""From the end of a drifted window to the new version answering on all replicas, by the real stack.

A Prefect server, its worker, Traefik and two replicas of the departures model; callers send one-record
requests all the time. Two weeks of traffic come forty degrees too warm; then the clock reaches the contract's
look for data, and from there on nobody lends a hand: ingest, verdict, event, training, gate, canary, release.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import httpx

from deployments import processes, replicas, routes, stack
from registry.settings import CLOCK
from tests.bench import figure, fresh_addresses, write

MODEL = "departures"
WEEK = timedelta(days=7)
FIRST = datetime(2013, 2, 5, 2)  # a Tuesday, after the hour at which the contract looks for data
PERIOD = 7 * WEEK  # from one round to the next: longer than the contract's cooldown
DRIFTS = datetime(2013, 3, 18)  # the end of the first drifted window, a Monday after the cooldown
DRIFT = 40  # degrees Fahrenheit
LONGEST = 300  # seconds, for a link of the chain that will not end
RATE = 50  # requests a second by the callers, of which the canary gets its share
STEPS = ("read data", "preprocess", "fit", "evaluate", "register", "package", "start", "canary", "promote")
PARTS = ("clock → looked for data", "data found and checked", "→ windows judged",
         "event → training's run begun", *STEPS, "→ all replicas")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with fresh_addresses() as home:
        os.environ |= stack.environment(home, profile_seconds=0.5) | {
            CLOCK: str(home / "clock"), "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        set_clock(FIRST - timedelta(hours=2))
        url = stack.up(home).url
        rounds = measured(asked.rounds, f"{url}/{MODEL}/predict")
    write("loop", {"figures": [
        figure("drifted window's end to the new version serving on all replicas", 120, "at most", "s",
               [one["seconds"] for one in rounds]),
        figure("drift event to the new version serving on all replicas", 60, "at most", "s",
               [one["after_event"] for one in rounds]),
        figure("requests that failed meanwhile", 0, "at most", "requests",
               [one["failed"] for one in rounds])],
        "requests_per_second": RATE, "rounds": rounds})


def set_clock(to: datetime) -> None:
    from registry import clock

    clock.set_clock(to.replace(tzinfo=ZoneInfo("America/New_York")))


def measured(times: int, url: str) -> list[dict[str, Any]]:
    from flows.orchestration.deploying import deploy
    from registry.context import open_model

    deploy([MODEL])
    context = open_model(MODEL)
    look(context, FIRST)
    seen(lambda: context.ledger.state().champion and is_quiet(context))
    rounds = []
    with calling(context, url) as answered:
        for number in range(times):
            end = DRIFTS + number * PERIOD
            send_warm(context, url, end - WEEK)
            look(context, end + timedelta(days=1, hours=2))
            seen(partial(is_judged, context, (end - WEEK).isoformat()))
            send_warm(context, url, end)
            answered.clear()
            rounds.append(one_round(context, end))
            rounds[-1] |= {"requests": len(answered), "failed": len(answered) - answered.count(200)}
            print(json.dumps(rounds[-1]), flush=True)
    return rounds


def look(context: Any, to: datetime) -> None:
    """Have the clock reach a time (New York's) at which the contract looks for data."""
    from flows.orchestration.clock import move_clock

    if not move_clock([context.contract], to.replace(tzinfo=ZoneInfo("America/New_York"))):
        raise RuntimeError(f"at {to} no look for data is due")


def is_quiet(context: Any) -> bool:
    return not any(claim.is_granted for claim in context.ledger.state().claims.values())


def is_judged(context: Any, window: str) -> bool:
    return window in context.ledger.state().windows


def send_warm(context: Any, url: str, start: datetime) -> None:
    """Send a week's records, each too warm."""
    from service.model import records_of_columns

    contract = context.contract
    rows = contract.source(start, start + WEEK)
    records = records_of_columns(contract, contract.columns_of(rows.assign(temp=rows["temp"] + DRIFT)))
    for at in range(0, len(records), 500):
        httpx.post(url, json={"records": records[at:at + 500]}, timeout=60).raise_for_status()


@contextmanager
def calling(context: Any, url: str) -> Iterator[list[int]]:
    """One-record requests through the load balancer, RATE a second at most; the status of each answer."""
    from registry.context import fetch_version

    samples = json.loads((fetch_version(context, context.ledger.state().champion)
                          / "samples.json").read_bytes())["records"]
    answered, over = [], threading.Event()

    def call() -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not over.wait(1 / RATE):
                record = samples[len(answered) % len(samples)]
                answered.append(client.post(url, json={"records": [record]}).status_code)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield answered
    finally:
        over.set()
        caller.join()


def one_round(context: Any, window: datetime) -> dict[str, Any]:
    """Have the clock reach the look after a drifted window, and wait until every replica answers with what
    came of it."""
    before, key = context.ledger.state().champion, window.isoformat()
    begun = time.time()
    look(context, window + WEEK + timedelta(days=1, hours=2))
    seen(lambda: is_judged(context, key))
    if not seen(lambda: key in context.ledger.state().claims):
        raise RuntimeError(f"the window {key} asked for no training")
    there = seen(lambda: new_everywhere(context, before) or is_quiet(context))
    claim = context.ledger.state().claims[key]
    if claim.why or claim.outcome not in (None, "released"):
        raise RuntimeError(f"the training for {key} ended so: {claim.outcome} {claim.why}")
    seen(lambda: is_quiet(context))
    told = parts(context, key, begun, there)
    return {"seconds": there - begun, "after_event": there - begun - sum([*told.values()][:3]), "parts": told,
            "flow_ended_after": time.time() - there}


def seen(what: Callable[[], Any]) -> float:
    """When it was first so; looked for ten times a second."""
    if not processes.wait_until(lambda: bool(what()), LONGEST):
        raise RuntimeError(f"not within {LONGEST} s; the worker's log says why: "
                           f"{os.environ['PERENNIAL_RUN']}/logs/prefect-worker.log")
    return time.time()


def new_everywhere(context: Any, before: str) -> bool:
    """Whether another champion has all its replicas, callers
    are sent to these alone, and that is who answers them."""
    from flows.releasing.rollout import REPLICAS

    champion, run = context.ledger.state().champion, context.run
    urls = sorted(one.url for one in replicas.running(run, context.name) if one.version == champion)
    if champion == before or len(urls) < REPLICAS:
        return False
    if routes.champion_urls(run, context.name) != urls or routes.challenger_urls(run, context.name):
        return False
    answers = [processes.http_get(f"{routes.model_url(run, context.name)}/model").json()["version"]
               for _ in range(2 * REPLICAS)]
    return set(answers) == {champion}


def parts(context: Any, window: str, begun: float, there: float) -> dict[str, float]:
    """Seconds of each part, by Prefect's clock of the runs and their tasks; in sum all there were."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import TaskRunSort

    from flows.demo.chain import all_runs

    runs = {str(run.id): run for run in all_runs()}
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(sort=TaskRunSort.END_TIME_DESC, limit=60)
    train = next(run for run in runs.values() if run.parameters.get("window") == window)
    monitor = runs[train.parameters["cause"]]
    ingest = runs[monitor.parameters["cause"]]
    ended = {step: [task.end_time.timestamp() for task in tasks
                    if task.name.startswith(f"{step} ") and task.end_time] for step in STEPS}
    judged = [datetime.fromisoformat(event.at).timestamp() for event in context.ledger.events()
              if event.kind == "retrain_claimed"][-1]
    times = [begun, ingest.start_time.timestamp(), ingest.end_time.timestamp(), judged,
             train.start_time.timestamp(), *(max(ended[step]) for step in STEPS), there]
    return {name: after - before for name, (before, after) in zip(PARTS, pairwise(times), strict=True)}


if __name__ == "__main__":
    main()
