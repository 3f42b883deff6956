"""The Prefect server, work pool and worker of this machine."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from contracts.core.errors import Unavailable
from deployments import processes

ROOT = Path(__file__).parent.parent
POOL = "perennial"
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def environment(home: Path, port: int) -> dict[str, str]:
    """The variables of a server that keeps its data in `home` and listens on `port`, and of its clients."""
    return {
        "PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false", "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",  # the command line, which may start it, silences its own
        "PREFECT_LOGGING_EXTRA_LOGGERS": "perennial", "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # so that a run whose process is gone is noticed
    }


def start_server(run: Path, api: str, seconds: float = 90) -> None:
    """Start a server with its API at the url `api`, and wait until it answers."""
    # Named, not imported: Prefect stays in flows/.
    command = [sys.executable, "-m", "flows.orchestration.local_server", "--no-prompt", "server", "start",
               "--host", "127.0.0.1", "--port", str(urlsplit(api).port)]
    server = processes.spawn(command, run / "logs" / "prefect-server.log", {})
    processes.wait_until_answering(server, f"{api}/health", seconds)


def create_pool() -> None:
    """Create the work pool for processes; safe to repeat."""
    command = ["work-pool", "create", POOL, "--type", "process", "--overwrite"]
    done = subprocess.run([*PREFECT, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"`prefect {' '.join(command)}` failed; is PREFECT_API_URL right?\n"
                          f"{done.stdout}{done.stderr}")


def start_worker(run: Path) -> None:
    """Start a worker of the process pool; its runs inherit this process's environment."""
    processes.spawn([*PREFECT, "worker", "start", "--pool", POOL], run / "logs" / "prefect-worker.log", {})
