"""Serve the champion on this machine."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from contracts.core.errors import PerennialError
from deployments import load_balancer
from flows.releasing.image import artifact_of
from flows.releasing.rollout import roll_out_version
from registry import models
from registry.context import ModelContext


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
