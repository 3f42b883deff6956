"""Processes of this machine: start, wait until they answer, stop; free ports; the run folder's lock."""

import fcntl
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import httpx
import psutil
from msgspec import Struct, field

from contracts.core.errors import Unavailable

MARK = "PERENNIAL_PROCESS"  # holds the log's path in the environment of each process started and its children
PORTS = range(20_000, 32_768)  # below the ephemeral ports of Linux and macOS


class Workload(Protocol):
    """A process or a container that was started here."""

    @property
    def log(self) -> str: ...
    @property
    def is_alive(self) -> bool: ...
    @property
    def deaths(self) -> int: ...
    def log_tail(self) -> str: ...


class Process(Struct, frozen=True, kw_only=True):
    """A process started here; its creation time tells it from a later process of the same pid."""

    pid: int
    create_time: float = field(name="born")  # the name in run folders' files
    log: str

    @property
    def is_alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            # Creation times shift when the system clock is set, by up to a second.
            is_same = abs(process.create_time() - self.create_time) < 2
            return is_same and bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    @property
    def deaths(self) -> int:
        """1 once it has ended, since nothing restarts it; else 0."""
        return int(not self.is_alive)

    def memory_mb(self) -> float:
        return resident_mb(self.pid)

    def log_tail(self) -> str:
        """The last 15 lines of its log, under the log's path."""
        lines = Path(self.log).read_text(errors="replace").splitlines()
        return "\n".join([f"the end of {self.log}:", *lines[-15:]])


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its descendants, in MB; NaN if it has ended."""
    try:
        process = psutil.Process(pid)
        members = (process, *process.children(recursive=True))
        return sum(float(member.memory_info().rss) for member in members) / 2**20
    except psutil.NoSuchProcess:
        return float("nan")


def spawn(command: list[str], log: Path, environ: Mapping[str, str]) -> Process:
    """Start a program in a session of its own, with its output in `log`."""
    log = log.absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # subprocess would pass a background shell's ignored SIGINT on to the program and its children.
    pid = os.posix_spawn(command[0], command, {**os.environ, **environ, MARK: str(log)}, file_actions=files,
                         setsid=True, setsigdef=(signal.SIGINT, signal.SIGTERM), setsigmask=())
    return Process(pid=pid, create_time=psutil.Process(pid).create_time(), log=str(log))


def wait_until_answering(workload: Workload, url: str, seconds: float) -> None:
    """Wait until `url` answers 200; Unavailable if the workload dies, or after `seconds`."""
    wait_until(lambda: is_answering(url) or workload.deaths > 0, seconds)
    if not (workload.is_alive and is_answering(url)):
        problem = "died at start" if workload.deaths else f"does not answer {url}"
        raise Unavailable(f"{Path(workload.log).stem} {problem}; {workload.log_tail()}")


def terminate(has_log: Callable[[str], bool], seconds: float) -> None:
    """End the processes whose log path satisfies `has_log`: SIGTERM, and SIGKILL after `seconds`.

    Processes are found by their mark, because a killed server leaves workers that serve on without a parent.
    """
    marks = _marked(has_log)
    marks_by_pid = {process.pid: mark for process, mark in marks.items()}
    for process, mark in marks.items():
        with suppress(psutil.NoSuchProcess):
            if marks_by_pid.get(process.ppid()) != mark:  # a server ends its own workers
                process.terminate()
    wait_until(lambda: not _marked(has_log), seconds)
    for process in _marked(has_log):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not _marked(has_log), 5)
    psutil.wait_procs(marks, timeout=0)  # reaps our own children


def _marked(has_log: Callable[[str], bool]) -> dict[psutil.Process, str]:
    """Living processes and their marks, of those whose mark satisfies `has_log`."""
    marks = {process: (process.info["environ"] or {}).get(MARK, "")
             for process in psutil.process_iter(["environ", "status"])
             if process.info["status"] != psutil.STATUS_ZOMBIE}
    return {process: mark for process, mark in marks.items() if mark and has_log(mark)}


def wait_until(is_done: Callable[[], bool], seconds: float) -> bool:
    """Ask ten times a second, for at most `seconds`; the last answer."""
    deadline = time.monotonic() + seconds
    while not (done := is_done()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return done


def http_get(url: str) -> httpx.Response:
    # A server of this machine speaks plain HTTP: no proxy, and no reading of certificates, which takes 16 ms.
    return httpx.get(url, timeout=2, trust_env=False, verify=False)


def is_answering(url: str) -> bool:
    """Whether a GET of `url` returns 200."""
    try:
        return http_get(url).status_code == 200
    except httpx.TransportError:
        return False


def free_ports(count: int) -> list[int]:
    """Distinct free ports of 127.0.0.1, none of them ephemeral."""
    with ExitStack() as sockets:
        free: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            if len(free) == count:
                return free
            with suppress(OSError):
                sockets.enter_context(socket.create_server(("127.0.0.1", port)))
                free.append(port)
    raise OSError(f"no {count} free ports in {PORTS}")


def available_port(preferred: int | None) -> int:
    """The preferred port of 127.0.0.1, or any free one if that is taken or None."""
    try:
        socket.create_server(("127.0.0.1", preferred or 0)).close()
    except OSError:
        preferred = None
    return preferred or free_ports(1)[0]


@contextmanager
def run_folder_lock(run: Path) -> Iterator[None]:
    """Exclusive access to the files of a run folder; the system releases it if the process is killed."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
