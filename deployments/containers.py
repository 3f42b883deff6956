"""Replicas as containers of a model version's image; their state is kept by the engine, as labels."""

import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from contracts.core.errors import Unavailable
from deployments.processes import free_ports, resident_mb
from deployments.replicas import FOLLOW
from registry import images
from registry.images import PORT, USER

MEMORY, CPUS, PROCESSES = "1g", 1.0, 256  # a container's limits; a replica of flights uses 250 MB
PROFILES = "/profiles"  # in a container: where the profile folder of this machine is mounted
MARKER = "containers"  # a file of the run folder: containers were started for it
LOG_LIMITS = {"max-size": "10m", "max-file": "3"}  # months of warnings fill no disk
CPU_SHARES, START_CPU_SHARES = 1024, 128  # relative weights: replicas that serve come before one that starts


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container of a model version; `log` is the file that keeps its output once it is removed, `follows`
    whether it answers as the layers' file says."""

    name: str
    url: str
    version: str
    log: str
    image: str
    follows: bool = False

    def answering_as(self, version: str) -> "Container":
        """The same container, known by the version that it answers as."""
        return replace(self, version=version)

    @property
    def is_alive(self) -> bool:
        return _engine_state(self).get("Status") in ("running", "restarting", "paused")

    @property
    def pid(self) -> int:
        """The pid of its first process on the engine's machine; 0 while it has none."""
        return int(_engine_state(self).get("Pid", 0))

    @property
    def deaths(self) -> int:
        """How often the engine has restarted it."""
        container = _engine_container(self.name)
        return int(container.attrs["RestartCount"]) if container else 0

    def memory_mb(self) -> float:
        return resident_mb(self.pid) if self.pid else float("nan")

    def log_tail(self) -> str:
        """The last 15 lines of its log, under the command that shows all."""
        container = _engine_container(self.name)
        if container is None:
            return f"{self.name} was removed; see {self.log}"
        return f"the end of `docker logs {self.name}`:\n{container.logs(tail=15).decode(errors='replace')}"


def start(image: str, version: str, count: int, run: Path, model: str,
          environ: Mapping[str, str] = MappingProxyType({}), urgent: bool = False) -> list[Container]:
    """Start `count` containers of an image, named by digest, without waiting until they answer.

    Unless `urgent`, they get a small share of the processor until `raise_cpu_shares`.
    """
    images.present(image)
    run.mkdir(parents=True, exist_ok=True)
    (run / MARKER).touch()
    labels = {"perennial.run": str(run.absolute()), "perennial.model": model, "perennial.version": version,
              "perennial.image": image, **({"perennial.follows": "1"} if FOLLOW in environ else {})}
    options = _profile_options(environ) | {"cpu_shares": CPU_SHARES if urgent else START_CPU_SHARES}
    started: list[Container] = []
    try:
        for port in free_ports(count):
            name = f"{model}-{version[:12]}-{port}"
            started.append(_start(image, name, port, labels, options))
    except images.DockerException as error:
        _remove(name)  # created, but not started
        stop(started, run, model, 1)
        raise Unavailable(f"{model}: the engine did not start a container of {image}: {error}; "
                       "run it again") from error
    return started


def _profile_options(environ: Mapping[str, str]) -> dict[str, Any]:
    """docker's options for the environment and, if it names a profile folder, for the mount and its user."""
    if "PERENNIAL_PROFILES" not in environ:
        return {"environment": dict(environ), "user": USER}
    folder = Path(environ["PERENNIAL_PROFILES"])
    return {"environment": {**environ, "PERENNIAL_PROFILES": PROFILES}, "user": _profile_writer(folder),
            "volumes": {str(folder): {"bind": PROFILES, "mode": "rw"}}}


def _profile_writer(folder: Path) -> str:
    """The unprivileged user who may write the profile folder: ours, or if we are root the image's."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.getuid():
        return f"{os.getuid()}:{os.getgid()}"
    for path in (folder, *folder.rglob("*")):  # replicas that ran as processes of root left files
        os.chown(path, *map(int, USER.split(":")))
    return USER


def _start(image: str, name: str, port: int, labels: Mapping[str, str],
           options: Mapping[str, Any]) -> Container:
    return _container(images.engine().containers.run(
        image, name=name, detach=True, labels={**labels, "perennial.url": f"http://127.0.0.1:{port}"},
        ports={f"{PORT}/tcp": ("127.0.0.1", port)}, restart_policy={"Name": "unless-stopped"},
        read_only=True, tmpfs={"/tmp": "size=64m,mode=1777"}, cap_drop=["ALL"], stop_signal="SIGTERM",
        security_opt=["no-new-privileges"], mem_limit=MEMORY, memswap_limit=MEMORY, pids_limit=PROCESSES,
        nano_cpus=int(CPUS * 10**9), log_config={"type": "json-file", "config": LOG_LIMITS}, **options))


def has_containers(run: Path) -> bool:
    """Whether containers were ever started for this run folder, whatever the environment says now."""
    return (run / MARKER).exists()


def raise_cpu_shares(containers: Collection[Container]) -> None:
    """Give containers that have started their full share of the processor."""
    for container in containers:
        images.engine().containers.get(container.name).update(cpu_shares=CPU_SHARES)


def running(run: Path, model: str) -> list[Container]:
    """The containers of a model that are alive."""
    return [container for container in _all(run, model) if container.is_alive]


def stop(containers: Collection[Container], run: Path, model: str, seconds: int = 20) -> None:
    """End these containers and remove dead ones; their output is kept in the run folder's logs."""
    names = {container.name for container in containers}
    ending = [container for container in _all(run, model)
              if container.name in names or not container.is_alive]
    with ThreadPoolExecutor(max(len(ending), 1)) as pool:
        list(pool.map(partial(_end, seconds=seconds), ending))


def stop_all(run: Path) -> None:
    """End all containers of this run folder."""
    for container in _all(run):
        _end(container, 20)


def _end(container: Container, seconds: int) -> None:
    engine_container = _engine_container(container.name)
    if engine_container is None:
        return
    engine_container.stop(timeout=seconds)
    Path(container.log).parent.mkdir(parents=True, exist_ok=True)
    Path(container.log).write_bytes(engine_container.logs())
    engine_container.remove(force=True)


def _all(run: Path, model: str | None = None) -> list[Container]:
    labels = ["perennial.image", f"perennial.run={run.absolute()}"]
    labels += [f"perennial.model={model}"] if model else []
    listed = images.engine().containers.list(all=True, ignore_removed=True, filters={"label": labels})
    return [_container(engine_container) for engine_container in listed]


def _container(engine_container: Any) -> Container:
    name, labels = engine_container.name, engine_container.labels
    return Container(
        name=name, url=labels["perennial.url"], version=labels["perennial.version"],
        image=labels["perennial.image"], follows="perennial.follows" in labels,
        log=str(Path(labels["perennial.run"]) / "logs" / f"{name}.log"))


def _engine_container(name: str) -> Any:
    """The docker library's object for a container; None once it is removed."""
    matching = images.engine().containers.list(all=True, ignore_removed=True, filters={"name": f"^{name}$"})
    return next(iter(matching), None)


def _engine_state(container: Container) -> Mapping[str, Any]:
    engine_container = _engine_container(container.name)
    return engine_container.attrs["State"] if engine_container else {}


def _remove(name: str) -> None:
    if engine_container := _engine_container(name):
        engine_container.remove(force=True)
