"""Replicas of either kind: processes of a bento's folder, or containers of an image named by digest."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import MappingProxyType

import httpx

from deployments import containers, load_balancer, processes, replicas, routes
from deployments.containers import Container
from deployments.replicas import Replica
from registry.context import spool_of
from service.layers import read_layer

Server = Replica | Container
IDLE_CHECKS = 15  # in a row, ten a second: the load balancer may still hold a request whose body is arriving


def start(artifact: Path | str, version: str, count: int, run: Path, model: str,
          environ: Mapping[str, str] = MappingProxyType({}), urgent: bool = False) -> list[Server]:
    """Start `count` replicas of a bento (a Path) or an image (`name@sha256:…`), without waiting for them.

    `version` is the artifact's. With FOLLOW in `environ` they answer as the layers' file says.
    """
    if isinstance(artifact, Path):
        return _as_served(run, model, replicas.start(artifact, version, count, run, model, environ))
    return _as_served(run, model, containers.start(artifact, version, count, run, model, environ, urgent))


def wait_ready(servers: Collection[Server], seconds: float = 60) -> None:
    """Wait until each answers 200 on /readyz; Unavailable if one dies, or `seconds` after the call."""
    deadline = monotonic() + seconds
    for server in servers:
        processes.wait_until_answering(server, f"{server.url}/readyz", deadline - monotonic())


def raise_cpu_shares(servers: Collection[Server]) -> None:
    """Give the full share of the processor to containers that have started."""
    containers.raise_cpu_shares([server for server in servers if isinstance(server, Container)])


def running(run: Path, model: str) -> list[Server]:
    """The replicas of a model that are alive, of both kinds, since a release may change the kind; each with
    the version that it answers as."""
    in_containers = containers.running(run, model) if containers.has_containers(run) else []
    return _as_served(run, model, [*replicas.running(run, model), *in_containers])


def _as_served(run: Path, model: str, servers: Sequence[Server]) -> list[Server]:
    """The replicas with the version that they answer as: of one that follows the one that its file names."""
    followed = {server.version for server in servers if server.follows}
    layers = {base: read_layer(spool_of(run), model, base) for base in followed}
    return [server.answering_as(layer.version)
            if server.follows and (layer := layers[server.version]) else server for server in servers]


def is_made_from(server: Server, artifact: Path | str) -> bool:
    """Whether a replica was started from this image, or from a bento if the artifact is one."""
    return server.image == artifact if isinstance(server, Container) else isinstance(artifact, Path)


def is_idle(server: Server) -> bool:
    """Whether no request is in flight, by BentoML's gauge; a dead replica is idle, one that hangs is not."""
    try:
        lines = processes.http_get(f"{server.url}/metrics").text.splitlines()
    except httpx.TransportError:
        return not server.is_alive
    gauge = "bentoml_service_request_in_progress"
    return not any(float(line.split()[-1]) for line in lines if line.startswith(gauge))


def drain(servers: Collection[Server], seconds: float = 30) -> list[Server]:
    """Wait until replicas that left the route are idle; returns those still busy after `seconds`."""
    idle_checks = dict.fromkeys(servers, 0)

    def are_idle() -> bool:
        for server, checks in idle_checks.items():
            idle_checks[server] = checks + 1 if is_idle(server) else 0
        return all(checks >= IDLE_CHECKS for checks in idle_checks.values())

    processes.wait_until(are_idle, seconds)
    return [server for server, checks in idle_checks.items() if checks < IDLE_CHECKS]


def stop(servers: Collection[Server], run: Path, model: str, seconds: int = 20) -> None:
    """End these replicas and clean up after dead ones; SIGKILL after `seconds`."""
    replicas.stop([server for server in servers if isinstance(server, Replica)], run, model, seconds)
    if containers.has_containers(run):
        containers.stop([server for server in servers if isinstance(server, Container)], run, model, seconds)


def stop_model(run: Path, model: str) -> None:
    """End a model's replicas and remove its route; the load balancer ends with the last model."""
    routes.remove_route(run, model)
    stop(running(run, model), run, model)
    if not routes.routed_models(run):
        load_balancer.stop(run)


def stop_all(run: Path) -> None:
    """End every process and container that was started for this run folder, and delete routes and records."""
    processes.terminate(lambda log: Path(log).is_relative_to(run.absolute()), seconds=20)
    for file in (run / "balancer.json", *run.glob("*.replicas.json"), *run.glob("routes/*.yml")):
        file.unlink(missing_ok=True)
    if containers.has_containers(run):
        containers.stop_all(run)
