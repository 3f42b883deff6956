"""TODO"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import yaml

from contracts.core.errors import RouteNotTaken
from deployments.load_balancer import _log, _recorded
from deployments.processes import get, until
from service.files import write_text
from service.limits import LARGEST_BODY

ANY = -1  # bytes of a body that is kept for another try: with a limit Traefik allocates the limit for each request
PARTS = ("challenger", "instead", "tried", "canary", "shadow")  # a model's further services while two versions serve


@dataclass(frozen=True)
class TrafficSplit:
    """Replicas of a challenger that get a `share` of a model's requests: to answer them, or only to see them too."""

    urls: tuple[str, ...]
    share: float
    mode: Literal["canary", "shadow"] = "canary"

    def __post_init__(self) -> None:
        if not (self.urls and 0 < self.parts < self.whole + (self.mode == "shadow")):
            rest = "up to 1" if self.mode == "shadow" else "less than 1, so that the champion keeps some"
            raise RouteNotTaken(f"a {self.mode} of {self.share:g} of the traffic, at {len(self.urls)} replicas: name one or more, and a "
                                f"share in steps of {1 / self.whole:g}, {rest}")

    @property
    def whole(self) -> int:
        return 100 if self.mode == "shadow" else 1000  # Traefik mirrors whole percents

    @property
    def parts(self) -> int:
        return round(self.whole * self.share)


def route(
    run: Path, model: str, urls: list[str], version: str, beside: TrafficSplit | None = None, seconds: float = 10,
) -> None:
    """Send a model's requests to exactly these replicas, from when this returns; RouteNotTaken after `seconds`."""
    if not urls:
        raise RouteNotTaken(f"{model}: no replica to route to; run: perennial serve {model}")
    wanted = _route(model, urls, beside)
    write_text(_route_file(run, model), f"# {version}\n{yaml.safe_dump({'http': wanted})}")
    if not until(lambda: _ways(_taken(run), model) == _ways(wanted, model), seconds):
        raise RouteNotTaken(f"{model}: {seconds:g} s after it was told to send to {_ways(wanted, model)} the balancer "
                            f"sends to {_ways(_taken(run), model) or 'none'}; see {_log(run)}")


def _route(model: str, urls: list[str], beside: TrafficSplit | None) -> dict[str, Any]:
    # By default only a refused connection is retried, and no POST that a killed replica had begun to read. 20 tries
    # with pauses of 50 to 100 ms outlast the second in which it is still chosen, often for the second try too.
    retry = {"attempts": 20, "initialInterval": "50ms", "status": ["502"], "retryNonIdempotentMethod": True,
             "maxRequestBodyBytes": ANY}
    # Traefik answers 500 where a connection closes before it is used, as docker's proxy does while a container starts
    # again: once more, on another replica. What the model itself fails is failed twice, and no more.
    twice = {"attempts": 2, "status": ["500"], "retryNonIdempotentMethod": True, "disableRetryOnNetworkError": True,
             "maxRequestBodyBytes": ANY}
    most, path, again, once = f"{model}-body", f"{model}-path", f"{model}-retry", f"{model}-once-more"
    router = {"rule": f"PathPrefix(`/{model}/`)", "entryPoints": ["web"], "middlewares": [most, path, again, once],
              "service": f"{model}-{beside.mode}" if beside else model}
    return {
        "routers": {model: router},
        "middlewares": {most: {"buffering": {"maxRequestBodyBytes": LARGEST_BODY}},
                        path: {"stripPrefix": {"prefixes": [f"/{model}"]}}, again: {"retry": retry},
                        once: {"retry": twice}},
        "services": {model: _servers(urls)} | (_beside(model, urls, beside) if beside else {}),
    }


def _servers(urls: Iterable[str]) -> dict[str, Any]:
    # A dead replica refuses at once; the time-out is long, since all may stall on a busy machine, and with none left
    # callers would get 503.
    health = {"path": "/readyz", "interval": "1s", "timeout": "5s"}
    return {"loadBalancer": {"servers": [{"url": url} for url in urls], "healthCheck": health}}


def _beside(model: str, urls: list[str], beside: TrafficSplit) -> dict[str, Any]:
    challenger, instead = f"{model}-challenger", f"{model}-instead"
    if beside.mode == "shadow":
        mirror = {"service": model, "mirrorBody": True, "maxBodySize": ANY,
                  "mirrors": [{"name": challenger, "percent": beside.parts}]}
        return {challenger: _servers(beside.urls), f"{model}-shadow": {"mirroring": mirror}}
    sides = [{"name": model, "weight": beside.whole - beside.parts}, {"name": f"{model}-tried", "weight": beside.parts}]
    # What the challenger fails or refuses the champion answers instead, under a name of its own: no caller sees a bad
    # challenger, and the figures say which refusals were the callers' fault.
    tried = {"service": challenger, "fallback": instead,
             "errors": {"status": ["400-599"], "maxRequestBodyBytes": ANY}}
    return {challenger: _servers(beside.urls), instead: _servers(urls), f"{model}-tried": {"failover": tried},
            f"{model}-canary": {"weighted": {"services": sides}}}


def _taken(run: Path) -> dict[str, Any]:
    """The routers and services by which the balancer itself says it works, named as in a route file."""
    balancer = _recorded(run)
    if balancer is None:
        return {}
    try:
        reply = get(f"{balancer.api}/api/rawdata")
    except httpx.TransportError:
        return {}
    return json.loads(reply.text.replace("@file", "")) if reply.status_code == 200 else {}


def _ways(http: dict[str, Any], model: str) -> dict[str, Any]:
    """Where a model's requests go: the service that its router names, and each service with its urls or shares."""
    if model not in http.get("routers", {}):
        return {}
    names = [model, *(f"{model}-{part}" for part in PARTS)]
    services = {name: http["services"][name] for name in names if name in http["services"]}
    return {"service": http["routers"][model]["service"]} | {name: _way(service) for name, service in services.items()}


def _way(service: dict[str, Any]) -> Any:
    match service:
        case {"weighted": {"services": sides}} | {"mirroring": {"mirrors": sides}}:
            return sides
        case {"failover": {"service": first, "fallback": instead}}:
            return [first, instead]
    return _urls(service)


def address(run: Path, model: str) -> str | None:
    """Where callers reach the model through this run folder's balancer, if it runs and has a route."""
    balancer = _recorded(run)
    return f"{balancer.url}/{model}" if balancer and balancer.alive and _route_file(run, model).exists() else None


def routed(run: Path, model: str) -> list[str]:
    """The urls of the champion's replicas, to which a model's requests are to go, sorted; none where it has no route."""
    return _routed(run, model, model)


def routed_challenger(run: Path, model: str) -> list[str]:
    """The urls of a challenger's replicas that get a share of a model's requests, sorted."""
    return _routed(run, model, f"{model}-challenger")


def _routed(run: Path, model: str, service: str) -> list[str]:
    file = _route_file(run, model)
    services = yaml.safe_load(file.read_text())["http"]["services"] if file.exists() else {}
    return _urls(services[service]) if service in services else []


def _urls(service: dict[str, Any]) -> list[str]:
    return sorted(server["url"] for server in service["loadBalancer"]["servers"])


def unroute(run: Path, model: str) -> bool:
    """Send a model's requests nowhere; whether other models are left."""
    _route_file(run, model).unlink(missing_ok=True)
    return any((run / "routes").glob("*.yml"))


def _route_file(run: Path, model: str) -> Path:
    return run / "routes" / f"{model}.yml"
