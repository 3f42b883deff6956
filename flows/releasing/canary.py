"""Run a canary or a shadow: send it traffic, collect both sides' metrics, and have them judged."""

import logging
import time
from pathlib import Path

from contracts.core.canary import canary_verdict
from contracts.core.errors import ReleaseFailed
from contracts.core.verdict import Verdict
from deployments import canary_metrics, fleet, routes
from deployments.fleet import Server
from deployments.routes import SplitMode, TrafficSplit
from flows.releasing.rollout_lock import exclusive_rollout, rollback_waits
from registry.context import ModelContext

LOOK, TELL = 0.5, 15  # seconds between two looks at a canary, and between two words on how far it is
FINAL = ("died", "errors")  # findings that no further request can mend
log = logging.getLogger("perennial.rollout")


def run_canary(memory: ModelContext, champion: str | None, version: str, mine: list[Server], mode: SplitMode = SplitMode.CANARY,
                    share: float | None = None) -> Verdict | None:
    """Let a challenger see its share of the traffic, and judge it by what both sides did; None where no champion serves."""
    old = [each.url for each in fleet.running(memory.run, memory.name) if each.version == champion]
    if not old or champion == version:
        return None
    policy, urls = memory.contract.rollout, tuple(each.url for each in mine)
    routes.route(memory.run, memory.name, old, champion, TrafficSplit(urls, policy.share if share is None else share, mode))
    verdict = _watched(memory, mine, _apart(memory, version))
    memory.ledger.record(f"{mode}_judged", {"version": version, "against": champion, "verdict": verdict.as_json()})
    return verdict


def _apart(memory: ModelContext, version: str) -> float:
    """How far the gate saw the version's classes from the champion's; 0 for one that it has not judged against it."""
    verdicts = memory.ledger.state().verdicts.get(version) or [{"verdict": {"figures": {}}}]
    return verdicts[-1]["verdict"]["figures"].get("apart", 0.0)


def _watched(memory: ModelContext, mine: list[Server], apart: float) -> Verdict:
    """The Verdict as soon as it can't change for the better, or enough requests were answered, or time is up."""
    policy, deadline = memory.contract.rollout, time.monotonic() + memory.contract.rollout.minutes * 60
    first, small = canary_metrics.read_counters(memory.run, memory.name), {each.url: each.memory_mb() for each in mine}
    deaths = {each.url: each.deaths for each in mine}
    told = time.monotonic()
    log.info("%s: %s is tried on a part of the callers until it answered %d requests, for %g minutes at most",
             memory.name, mine[0].version[:12], policy.requests, policy.minutes)
    while True:
        time.sleep(LOOK)
        if rollback_waits(memory):
            raise ReleaseFailed(f"{memory.name}: the rollout gave way to a rollback; release it again when it is wanted")
        died = sum(each.deaths - deaths[each.url] for each in mine)
        grown = max((each.memory_mb() - small[each.url] for each in mine if each.is_alive), default=0.0)
        now = canary_metrics.read_counters(memory.run, memory.name)
        verdict = canary_verdict(*canary_metrics.canary_sides(first, now, deaths=died, grown_mb=grown), policy,
                         latency_ms=memory.contract.gate.latency_ms, apart=apart)
        answered = verdict.figures["challenger"]["answered"]
        if time.monotonic() - told > TELL:
            told = time.monotonic()
            log.info("%s: answered %d of %d requests, %.0f s left", memory.name, answered, policy.requests, deadline - told)
        enough = answered >= policy.requests
        if verdict.kind in FINAL or enough or time.monotonic() > deadline:
            return verdict


def shadow(memory: ModelContext, version: str, what: Path | str, share: float) -> Verdict:
    """Let one replica of a version see a share of the traffic, whose callers all get the champion's answers."""
    TrafficSplit(("the challenger",), share, SplitMode.SHADOW)  # refuses a share that can't be before anything is started
    with exclusive_rollout(memory, hurry=False):
        champion = memory.ledger.state().champion
        mine = fleet.start(what, version, 1, memory.run, memory.name, {"PERENNIAL_PROFILES": str(memory.spool)})
        try:
            fleet.wait_ready(mine)
            fleet.raise_cpu_shares(mine)
            verdict = run_canary(memory, champion, version, mine, SplitMode.SHADOW, share)
        finally:
            end_canary(memory, champion)
            fleet.stop(mine, memory.run, memory.name)
    if verdict is None:
        raise ReleaseFailed(f"{memory.name}: no other champion serves here whose traffic {version[:12]} could see; "
                            f"run: perennial serve {memory.name}")
    return verdict


def is_allowed(memory: ModelContext, verdict: Verdict) -> bool:
    return verdict.passed or (verdict.outcome == "insufficient" and memory.contract.rollout.alone == "go on")


def end_canary(memory: ModelContext, champion: str | None) -> None:
    """End a canary or a shadow: all the traffic is the champion's, and nobody else sees it."""
    if routes.challenger_urls(memory.run, memory.name):
        urls = [each.url for each in fleet.running(memory.run, memory.name) if each.version == champion]
        routes.route(memory.run, memory.name, urls, champion)
