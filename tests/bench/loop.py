"""From a drift event to the new version answering on all
replicas, on two months of flights, by the real stack.

A Prefect server, its worker, Traefik and two replicas; callers send one-record
requests all the time. The event is the one that the monitor emits for a window
whose retraining the ledger granted; from there on nobody lends a hand.
"""

import argparse
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import httpx

from deployments import processes, replicas, routes, stack
from tests.bench import figure, fresh_addresses, write
from tests.verdicts import window_verdict

# The champion knows January alone.
START, CHAMPION, END = datetime(2013, 1, 1), datetime(2013, 2, 1), datetime(2013, 3, 1)
SLOWEST = 20  # times as long as the first training and release, for a round that will not end
RATE = 50  # requests a second by the callers, of which the canary gets its share
PARTS = ("event → run created", "→ running", "trained", "judged", "bento", "replicas up and checked",
         "canary", "promoted → all replicas")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with fresh_addresses() as home:
        os.environ |= stack.environment(home) | {"PREFECT_LOGGING_LEVEL": "CRITICAL"}
        stack.up(home)
        rounds = measured(asked.rounds)
    seconds = [one["seconds"] for one in rounds]
    write("loop", {"figures": [figure("drift event to the new version serving on all replicas, two months of "
                                      "flights", 60, "at most", "s", seconds)], "requests_per_second": RATE,
                   "rounds": rounds})


def measured(times: int) -> list[dict[str, Any]]:
    from flows.commands.running import run_flow
    from flows.ingest import ingest_batch
    from flows.train import train
    from registry.context import open_model

    context = open_model("flights")
    ingest_batch(context, START, CHAMPION)
    begun = time.time()
    first = run_flow(train, "flights")
    longest = SLOWEST * (time.time() - begun)
    if first["outcome"] != "released":
        raise RuntimeError(f"the first champion was not released: {first}")
    ingest_batch(context, CHAMPION, END)
    rounds = []
    with calling(context) as answered:
        for number in range(times):
            answered.clear()
            rounds.append(one_round(context, number, longest))
            rounds[-1] |= {"requests": len(answered), "failed": len(answered) - answered.count(200)}
            print(json.dumps(rounds[-1]), flush=True)
            go_back(context, first["version"])
    return rounds


@contextmanager
def calling(context: Any) -> Iterator[list[int]]:
    """One-record requests through the load balancer, RATE a second at most; the status of each answer."""
    from registry.context import fetch_version

    samples = json.loads((fetch_version(context, context.ledger.state().champion)
                          / "samples.json").read_bytes())["records"]
    answered, over = [], threading.Event()

    def call() -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not over.wait(1 / RATE):
                record = samples[len(answered) % len(samples)]
                answered.append(client.post(f"{routes.model_url(context.run, context.name)}/predict",
                                            json={"records": [record]}).status_code)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield answered
    finally:
        over.set()
        caller.join()


def go_back(context: Any, version: str) -> None:
    """The first champion serves again, and the next round has to make the bento anew."""
    from flows.releasing.serving import roll_back

    made = context.ledger.state().champion
    roll_back(context.name, version, "the next round")
    shutil.rmtree(context.run / "bentoml" / "bentos" / context.name / made[:16])


def one_round(context: Any, number: int, longest: float) -> dict[str, Any]:
    """Grant a retraining, emit its event, and wait until every replica answers with what came of it."""
    from contracts.core.verdict import Action
    from flows.monitor import announce
    from flows.monitoring.decision import new_rows

    before, policy = context.ledger.state().champion, context.contract.drift
    window = (END - policy.window).isoformat() if not number else (END + number * policy.cooldown).isoformat()
    granted = context.ledger.claim_retraining(window, now=END + number * policy.cooldown,
                                              reason="the benchmark", drift=policy,
                                              new_rows=new_rows(context))
    if not granted.is_granted:
        raise RuntimeError(f"no retraining was granted: {granted.why}")
    verdict = window_verdict("input drift", "the benchmark says so")
    begun = time.time()
    announce(context.name, window, verdict, Action.RETRAIN)
    canary = seen(lambda: routes.challenger_urls(context.run, context.name), longest)
    there = seen(lambda: new_everywhere(context, before), longest)
    processes.wait_until(lambda: context.ledger.state().claims[window].state == "finished", longest)
    return {"seconds": there - begun, "parts": parts(context, window, begun, canary, there),
            "flow_ended_after": time.time() - there}


def seen(what: Callable[[], Any], longest: float) -> float:
    """When it was first so; looked for ten times a second."""
    if not processes.wait_until(lambda: bool(what()), longest):
        raise RuntimeError(f"not within {longest:.0f} s; the worker's log says why: "
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


def parts(context: Any, window: str, begun: float, canary: float, there: float) -> dict[str, float]:
    """Seconds of each step, by Prefect's clock of the run and its
    tasks, by the ledger and by what was seen; in sum all there were."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        [run] = [one for one in client.read_flow_runs() if one.parameters.get("window") == window]
        tasks = [one for one in client.read_task_runs() if one.flow_run_id == run.id]
    ended = {one.name.split()[0]: one.end_time.timestamp() for one in tasks if one.end_time}
    judged = [event.at for event in context.ledger.events() if event.kind == "canary_judged"][-1]
    times = [begun, run.created.timestamp(), run.start_time.timestamp(), ended["fit"], ended["judge"],
             ended["bento"], canary, datetime.fromisoformat(judged).timestamp(), there]
    return {name: after - before for name, before, after in zip(PARTS, times, times[1:])}


if __name__ == "__main__":
    main()
