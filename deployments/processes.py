"""TODO"""

import fcntl
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from contracts.core.errors import NotReady

MARK = "PERENNIAL_PROCESS"  # the path of its log, in the environment of each process we start and of its children
PORTS = range(20_000, 32_768)  # below those that Linux and macOS give to clients' ends of connections


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
