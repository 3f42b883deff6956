"""Routes of the load balancer: the replicas that get a model's requests, and a canary's or shadow's share."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
import yaml

from contracts.core.errors import ReleaseFailed
from deployments import load_balancer
from deployments.load_balancer import TraefikConfiguration
from deployments.processes import http_get, wait_until
from service.atomic_files import write_text
from service.limits import MAX_BODY_BYTES

UNLIMITED = -1  # bytes of a body kept for a retry; given a limit, Traefik allocates that for each request


class SplitMode(StrEnum):
    """Whether callers get the challenger's answers (canary) or only the champion's (shadow)."""

    CANARY = "canary"
    SHADOW = "shadow"


@dataclass(frozen=True)
class TrafficSplit:
    """A challenger's replicas and the share (0 to 1) of a model's requests that they get."""

    urls: tuple[str, ...]
    share: float
    mode: SplitMode = SplitMode.CANARY

    def __post_init__(self) -> None:
        if not (self.urls and 0 < self.weight < self.total_weight + (self.mode == SplitMode.SHADOW)):
            rest = "less than 1, so that the champion keeps some"
            raise ReleaseFailed(
                f"a {self.mode} of {self.share:g} of the traffic, at {len(self.urls)} replicas: "
                f"name one or more, and a share in steps of {1 / self.total_weight:g}, "
                f"{'up to 1' if self.mode == SplitMode.SHADOW else rest}")

    @property
    def total_weight(self) -> int:
        return 100 if self.mode == SplitMode.SHADOW else 1000  # Traefik mirrors whole percents

    @property
    def weight(self) -> int:
        return round(self.total_weight * self.share)


class Service(StrEnum):
    """The suffixes of a model's Traefik services; all but the champion's exist only during a split."""

    CHAMPION = ""
    CHALLENGER = "-challenger"
    FALLBACK = "-fallback"  # the champion's replicas, for requests that the challenger failed or refused
    FAILOVER = "-failover"  # the challenger, then the fallback
    CANARY = "-canary"  # the champion and the failover, weighted
    SHADOW = "-shadow"  # the champion, mirrored to the challenger

    def of(self, model: str) -> str:
        """The name of a model's service.

        >>> Service.CHALLENGER.of("flights")
        'flights-challenger'
        """
        return f"{model}{self.value}"


def route(run: Path, model: str, urls: list[str], version: str, split: TrafficSplit | None = None,
          seconds: float = 10) -> None:
    """Send a model's requests to exactly these replicas from the return on; ReleaseFailed after `seconds`."""
    if not urls:
        raise ReleaseFailed(f"{model}: no replica to route to; run: perennial serve {model}")
    wanted = dynamic_configuration(model, urls, split)
    targets = _targets(wanted, model)
    write_text(_route_path(run, model), f"# {version}\n{yaml.safe_dump({'http': wanted})}")
    if not wait_until(lambda: _targets(_active_configuration(run), model) == targets, seconds):
        active = _targets(_active_configuration(run), model) or "none"
        raise ReleaseFailed(f"{model}: {seconds:g} s after the route to {targets} was written the load "
                            f"balancer sends to {active}; see {load_balancer.log_path(run)}")


def dynamic_configuration(model: str, urls: list[str],
                          split: TrafficSplit | None = None) -> TraefikConfiguration:
    """Traefik's router, middlewares and services for a model."""
    # By default Traefik retries only refused connections, no POST that a killed replica had begun to read.
    # 20 attempts with pauses of 50 to 100 ms outlast the second in which it may still be chosen.
    retry = {"attempts": 20, "initialInterval": "50ms", "status": ["502"], "retryNonIdempotentMethod": True,
             "maxRequestBodyBytes": UNLIMITED}
    # Traefik answers 500 if a connection closes before it is used, as docker's proxy does while a container
    # restarts: one retry, on another replica. What the model itself fails is thus tried twice, and no more.
    retry_once = {"attempts": 2, "status": ["500"], "retryNonIdempotentMethod": True,
                  "disableRetryOnNetworkError": True, "maxRequestBodyBytes": UNLIMITED}
    middlewares = {
        f"{model}-body-limit": {"buffering": {"maxRequestBodyBytes": MAX_BODY_BYTES}},
        f"{model}-strip-prefix": {"stripPrefix": {"prefixes": [f"/{model}"]}},
        f"{model}-retry": {"retry": retry}, f"{model}-retry-once": {"retry": retry_once},
    }
    router = {"rule": f"PathPrefix(`/{model}/`)", "entryPoints": ["web"], "middlewares": list(middlewares),
              "service": Service(f"-{split.mode}" if split else "").of(model)}
    services = {Service.CHAMPION.of(model): _servers(urls)}
    services |= _split_services(model, urls, split) if split else {}
    return {"routers": {model: router}, "middlewares": middlewares, "services": services}


