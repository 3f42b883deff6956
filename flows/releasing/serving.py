"""Serve the champion on this machine, and roll back to an earlier version."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from contracts.core.errors import PerennialError
from deployments import load_balancer, routes
from flows.releasing.image import artifact_of
from flows.releasing.kubernetes import _kustomization, release_to_kubernetes
from flows.releasing.rollout import roll_out_version
from registry import models
from registry.context import ModelContext, open_model


@contextmanager
def serving(memory: ModelContext) -> Iterator[None]:
    """One `perennial serve` of a model at a time: else the end of one would take the replicas of the other."""
    memory.run.mkdir(parents=True, exist_ok=True)
    with open(memory.run / f"{memory.name}.serve", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PerennialError(f"{memory.name} is served from {memory.run} already; see: perennial status {memory.name}") from None
        yield


def serve_champion(memory: ModelContext, port: int = 8080) -> str:
    """Bring the champion up behind the balancer; the balancer's address."""
    version = models.resolve(memory.ledger, "champion")
    address = load_balancer.start(memory.run, port).url
    roll_out_version(memory, version, artifact_of(memory, version))
    return address


def roll_back(model: str, to: str, reason: str) -> dict[str, str]:
    """Make an earlier version champion; where this machine serves the model, its replicas are up before."""
    memory = open_model(model)
    before, target = models.resolve(memory.ledger, "champion"), models.resolve(memory.ledger, to)

    def decide(_: str | None = None) -> None:
        memory.ledger.roll_back(reason, to=target)

    if folder := _kustomization():
        release_to_kubernetes(memory, target, artifact_of(memory, target), folder, decide)
    elif routes.champion_urls(memory.run, memory.name):
        roll_out_version(memory, target, artifact_of(memory, target), decide)
    else:
        decide()
    return {"from": before, "to": target, "reason": reason}
