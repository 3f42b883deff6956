"""TODO"""

import json
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import httpx

from deployments.processes import Process, end, free_ports, get, locked, spawn, until, wait_for
from service.files import write_text

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True", "OTEL_SDK_DISABLED": "true",
               "WHYLOGS_NO_ANALYTICS": "True"}
QUIET_LOOKS = 15  # a tenth of a second each: the balancer may still hold a request whose body is on its way


@dataclass(frozen=True, kw_only=True)
class Replica(Process):
    """One server of one model version."""

    version: str
    url: str


def start(bento: Path, version: str, count: int, run: Path, model: str,
          environ: Mapping[str, str] = MappingProxyType({})) -> list[Replica]:
    """Start `count` replicas of a built bento, without waiting for them."""
    return [_start(bento, version, port, run, model, ENVIRONMENT | dict(environ)) for port in free_ports(count)]


def _start(bento: Path, version: str, port: int, run: Path, model: str, environ: dict[str, str]) -> Replica:
    log = run.absolute() / "logs" / f"{model}-{version[:12]}-{port}.log"
    planned = Replica(version=version, url=f"http://127.0.0.1:{port}", pid=0, born=0, log=str(log))
    with locked(run):
        others = [replica for replica in _recorded(run, model) if replica.log != planned.log]
        _record(run, model, [*others, planned])  # killed before the next record, `stop` finds it by its log's name
        replica = replace(planned, **asdict(spawn(_command(bento, port), log, environ | _home(planned))))
        _record(run, model, [*others, replica])
    return replica


def _home(replica: Replica) -> dict[str, str]:
    # In a home they share, servers add up their metrics, and each that starts deletes those of the others.
    return {"BENTOML_HOME": replica.log.removesuffix(".log")}


def _command(bento: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "bentoml", "serve", str(bento), "--host", "127.0.0.1", "--port", str(port)]


def wait_ready(replicas: Collection[Replica], seconds: float = 60) -> None:
    """Wait until each answers 200 on /readyz, all within `seconds`; else NotReady."""
    deadline = time.monotonic() + seconds
    for replica in replicas:
        wait_for(replica, f"{replica.url}/readyz", deadline - time.monotonic())


def running(run: Path, model: str) -> list[Replica]:
    """The replicas on record that live."""
    return [replica for replica in _recorded(run, model) if replica.alive]


def idle(replica: Replica) -> bool:
    """Whether no request is in flight, by BentoML's own gauge; a dead replica is idle, a silent one is not."""
    try:
        lines = get(f"{replica.url}/metrics").text.splitlines()
    except httpx.TransportError:
        return not replica.alive
    return not any(float(line.split()[-1]) for line in lines if line.startswith("bentoml_service_request_in_progress"))


def drain(replicas: Collection[Replica], seconds: float = 30) -> list[Replica]:
    """Wait until replicas that get no new requests have answered the old; those still busy after `seconds`."""
    looks = dict.fromkeys(replicas, 0)

    def quiet() -> bool:
        for replica in looks:
            looks[replica] = looks[replica] + 1 if idle(replica) else 0
        return all(seen >= QUIET_LOOKS for seen in looks.values())

    until(quiet, seconds)
    return [replica for replica, seen in looks.items() if seen < QUIET_LOOKS]


def stop(replicas: Collection[Replica], run: Path, model: str, seconds: float = 20) -> None:
    """End these replicas, and what dead ones on record left behind; SIGKILL for what lives on after `seconds`."""
    with locked(run):  # else one that is just being started looks dead
        dead = [replica for replica in _recorded(run, model) if not replica.alive]
    logs = {replica.log for replica in (*replicas, *dead)}
    end(logs.__contains__, seconds)
    for log in logs:
        shutil.rmtree(log.removesuffix(".log"), ignore_errors=True)
    with locked(run):
        _record(run, model, [replica for replica in _recorded(run, model) if replica.log not in logs])


def _recorded(run: Path, model: str) -> list[Replica]:
    state = run / f"{model}.replicas.json"
    return [Replica(**one) for one in json.loads(state.read_text())] if state.exists() else []


def _record(run: Path, model: str, replicas: list[Replica]) -> None:
    write_text(run / f"{model}.replicas.json", json.dumps([asdict(replica) for replica in replicas], indent=1))
