"""Roll a version out on this machine: start replicas, check them, canary, promote, retire the old ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from prefect.exceptions import TerminationSignal

from contracts.core.errors import ReleaseFailed
from contracts.core.verdict import as_json
from deployments import fleet, load_balancer, processes, routes
from deployments.fleet import Server
from flows.releasing.canary import end_canary, is_allowed, run_canary
from flows.releasing.replica_check import CheckedReplica, answers_like_trainer
from flows.releasing.rollout_lock import exclusive_rollout, is_under_way, record_release, rollback_waits
from registry.context import ModelContext
from registry.events import Released, RolloutFailed

STOPPED = (KeyboardInterrupt, SystemExit, TerminationSignal)  # Ctrl-C, and what Prefect makes of SIGTERM
REPLICAS = 2
READY = 60  # seconds in which new replicas must answer


class RolloutResult(TypedDict):
    """`outcome` is "released", or "refused" by the canary;
    `replicas` are the urls, or the image, that serve now."""

    outcome: str
    version: str
    before: str | None
    replicas: NotRequired[list[str]]
    canary: dict[str, Any] | None
    checked: list[CheckedReplica]


def roll_out_version(context: ModelContext, version: str, what: Path | str,
                     decide: Callable[[str | None], Any] | None = None) -> RolloutResult:
    """Start replicas beside the old, check them, give them a
    share, let the ledger decide, shift the rest, stop the old.

    `what` is a bento's folder or an image's reference. `decide` writes the ledger's event, given the champion
    before, and takes the canary's place; by default the promotion. Until the ledger names the new champion a
    failure leaves everything as it was. Run again after a kill, it takes up replicas that run. A challenger
    that the canary refuses is no error: `outcome` says "refused".
    """
    with exclusive_rollout(context, hurry=decide is not None):
        before = context.ledger.state().champion
        if decide is None:
            # Asked again by the promotion; here, before anything is started.
            context.ledger.must_allow(version)
        mine = [each for each in fleet.running(context.run, context.name) if each.version == version
                and fleet.is_made_from(each, what)]
        # What serves is not taken away by a failure.
        there = {each.url for each in mine} if version == before else set()
        try:
            load_balancer.start(context.run)
            mine += fleet.start(what, version, REPLICAS - len(mine), context.run, context.name,
                                {"PERENNIAL_PROFILES": str(context.spool)},
                                urgent=before is None or decide is not None)
            _wait_ready(context, mine, hurried=decide is not None)
            checked = [answers_like_trainer(context, each) for each in mine]
            fleet.raise_cpu_shares(mine)
            verdict = None if decide else run_canary(context, before, version, mine)
            if verdict and not is_allowed(context, verdict):
                _withdraw(context, before, version, mine, there, "; ".join(verdict.reasons))
                return {"outcome": "refused", "version": version, "before": before,
                        "canary": as_json(verdict), "checked": checked}
            decide(before) if decide else context.ledger.promote(version, expect=before)
        except (Exception, *STOPPED) as error:
            # Else the challenger would go on with its share, and nobody judge it.
            _withdraw(context, before, version, mine, there, f"{type(error).__name__}: {error}")
            raise
        try:
            routes.route(context.run, context.name, [each.url for each in mine], version)
        except Exception as error:
            _go_back(context, before, version, mine, error)
            raise
        _retire(context, mine, seconds=10 if decide else 30)
        image = what if isinstance(what, str) else None
        record_release(context, Released(version=version, replicas=len(mine), image=image))
    return {"outcome": "released", "version": version, "before": before,
            "replicas": [each.url for each in mine], "canary": as_json(verdict) if verdict else None,
            "checked": checked}


def _wait_ready(context: ModelContext, mine: list[Server], hurried: bool) -> None:
    """Wait until all answer; a release that a rollback waits for gives up."""
    def over() -> bool:
        return ((not hurried and rollback_waits(context))
                or all(processes.is_answering(f"{each.url}/readyz") or each.deaths for each in mine))

    processes.wait_until(over, READY)
    if not hurried and rollback_waits(context):
        raise ReleaseFailed(f"{context.name}: the rollout gave way to a rollback; release it again when it "
                            f"is wanted")
    fleet.wait_ready(mine, 1)


def _withdraw(context: ModelContext, before: str | None, version: str, mine: list[Server], there: set[str],
              why: str) -> None:
    """The champion has all the traffic, as before; what was started
    is gone, and the ledger says why, whatever else fails."""
    try:
        if version != before:
            load_balancer.start(context.run)  # it may be what has failed
            end_canary(context, before)
    except Exception as error:
        why += f"; the traffic was not taken back: {type(error).__name__}: {error}"
    try:
        started = [each for each in mine if each.url not in there]
        fleet.drain(started, 5)
        fleet.stop(started, context.run, context.name, seconds=5)
    except Exception as error:
        why += f"; replicas were not stopped: {type(error).__name__}: {error}"
    context.ledger.record(RolloutFailed(version=version, why=why))


def _go_back(context: ModelContext, before: str | None, version: str, mine: list[Server],
             error: Exception) -> None:
    """The traffic could not be shifted: the old version is champion again, and its replicas never stopped."""
    context.ledger.record(RolloutFailed(version=version, why=f"{type(error).__name__}: {error}"))
    if before and before != version:
        context.ledger.roll_back(f"traffic was not shifted: {error}", to=before)
        old = [each.url for each in fleet.running(context.run, context.name) if each.version == before]
        routes.route(context.run, context.name, old, before)
        fleet.stop(mine, context.run, context.name)


def _retire(context: ModelContext, mine: list[Server], seconds: float) -> None:
    """Drain and stop every other replica, within about twice so
    many seconds; the balancer sends them nothing any more."""
    urls = {each.url for each in mine}
    old = [each for each in fleet.running(context.run, context.name) if each.url not in urls]
    fleet.drain([each for each in old if processes.is_answering(f"{each.url}/livez")], seconds)
    fleet.stop(old, context.run, context.name, seconds=int(seconds))


def served(context: ModelContext) -> bool:
    """Whether the champion has all its replicas here; true
    as well where this machine does not serve the model."""
    champion, routed = context.ledger.state().champion, routes.champion_urls(context.run, context.name)
    alive = fleet.running(context.run, context.name)
    if not (routed or alive) or is_under_way(context):
        return True
    whole = len(alive) >= REPLICAS and {each.version for each in alive} == {champion}
    return (whole and sorted(each.url for each in alive) == routed
            and not routes.challenger_urls(context.run, context.name))
