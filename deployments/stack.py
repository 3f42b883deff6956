"""A complete stack in one folder: Prefect server, worker and load balancer; start it, stop it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from deployments import fleet, load_balancer, prefect_server
from deployments.processes import available_port


@dataclass(frozen=True)
class Addresses:
    """Urls of the Prefect UI, of the load balancer for callers, and of the load balancer's API."""

    ui: str
    url: str
    api: str


def reset_home(home: Path) -> Path:
    """Make `home` an empty folder, after ending what an earlier stack left running there."""
    down(home)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    return home


def environment(home: Path, profile_seconds: float = 5.0) -> dict[str, str]:
    """The environment of every process of the stack in `home`; chooses a free port for the Prefect server."""
    return prefect_server.environment(home, available_port(4200)) | {
        "PERENNIAL_STORE": str(home / "store"), "PERENNIAL_RUN": str(home / "run"),
        "PERENNIAL_PROFILE_SECONDS": str(profile_seconds)}


def up(home: Path) -> Addresses:
    """Start server, worker and load balancer in `home`; the caller has set the `environment`. What the worker
    runs is registered by `perennial deploy`."""
    run, api = home / "run", os.environ["PREFECT_API_URL"]
    prefect_server.start_server(run, api)
    balancer = load_balancer.start(run)
    prefect_server.create_pool()
    prefect_server.start_worker(run)
    return Addresses(api.removesuffix("/api"), balancer.url, balancer.api)


def down(home: Path) -> None:
    """End every process that was started in `home`."""
    fleet.stop_all(home / "run")
