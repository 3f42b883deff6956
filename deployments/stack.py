"""The whole of Perennial on one machine, from nothing to serving, and back to nothing."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from deployments import fleet, load_balancer, prefect_server


@dataclass(frozen=True)
class Addresses:
    """Where people and callers look."""

    ui: str
    url: str
    api: str


def fresh(home: Path) -> Path:
    """An empty home; what an earlier run left running there is ended first."""
    down(home)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    return home


def environment(home: Path, profile_seconds: float = 5.0) -> dict[str, str]:
    """The addresses that every process of the stack in `home` must know; the Prefect server's port is chosen here."""
    return prefect_server.environment(home, prefect_server.free_port()) | {
        "PERENNIAL_STORE": str(home / "store"), "PERENNIAL_RUN": str(home / "run"),
        "PERENNIAL_PROFILE_SECONDS": str(profile_seconds)}


def up(home: Path) -> Addresses:
    """Start server, worker and balancer in `home`, under the `environment` that the caller has set."""
    run, api = home / "run", os.environ["PREFECT_API_URL"]
    prefect_server.start_server(run, api)
    front = load_balancer.start(run)
    prefect_server.deploy()
    prefect_server.start_worker(run)
    return Addresses(api.removesuffix("/api"), front.url, front.api)


def down(home: Path) -> None:
    """End every process that was started in `home`."""
    fleet.stop_all(home / "run")
