"""Release a version that differs from what serves by its layer alone: the replicas take it over in place."""

from collections.abc import Callable
from typing import Any

import httpx

from contracts.core.errors import ReleaseFailed
from deployments import fleet, processes
from deployments.fleet import Server
from flows.releasing.replica_check import CheckedReplica, answers_like_trainer
from registry.context import ModelContext
from registry.events import RolloutFailed
from registry.layers import publish_layer

TAKEN_WITHIN = 15  # seconds within which all replicas must answer as the version


def followers(context: ModelContext, version: str) -> list[Server]:
    """The running replicas that have the version's booster and answer as they are told."""
    state = context.ledger.state()
    return [server for server in fleet.running(context.run, context.name)
            if server.follows and state.base_of(server.version) == state.base_of(version)]


def switch_layer(context: ModelContext, before: str | None, version: str,
                 decide: Callable[[], Any]) -> list[CheckedReplica]:
    """Have `decide` append the promotion or rollback, and the replicas answer as the version from the next
    request on; returns them, each checked with the version's sample records.

    There is no canary: the gate has compared the two on live answers, and the booster is the same. Where a
    replica does not take the version over, or answers otherwise than the trainer did, all go back to the
    champion before, and ReleaseFailed is raised. After a kill between the two, the reconciler's release of
    the champion tells the replicas.
    """
    decide()
    try:
        publish_layer(context, version)
        _await(context, version)
        return [answers_like_trainer(context, server) for server in followers(context, version)]
    except Exception as error:
        context.ledger.record(RolloutFailed(version=version, why=f"{type(error).__name__}: {error}"))
        if before and before != version:
            context.ledger.roll_back(f"the replicas did not take the layer over: {error}", to=before)
            publish_layer(context, before)
        raise


def _await(context: ModelContext, version: str) -> None:
    """Wait until every replica that is alive says that it is the version."""
    servers = followers(context, version)
    if not processes.wait_until(lambda: all(_says(server) == version for server in servers), TAKEN_WITHIN):
        said = {server.url: (_says(server) or "nothing")[:12] for server in servers}
        raise ReleaseFailed(f"{context.name}: {TAKEN_WITHIN} s after the layer of {version[:12]} was there "
                            f"the replicas answer as {said}; look at their logs in {context.run / 'logs'}")


def _says(server: Server) -> str | None:
    """The version that a replica answers as, by itself; None if it gives no answer."""
    try:
        return str(processes.http_get(f"{server.url}/model").json()["version"])
    except (httpx.HTTPError, ValueError, KeyError):
        return None
