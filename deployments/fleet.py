"""Replicas of either kind, by what they are made from: processes of a bento's folder, containers of an image's digest."""

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from deployments import containers, load_balancer, replicas, routes
from deployments.containers import Container
from deployments.replicas import Replica

Server = Replica | Container


def start(what: Path | str, version: str, count: int, run: Path, model: str,
          environ: Mapping[str, str] = MappingProxyType({}), hurry: bool = False) -> list[Server]:
    """Start `count` replicas of a bento (a Path) or of an image (`name@sha256:…`), without waiting for them."""
    if isinstance(what, Path):
        return [*replicas.start(what, version, count, run, model, environ)]
    return [*containers.start(what, version, count, run, model, environ, hurry)]


def running(run: Path, model: str) -> list[Server]:
    """The replicas of a model that live, of both kinds: a change of kind leaves none behind."""
    return [*replicas.running(run, model), *(containers.running(run, model) if containers.used(run) else ())]


def models(run: Path) -> list[str]:
    """The models that callers are sent to from this run folder."""
    return sorted(path.stem for path in run.glob("routes/*.yml"))


def made_from(server: Server, what: Path | str) -> bool:
    """Whether a replica was started from this bento or image."""
    return server.image == what if isinstance(server, Container) else isinstance(what, Path)


def stop(servers: Collection[Server], run: Path, model: str, seconds: int = 20) -> None:
    """End these replicas, and what dead ones left behind; by force what lives on after `seconds`."""
    replicas.stop([each for each in servers if isinstance(each, Replica)], run, model, seconds)
    if containers.used(run):
        containers.stop([each for each in servers if isinstance(each, Container)], run, model, seconds)


def settle(servers: Collection[Server]) -> None:
    """Tell those that hold back while they start that they serve now."""
    containers.settle([each for each in servers if isinstance(each, Container)])


def end(run: Path, model: str) -> None:
    """Take a model off this machine; the balancer ends with the last one."""
    others = routes.unroute(run, model)
    stop(running(run, model), run, model)
    if not others:
        load_balancer.stop(run)


def stop_all(run: Path) -> None:
    """End everything that was started in this run folder, the balancer too."""
    load_balancer.stop_all(run)
    if containers.used(run):
        containers.stop_all(run)
