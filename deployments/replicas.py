"""`bentoml serve` processes of one bento: started, awaited, drained and stopped; a state file says which run."""

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil

from contracts.contract import PerennialError

MARK = "PERENNIAL_PROCESS"  # the path of its log, in the environment of each process we start and of its children
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True", "OTEL_SDK_DISABLED": "true",
               "WHYLOGS_NO_ANALYTICS": "True"}
PORTS = range(20_000, 32_768)  # below those that Linux and macOS give to clients' ends of connections
QUIET_LOOKS = 15  # a tenth of a second each: the balancer may still hold a request whose body is on its way


class NotReady(PerennialError):
    """A process died or did not answer in time; the message ends with its log's last lines."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process we started; `born` is its creation time, since its pid may pass to another one."""

    pid: int
    born: float
    log: str

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            # Creation times move with the system's clock, which may be set by a second meanwhile.
            return abs(process.create_time() - self.born) < 2 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def deaths(self) -> int:
        """1 once it has ended: nobody starts it again."""
        return int(not self.alive)

    def memory_mb(self) -> float:
        return resident_mb(self.pid)

    def said(self) -> str:
        """The last lines of its log, and where the others are."""
        lines = Path(self.log).read_text(errors="replace").splitlines()
        return "\n".join([f"the end of {self.log}:", *lines[-15:]])


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
    write_whole(run / f"{model}.replicas.json", json.dumps([asdict(replica) for replica in replicas], indent=1))


def resident_mb(pid: int) -> float:
    """The resident memory of a process and all its children; not a number where it is gone."""
    try:
        first = psutil.Process(pid)
        return sum(each.memory_info().rss for each in (first, *first.children(recursive=True))) / 2**20
    except psutil.NoSuchProcess:
        return float("nan")


def spawn(command: list[str], log: Path, environ: Mapping[str, str]) -> Process:
    """Start a program in a session of its own, its output in `log`."""
    log = log.absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # Not subprocess: what a background shell starts ignores SIGINT, and so would its children.
    pid = os.posix_spawn(command[0], command, os.environ | environ | {MARK: str(log)}, file_actions=files,
                         setsid=True, setsigdef=(signal.SIGINT, signal.SIGTERM), setsigmask=())
    return Process(pid=pid, born=psutil.Process(pid).create_time(), log=str(log))


def wait_for(process: Process, url: str, seconds: float) -> None:
    """Wait until the process answers 200 at `url`; NotReady at its death, or after `seconds`."""
    until(lambda: answers(url) or process.deaths > 0, seconds)
    if not (process.alive and answers(url)):
        what = "died at start" if process.deaths else f"does not answer {url}"
        raise NotReady(f"{Path(process.log).stem} {what}; {process.said()}")


def end(ours: Callable[[str], bool], seconds: float) -> None:
    """End what was spawned with the logs that are `ours`: SIGTERM, and SIGKILL to what lives on after `seconds`.

    Found by their mark: a killed server leaves workers that go on serving, in other sessions, with no parent.
    """
    found = _marked(ours)
    marks = {process.pid: mark for process, mark in found.items()}
    for process, mark in found.items():
        with suppress(psutil.NoSuchProcess):
            if marks.get(process.ppid()) != mark:  # a server ends its own workers
                process.terminate()
    until(lambda: not _marked(ours), seconds)
    for process in _marked(ours):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: not _marked(ours), 5)
    psutil.wait_procs(found, timeout=0)  # reaps those that were our own children


def _marked(ours: Callable[[str], bool]) -> dict[psutil.Process, str]:
    """The living processes whose mark is `ours`, each with its mark."""
    marks = {
        process: (process.info["environ"] or {}).get(MARK) for process in psutil.process_iter(["environ", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
    }
    return {process: mark for process, mark in marks.items() if mark and ours(mark)}


def until(done: Callable[[], bool], seconds: float) -> bool:
    """Look ten times a second; whether `done` was seen within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (seen := done()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen


def get(url: str) -> httpx.Response:
    # Plain HTTP on this machine: through no proxy, and without reading certificates, which takes 16 ms.
    return httpx.get(url, timeout=2, trust_env=False, verify=False)


def answers(url: str) -> bool:
    try:
        return get(url).status_code == 200
    except httpx.TransportError:
        return False


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 on which nothing listens, and which no client's end of a connection is given."""
    with ExitStack() as held:
        found = []
        for port in random.sample(PORTS, len(PORTS)):
            if len(found) == count:
                return found
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    raise OSError(f"no {count} free ports in {PORTS}")


def port_or_free(port: int | None) -> int:
    """The port, or a free one where it is taken or None."""
    try:
        socket.create_server(("127.0.0.1", port or 0)).close()
    except OSError:
        port = None
    return port or free_ports(1)[0]


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """One process at a time changes what a run folder records; a killed one leaves no lock."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a power failure, finds the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
