"""Replicas as processes of this machine: `bentoml serve` of a model version's bento."""

import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from deployments import processes
from deployments.processes import Process, run_folder_lock
from service.atomic_files import write_text

# Set for a replica that answers as the layers' file beside its profiles says.
FOLLOW = "PERENNIAL_FOLLOW"
REPLICA_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True", "OTEL_SDK_DISABLED": "true",
                       "WHYLOGS_NO_ANALYTICS": "True"}


class Replica(Process, frozen=True, kw_only=True):
    """A server process of a model version. `follows`: whether it answers as the layers' file says."""

    version: str
    url: str
    follows: bool = False

    def answering_as(self, version: str) -> "Replica":
        """The same replica, known by the version that it answers as."""
        return msgspec.structs.replace(self, version=version)


def start(bento: Path, version: str, count: int, run: Path, model: str,
          environ: Mapping[str, str] = MappingProxyType({})) -> list[Replica]:
    """Start `count` replicas of a built bento, without waiting until they answer."""
    environ = {**REPLICA_ENVIRONMENT, **environ}
    return [_start(bento, version, port, run, model, environ) for port in processes.free_ports(count)]


def _start(bento: Path, version: str, port: int, run: Path, model: str,
           environ: Mapping[str, str]) -> Replica:
    log = run.absolute() / "logs" / f"{model}-{version[:12]}-{port}.log"
    # Servers that share a home add up their metrics, and each that starts deletes those of the others.
    environ = {**environ, "BENTOML_HOME": str(_bentoml_home(log))}
    planned = Replica(version=version, url=f"http://127.0.0.1:{port}", pid=0, create_time=0, log=str(log),
                      follows=FOLLOW in environ)
    with run_folder_lock(run):
        others = [replica for replica in _recorded(run, model) if replica.log != planned.log]
        _record(run, model, [*others, planned])  # if we are killed here, `stop` finds the process by its log
        process = processes.spawn(_serve_command(bento, port), log, environ)
        replica = msgspec.structs.replace(planned, pid=process.pid, create_time=process.create_time)
        _record(run, model, [*others, replica])
    return replica


def _bentoml_home(log: str | Path) -> Path:
    return Path(log).with_suffix("")


def _serve_command(bento: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "bentoml", "serve", str(bento), "--host", "127.0.0.1", "--port", str(port)]


def running(run: Path, model: str) -> list[Replica]:
    """The recorded replicas of a model that are alive."""
    return [replica for replica in _recorded(run, model) if replica.is_alive]


def stop(replicas: Collection[Replica], run: Path, model: str, seconds: float = 20) -> None:
    """End these replicas and clean up after dead ones; SIGKILL after `seconds`."""
    with run_folder_lock(run):  # without it a replica that is just being started would count as dead
        dead = [replica for replica in _recorded(run, model) if not replica.is_alive]
    logs = {replica.log for replica in (*replicas, *dead)}
    processes.terminate(logs.__contains__, seconds)
    for log in logs:
        shutil.rmtree(_bentoml_home(log), ignore_errors=True)
    with run_folder_lock(run):
        _record(run, model, [replica for replica in _recorded(run, model) if replica.log not in logs])


def _recorded(run: Path, model: str) -> list[Replica]:
    path = _record_path(run, model)
    return msgspec.json.decode(path.read_bytes(), type=list[Replica]) if path.exists() else []


def _record(run: Path, model: str, replicas: list[Replica]) -> None:
    write_text(_record_path(run, model), msgspec.json.encode(replicas).decode())


def _record_path(run: Path, model: str) -> Path:
    return run / f"{model}.replicas.json"
