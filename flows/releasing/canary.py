"""Run a canary or a shadow: send it traffic, collect both sides' metrics, and have them judged."""

import logging
import time
from pathlib import Path

from contracts.core.canary import canary_verdict
from contracts.core.errors import ReleaseFailed
from contracts.core.verdict import CanaryKind, CanaryVerdict, Outcome
from deployments import canary_metrics, fleet, routes
from deployments.fleet import Server
from deployments.routes import SplitMode, TrafficSplit
from flows.releasing.rollout_lock import exclusive_rollout, is_rollback_waiting
from registry.context import ModelContext
from registry.events import CanaryJudged, ShadowJudged

LOOK, PROGRESS = 0.5, 15  # seconds between two looks at a canary, and between two lines of progress
FINAL = (CanaryKind.DIED, CanaryKind.ERRORS)  # findings that more requests can't change
log = logging.getLogger("perennial.rollout")


def run_canary(context: ModelContext, champion: str | None, version: str, challengers: list[Server],
               mode: SplitMode = SplitMode.CANARY, share: float | None = None) -> CanaryVerdict | None:
    """Send a challenger its share of the traffic and judge it against the
    champion; None if no other version serves."""
    champion_urls = [server.url for server in fleet.running(context.run, context.name)
                     if server.version == champion]
    if not champion_urls or champion is None or champion == version:
        return None
    policy, urls = context.contract.rollout, tuple(server.url for server in challengers)
    routes.route(context.run, context.name, champion_urls, champion,
                 TrafficSplit(urls, policy.share if share is None else share, mode))
    verdict = _await_verdict(context, challengers, _expected_distance(context, version))
    judged = CanaryJudged if mode is SplitMode.CANARY else ShadowJudged
    context.ledger.record(judged(version=version, against=champion, verdict=verdict))
    return verdict


def _expected_distance(context: ModelContext, version: str) -> float:
    """The distance of the version's class shares from the champion's that the gate measured; else 0."""
    judged = context.ledger.state().last_judged(version)
    return (judged.verdict.figures.class_distance if judged else None) or 0.0


def _await_verdict(context: ModelContext, challengers: list[Server], class_distance: float) -> CanaryVerdict:
    """The verdict, once it is final, or enough requests were answered, or time is up."""
    policy, deadline = context.contract.rollout, time.monotonic() + context.contract.rollout.minutes * 60
    first = canary_metrics.read_counters(context.run, context.name)
    memory_mb = {server.url: server.memory_mb() for server in challengers}
    deaths = {server.url: server.deaths for server in challengers}
    reported = time.monotonic()
    log.info("%s: %s is tried on a part of the callers until it answered %d requests, for %g minutes at most",
             context.name, challengers[0].version[:12], policy.requests, policy.minutes)
    while True:
        time.sleep(LOOK)
        if is_rollback_waiting(context):
            raise ReleaseFailed(f"{context.name}: the rollout gave way to a rollback; release it again when "
                                f"it is wanted")
        died = sum(server.deaths - deaths[server.url] for server in challengers)
        grown = max((server.memory_mb() - memory_mb[server.url] for server in challengers
                     if server.is_alive), default=0.0)
        now = canary_metrics.read_counters(context.run, context.name)
        verdict = canary_verdict(*canary_metrics.canary_sides(first, now, deaths=died, grown_mb=grown),
                                 policy, latency_ms=context.contract.gate.latency_ms,
                                 class_distance=class_distance)
        answered = verdict.figures.challenger.answered
        if time.monotonic() - reported > PROGRESS:
            reported = time.monotonic()
            log.info("%s: answered %d of %d requests, %.0f s left", context.name, answered, policy.requests,
                     deadline - reported)
        enough = answered >= policy.requests
        if verdict.kind in FINAL or enough or time.monotonic() > deadline:
            return verdict


def shadow(context: ModelContext, version: str, artifact: Path | str, share: float) -> CanaryVerdict:
    """Send one replica of a version a copy of a share of the
    traffic; all callers get the champion's answers."""
    # Raises an error for an impossible share before anything is started.
    TrafficSplit(("the challenger",), share, SplitMode.SHADOW)
    with exclusive_rollout(context, urgent=False):
        champion = context.ledger.state().champion
        challengers = fleet.start(artifact, version, 1, context.run, context.name,
                           {"PERENNIAL_PROFILES": str(context.spool)})
        try:
            fleet.wait_ready(challengers)
            fleet.raise_cpu_shares(challengers)
            verdict = run_canary(context, champion, version, challengers, SplitMode.SHADOW, share)
        finally:
            end_canary(context, champion)
            fleet.stop(challengers, context.run, context.name)
    if verdict is None:
        raise ReleaseFailed(f"{context.name}: no other champion serves here whose traffic {version[:12]} "
                            f"could see; run: perennial serve {context.name}")
    return verdict


def is_allowed(context: ModelContext, verdict: CanaryVerdict) -> bool:
    return (verdict.passed
            or (verdict.outcome is Outcome.INSUFFICIENT and context.contract.rollout.alone == "go on"))


def end_canary(context: ModelContext, champion: str | None) -> None:
    """End a canary or a shadow: the champion alone gets the traffic."""
    if champion and routes.challenger_urls(context.run, context.name):
        urls = [server.url for server in fleet.running(context.run, context.name)
                if server.version == champion]
        routes.route(context.run, context.name, urls, champion)
