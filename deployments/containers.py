"""Containers of one version's image: started, awaited and stopped; the engine itself remembers which run."""

import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from contracts.core.errors import NotReady
from deployments.processes import free_ports, resident_mb
from registry import images
from registry.images import PORT, USER

MEMORY, CPUS, PROCESSES = "1g", 1.0, 256  # of one container; a replica of the flights holds about 250 MB
PROFILES = "/profiles"
USED = "containers"  # a file of the run folder: it has had containers
LOG = {"max-size": "10m", "max-file": "3"}  # a container that complains for months fills no disk
SHARES, START_SHARES = 1024, 128  # of the processor, and while one starts: those that serve come first


@dataclass(frozen=True, kw_only=True)
class Container:
    """One server of one model version; `log` is where its words are kept once it is gone."""

    name: str
    url: str
    version: str
    log: str
    image: str

    @property
    def alive(self) -> bool:
        return _state(self).get("Status") in ("running", "restarting", "paused")

    @property
    def pid(self) -> int:
        """Of its first process, on the engine's machine; 0 while it has none."""
        return _state(self).get("Pid", 0)

    @property
    def deaths(self) -> int:
        """How often the engine had to start it again."""
        found = _found(self)
        return found.attrs["RestartCount"] if found else 0

    def memory_mb(self) -> float:
        return resident_mb(self.pid) if self.pid else float("nan")

    def said(self) -> str:
        """The last lines of its log, and how to see the others."""
        found = _found(self)
        lines = found.logs(tail=15).decode(errors="replace") if found else f"it is gone; see {self.log}"
        return f"the end of `docker logs {self.name}`:\n{lines}"


def start(image: str, version: str, count: int, run: Path, model: str,
          environ: Mapping[str, str] = MappingProxyType({}), hurry: bool = False) -> list[Container]:
    """Start `count` containers of an image, named by digest, without waiting; in no hurry they leave the processor to others."""
    images.present(image)
    spool = Path(environ["PERENNIAL_PROFILES"]) if "PERENNIAL_PROFILES" in environ else None
    user = _writer(spool) if spool else USER
    shares = SHARES if hurry else START_SHARES
    run.mkdir(parents=True, exist_ok=True)
    (run / USED).touch()
    started: list[Container] = []
    try:
        for port in free_ports(count):
            started.append(_start(image, version, port, run, model, dict(environ), spool, user, shares))
    except images.DockerException as error:
        _remove(f"{model}-{version[:12]}-{port}")  # made, and never started
        stop(started, run, model, 1)
        raise NotReady(f"{model}: the engine did not start a container of {image}: {error}; run it again") from error
    return started


def used(run: Path) -> bool:
    """Whether containers were ever started for this run folder, whatever the environment says now."""
    return (run / USED).exists()


def _remove(name: str) -> None:
    for found in images.engine().containers.list(all=True, filters={"name": f"^{name}$"}):
        found.remove(force=True)


def _start(image: str, version: str, port: int, run: Path, model: str, environ: dict[str, str], spool: Path | None,
           user: str, shares: int) -> Container:
    name = f"{model}-{version[:12]}-{port}"
    found = images.engine().containers.run(
        image, name=name, detach=True, user=user, environment=environ | ({"PERENNIAL_PROFILES": PROFILES} if spool else {}),
        volumes={str(spool): {"bind": PROFILES, "mode": "rw"}} if spool else {},
        labels={"perennial.run": str(run.absolute()), "perennial.model": model, "perennial.version": version,
                "perennial.url": f"http://127.0.0.1:{port}", "perennial.image": image},
        ports={f"{PORT}/tcp": ("127.0.0.1", port)}, restart_policy={"Name": "unless-stopped"},
        read_only=True, tmpfs={"/tmp": "size=64m,mode=1777"}, cap_drop=["ALL"], security_opt=["no-new-privileges"],
        mem_limit=MEMORY, memswap_limit=MEMORY, nano_cpus=int(CPUS * 10**9), pids_limit=PROCESSES, stop_signal="SIGTERM",
        log_config={"type": "json-file", "config": LOG}, cpu_shares=shares)
    return _container(found)


def _writer(spool: Path) -> str:
    """The unprivileged user who may write the spool: this one, or where we are root the image's own."""
    spool.mkdir(parents=True, exist_ok=True)
    if os.getuid():
        return f"{os.getuid()}:{os.getgid()}"
    for each in (spool, *spool.rglob("*")):  # what replicas left that ran as processes of root
        os.chown(each, *map(int, USER.split(":")))
    return USER


def settle(containers: Collection[Container]) -> None:
    """Give containers that have started their usual share of the processor."""
    for each in containers:
        images.engine().containers.get(each.name).update(cpu_shares=SHARES)


def running(run: Path, model: str) -> list[Container]:
    """This run folder's containers of a model that live."""
    return [each for each in _all(run, model) if each.alive]


def stop(containers: Collection[Container], run: Path, model: str, seconds: int = 20) -> None:
    """End these containers, and remove dead ones; what they said stays in the run folder's logs."""
    names = {each.name for each in containers}
    ending = [each for each in _all(run, model) if each.name in names or not each.alive]
    with ThreadPoolExecutor(max(len(ending), 1)) as pool:
        list(pool.map(partial(_end, seconds=seconds), ending))


def stop_all(run: Path) -> None:
    """End every container that was started for this run folder."""
    for each in _all(run):
        _end(each, 20)


def _end(container: Container, seconds: int) -> None:
    found = _found(container)
    if found is None:
        return
    found.stop(timeout=seconds)
    Path(container.log).parent.mkdir(parents=True, exist_ok=True)
    Path(container.log).write_bytes(found.logs())
    found.remove(force=True)


def _all(run: Path, model: str | None = None) -> list[Container]:
    labels = [f"perennial.run={run.absolute()}"] + ([f"perennial.model={model}"] if model else [])
    found = images.engine().containers.list(all=True, ignore_removed=True, filters={"label": [*labels, "perennial.image"]})
    return [_container(each) for each in found]


def _container(found) -> Container:
    labels = found.labels
    return Container(name=found.name, url=labels["perennial.url"], version=labels["perennial.version"],
                     log=str(Path(labels["perennial.run"]) / "logs" / f"{found.name}.log"), image=labels["perennial.image"])


def _found(container: Container):
    found = images.engine().containers.list(all=True, ignore_removed=True, filters={"name": f"^{container.name}$"})
    return found[0] if found else None


def _state(container: Container) -> dict:
    found = _found(container)
    return found.attrs["State"] if found else {}
