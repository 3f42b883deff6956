"""The whole of Perennial on one machine, from nothing to serving, and back to nothing."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from deployments import balancer, orchestrator


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


def up(home: Path, profile_seconds: float = 5.0) -> Addresses:
    """Start server, worker and balancer in `home`; this process and all it starts then use them."""
    run, port = home / "run", orchestrator.free_port()
    known = orchestrator.environment(home, port)
    os.environ |= known | {"PERENNIAL_STORE": str(home / "store"), "PERENNIAL_RUN": str(run),
                           "PERENNIAL_PROFILE_SECONDS": str(profile_seconds)}
    orchestrator.start_server(run, known, port)
    front = balancer.start(run)
    orchestrator.deploy(known)
    orchestrator.start_worker(run, known)
    return Addresses(f"http://127.0.0.1:{port}", front.url, front.api)


def down(home: Path) -> None:
    """End every process that was started in `home`."""
    balancer.stop_all(home / "run")
