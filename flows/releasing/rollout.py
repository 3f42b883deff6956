"""Roll a version out on this machine: start replicas, check them, canary, promote, retire the old ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict, TypeVar

from prefect.exceptions import TerminationSignal

from contracts.core.digests import JsonObject
from contracts.core.errors import ReleaseFailed
from contracts.core.verdict import as_json
from deployments import fleet, load_balancer, processes, routes
from deployments.fleet import Server
from deployments.replicas import FOLLOW
from flows.releasing.canary import end_canary, is_allowed, run_canary
from flows.releasing.layers import followers, switch_layer
from flows.releasing.replica_check import CheckedReplica, answers_like_trainer
from flows.releasing.rollout_lock import exclusive_rollout, is_rollback_waiting, is_under_way, record_release
from registry.context import ModelContext
from registry.events import Released, RolloutFailed
from registry.layers import publish_layer

INTERRUPTIONS = (KeyboardInterrupt, SystemExit, TerminationSignal)  # Ctrl-C, and Prefect's for SIGTERM
REPLICAS = 2
READY_TIMEOUT = 60  # seconds within which new replicas must answer
T = TypeVar("T")


class RolloutResult(TypedDict):
    """`outcome` is "released", or "refused" by the canary; `replicas`: the
    urls, or the image, that serve now; `before`: the champion so far."""

    outcome: str
    version: str
    before: str | None
    replicas: NotRequired[list[str]]
    canary: JsonObject | None
    checked: list[CheckedReplica]


class Step(Protocol):
    """Does a named piece of work and returns what it returns."""

    def __call__(self, name: str, work: Callable[[], T]) -> T: ...


def directly(name: str, work: Callable[[], T]) -> T:
    """A step that is nothing but its work; the release flow makes each one a task."""
    return work()


def roll_out_version(context: ModelContext, version: str, artifact: Path | str,
                     decide: Callable[[str | None], Any] | None = None,
                     step: Step = directly) -> RolloutResult:
    """Start replicas of a version, check them, run a canary, promote the
    version, send it all traffic, and stop the old replicas.

    `artifact` is a bento's folder or an image's reference. `decide`, for a rollback, appends another event
    than the promotion, given the champion so far, and leaves out the canary. Replicas that have the version's
    booster take its layer over in place, and no other is started. A failure before that event
    leaves everything as it was. After a kill, running again goes on with the replicas that run. If the
    canary refuses the challenger, nothing is raised: the `outcome` is "refused".
    """
    is_rollback = decide is not None
    with exclusive_rollout(context, urgent=is_rollback):
        before = context.ledger.state().champion
        if not is_rollback:
            # The promotion checks it again; here it is checked before anything is started.
            context.ledger.must_allow(version)
        champion = before
        if _take_over_in_place(context, before, version, decide, step):
            champion = version  # what is left to do is as if it had been released before
        servers = [server for server in fleet.running(context.run, context.name)
                   if server.version == version and fleet.is_made_from(server, artifact)]
        # Replicas that serve the champion stay, whatever fails.
        kept_urls = {server.url for server in servers} if version == champion else set()
        try:
            checked = step("start", lambda: _start(context, version, artifact, servers, is_rollback,
                                                   at_full_speed=before is None or is_rollback))
            verdict = None if decide else step(
                "canary", lambda: run_canary(context, champion, version, servers))
            if verdict and not is_allowed(context, verdict):
                _withdraw(context, champion, version, servers, kept_urls, "; ".join(verdict.reasons))
                return {"outcome": "refused", "version": version, "before": before,
                        "canary": as_json(verdict), "checked": checked}
            step("promote", lambda: decide(champion) if decide
                 else context.ledger.promote(version, expect=champion))
        except (Exception, *INTERRUPTIONS) as error:
            # Otherwise the challenger would keep its share of the traffic, and nobody would judge it.
            _withdraw(context, champion, version, servers, kept_urls, f"{type(error).__name__}: {error}")
            raise
        try:
            step("shift traffic", lambda: routes.route(context.run, context.name,
                                                       [server.url for server in servers], version))
        except Exception as error:
            _restore_champion(context, champion, version, servers, error)
            raise
        step("retire", lambda: _stop_others(context, servers, seconds=10 if is_rollback else 30))
        image = artifact if isinstance(artifact, str) else None
        record_release(context, Released(version=version, replicas=len(servers), image=image))
    return {"outcome": "released", "version": version, "before": before,
            "replicas": [server.url for server in servers], "canary": as_json(verdict) if verdict else None,
            "checked": checked}


def _take_over_in_place(context: ModelContext, before: str | None, version: str,
                        decide: Callable[[str | None], Any] | None, step: Step) -> bool:
    """Where replicas of the same booster run, have them answer as the version, if they do not yet; else have
    those that will be started answer so from their first request on. Whether it is champion now."""
    running = followers(context, version)
    if not running:
        publish_layer(context, version)
    if all(server.version == version for server in running):
        return False
    step("switch layer", lambda: switch_layer(
        context, before, version,
        lambda: decide(before) if decide else context.ledger.promote(version, expect=before)))
    return True


def _start(context: ModelContext, version: str, artifact: Path | str, servers: list[Server],
           is_rollback: bool, at_full_speed: bool) -> list[CheckedReplica]:
    """Start the replicas that `servers` lacks, add them to it, and check all of them."""
    load_balancer.start(context.run)
    servers += fleet.start(artifact, context.ledger.state().base_of(version), REPLICAS - len(servers),
                           context.run, context.name,
                           {"PERENNIAL_PROFILES": str(context.spool), FOLLOW: "1"}, urgent=at_full_speed)
    _wait_ready(context, servers, urgent=is_rollback)
    checked = [answers_like_trainer(context, server) for server in servers]
    fleet.raise_cpu_shares(servers)
    return checked


def _wait_ready(context: ModelContext, servers: list[Server], urgent: bool) -> None:
    """Wait until all answer; unless `urgent`, give up when a rollback is waiting."""
    def is_over() -> bool:
        return ((not urgent and is_rollback_waiting(context))
                or all(processes.is_answering(f"{server.url}/readyz") or server.deaths for server in servers))

    processes.wait_until(is_over, READY_TIMEOUT)
    if not urgent and is_rollback_waiting(context):
        raise ReleaseFailed(f"{context.name}: the rollout gave way to a rollback; release it again when it "
                            f"is wanted")
    fleet.wait_ready(servers, 1)


def _withdraw(context: ModelContext, before: str | None, version: str, servers: list[Server],
              kept_urls: set[str], why: str) -> None:
    """Give the champion all the traffic again, stop what was
    started, and record why; a failing step is recorded too."""
    try:
        if version != before:
            load_balancer.start(context.run)  # which may be what failed
            end_canary(context, before)
    except Exception as error:
        why += f"; the traffic was not taken back: {type(error).__name__}: {error}"
    try:
        started = [server for server in servers if server.url not in kept_urls]
        fleet.drain(started, 5)
        fleet.stop(started, context.run, context.name, seconds=5)
    except Exception as error:
        why += f"; replicas were not stopped: {type(error).__name__}: {error}"
    context.ledger.record(RolloutFailed(version=version, why=why))


def _restore_champion(context: ModelContext, before: str | None, version: str, servers: list[Server],
             error: Exception) -> None:
    """After traffic could not be shifted: make the old version champion again; its replicas still run."""
    context.ledger.record(RolloutFailed(version=version, why=f"{type(error).__name__}: {error}"))
    if before and before != version:
        context.ledger.roll_back(f"traffic was not shifted: {error}", to=before)
        urls = [server.url for server in fleet.running(context.run, context.name) if server.version == before]
        routes.route(context.run, context.name, urls, before)
        fleet.stop(servers, context.run, context.name)


def _stop_others(context: ModelContext, servers: list[Server], seconds: float) -> None:
    """Drain and stop all other replicas, within about twice `seconds`; no new requests reach them."""
    urls = {server.url for server in servers}
    others = [server for server in fleet.running(context.run, context.name) if server.url not in urls]
    fleet.drain([server for server in others if processes.is_answering(f"{server.url}/livez")], seconds)
    fleet.stop(others, context.run, context.name, seconds=int(seconds))


def is_served(context: ModelContext) -> bool:
    """Whether all replicas on this machine are the champion's and
    complete; also true if this machine does not serve the model."""
    champion, routed = context.ledger.state().champion, routes.champion_urls(context.run, context.name)
    alive = fleet.running(context.run, context.name)
    if not (routed or alive) or is_under_way(context):
        return True
    is_complete = len(alive) >= REPLICAS and {server.version for server in alive} == {champion}
    return (is_complete and sorted(server.url for server in alive) == routed
            and not routes.challenger_urls(context.run, context.name))