def _servers(urls: Iterable[str]) -> TraefikConfiguration:
    # A dead replica refuses at once. The time-out is long, because on a busy machine all replicas may stall,
    # and with no healthy one callers would get 503.
    health = {"path": "/readyz", "interval": "1s", "timeout": "5s"}
    return {"loadBalancer": {"servers": [{"url": url} for url in urls], "healthCheck": health}}


def _split_services(model: str, urls: list[str], split: TrafficSplit) -> TraefikConfiguration:
    champion, challenger, fallback, failover, canary, shadow = (service.of(model) for service in Service)
    if split.mode == SplitMode.SHADOW:
        mirroring = {"service": champion, "mirrorBody": True, "maxBodySize": UNLIMITED,
                     "mirrors": [{"name": challenger, "percent": split.weight}]}
        return {challenger: _servers(split.urls), shadow: {"mirroring": mirroring}}
    weighted = [{"name": champion, "weight": split.total_weight - split.weight},
                {"name": failover, "weight": split.weight}]
    # The champion answers what the challenger fails or refuses, as a service of its own: no caller meets a
    # bad challenger, and the metrics show which refusals were the callers' fault.
    tries = {"service": challenger, "fallback": fallback,
             "errors": {"status": ["400-599"], "maxRequestBodyBytes": UNLIMITED}}
    return {challenger: _servers(split.urls), fallback: _servers(urls), failover: {"failover": tries},
            canary: {"weighted": {"services": weighted}}}


def _active_configuration(run: Path) -> TraefikConfiguration:
    """What Traefik's API says it routes by, with names as in a route file; empty if it does not answer."""
    balancer = load_balancer.recorded(run)
    if balancer is None:
        return {}
    try:
        reply = http_get(f"{balancer.api}/api/rawdata")
    except httpx.TransportError:
        return {}
    return dict(json.loads(reply.text.replace("@file", ""))) if reply.status_code == 200 else {}


def _targets(http: TraefikConfiguration, model: str) -> TraefikConfiguration:
    """A model's router's service and the targets of its services; empty without a router."""
    if model not in http.get("routers", {}):
        return {}
    services = {name: http["services"][name] for name in (service.of(model) for service in Service)
                if name in http["services"]}
    return {"service": http["routers"][model]["service"]} | {
        name: _service_targets(service) for name, service in services.items()}


def _service_targets(service: TraefikConfiguration) -> Any:
    match service:
        case {"weighted": {"services": shares}} | {"mirroring": {"mirrors": shares}}:
            return shares
        case {"failover": {"service": first, "fallback": second}}:
            return [first, second]
    return _server_urls(service)


def _server_urls(service: TraefikConfiguration) -> list[str]:
    return sorted(server["url"] for server in service["loadBalancer"]["servers"])


def model_url(run: Path, model: str) -> str | None:
    """The address of a model for callers; None unless the load balancer runs and has a route to it."""
    balancer = load_balancer.recorded(run)
    is_routed = balancer and balancer.is_alive and _route_path(run, model).exists()
    return f"{balancer.url}/{model}" if balancer and is_routed else None


def champion_urls(run: Path, model: str) -> list[str]:
    """The urls of the replicas in a model's route, sorted; empty without a route."""
    return _routed_urls(run, model, Service.CHAMPION)


def challenger_urls(run: Path, model: str) -> list[str]:
    """The urls of a canary's or shadow's replicas, sorted; empty without one."""
    return _routed_urls(run, model, Service.CHALLENGER)


def _routed_urls(run: Path, model: str, service: Service) -> list[str]:
    path, name = _route_path(run, model), service.of(model)
    services = yaml.safe_load(path.read_text())["http"]["services"] if path.exists() else {}
    return _server_urls(services[name]) if name in services else []


def routed_models(run: Path) -> list[str]:
    """The models with a route, sorted."""
    return sorted(path.stem for path in run.glob("routes/*.yml"))


def remove_route(run: Path, model: str) -> None:
    _route_path(run, model).unlink(missing_ok=True)


def _route_path(run: Path, model: str) -> Path:
    return run / "routes" / f"{model}.yml"
