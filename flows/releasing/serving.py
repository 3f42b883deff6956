"""Serve the champion on this machine, and roll back to an earlier version."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from contracts.core.errors import PerennialError
from deployments import load_balancer, routes
from flows.releasing.image import artifact_of
from flows.releasing.kubernetes import kustomization_folder, release_to_kubernetes
from flows.releasing.rollout import roll_out_version
from registry import models
from registry.context import ModelContext, open_model


@contextmanager
def serving(context: ModelContext) -> Iterator[None]:
    """Allow one `perennial serve` of a model at a time: the
    end of one would stop the replicas of another."""
    context.run.mkdir(parents=True, exist_ok=True)
    with open(context.run / f"{context.name}.serve", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PerennialError(f"{context.name} is served from {context.run} already; see: perennial "
                                 f"status {context.name}") from None
        yield


def serve_champion(context: ModelContext, port: int = 8080) -> str:
    """Start the champion's replicas behind the load balancer; returns its address."""
    version = models.resolve(context.ledger, "champion")
    address = load_balancer.start(context.run, port).url
    roll_out_version(context, version, artifact_of(context, version))
    return address


def roll_back(model: str, to: str, reason: str) -> dict[str, str]:
    """Make an earlier version champion; its replicas are started first if this machine serves the model."""
    context = open_model(model)
    before, target = models.resolve(context.ledger, "champion"), models.resolve(context.ledger, to)

    def decide(_: str | None = None) -> None:
        context.ledger.roll_back(reason, to=target)

    if folder := kustomization_folder():
        release_to_kubernetes(context, target, str(artifact_of(context, target)), folder, decide)
    elif routes.champion_urls(context.run, context.name):
        roll_out_version(context, target, artifact_of(context, target), decide)
    else:
        decide()
    return {"from": before, "to": target, "reason": reason}
