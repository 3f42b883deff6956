"""TODO"""

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from contracts.core.errors import DeployFailed
from deployments.processes import port_or_free, spawn, wait_for

ROOT = Path(__file__).parent.parent
POOL = "perennial"
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def environment(home: Path, port: int) -> dict[str, str]:
    """What every client of the server that lives in `home` needs to know."""
    return {
        "PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false", "PREFECT_LOGGING_LEVEL": "WARNING",
    }


def start_server(run: Path, api: str, seconds: float = 90) -> None:
    """Start the server whose API is to be at `api`, and wait until it answers."""
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(urlsplit(api).port)]
    wait_for(spawn(command, run / "logs" / "prefect-server.log", {}), f"{api}/health", seconds)


def deploy() -> None:
    """Make the work pool and register what prefect.yaml declares; safe to repeat."""
    for command in (["work-pool", "create", POOL, "--type", "process", "--overwrite"], ["deploy", "--all"]):
        said = subprocess.run([*PREFECT, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        if said.returncode:
            raise DeployFailed(f"`prefect {' '.join(command)}` failed; is PREFECT_API_URL right?\n{said.stdout}{said.stderr}")


def start_worker(run: Path) -> None:
    """Start a process worker; the runs that it starts know this process's addresses."""
    spawn([*PREFECT, "worker", "start", "--pool", POOL], run / "logs" / "prefect-worker.log", {})


def free_port(port: int = 4200) -> int:
    return port_or_free(port)
