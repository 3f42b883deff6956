"""version → bento → image → rollout."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from prefect import flow, task

from contracts.contract import PerennialError
from deployments import balancer
from flows.artifacts import show_release, tag_run
from flows.memory import Memory, remember
from flows.rollout import ReleaseFailed, hand_over, put_in_front
from registry import images, models

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"OTEL_SDK_DISABLED": "true", "OMP_NUM_THREADS": "1", "WHYLOGS_NO_ANALYTICS": "True",
               "BENTOML_DO_NOT_TRACK": "True"}


@flow(name="release", flow_run_name="{model} {version:.12}")
def release(model: str, version: str = "champion") -> dict[str, Any]:
    """Put a version that passed the gate (or the champion again) in front of the callers."""
    tag_run(model)
    return release_version(model, models.resolve(remember(model).ledger, version))


def release_version(model: str, version: str) -> dict[str, Any]:
    """Its `outcome` is "released", or "refused" by the canary; raises NotAllowed before anything is built."""
    remember(model).ledger.must_allow(version)
    bento = bento_of(model, version)
    image = image_of(model, version, bento) if images.configured() else None
    released = roll_out(model, version, bento, image)
    show_release(model, version, released)
    return released


@task(task_run_name="bento {model} {version:.12}")
def bento_of(model: str, version: str) -> str:
    return str(build_bento(remember(model), version))


@task(task_run_name="image {model} {version:.12}")
def image_of(model: str, version: str, bento: str) -> str:
    return ship_image(remember(model), version, Path(bento))


@task(task_run_name="roll out {model} {version:.12}")
def roll_out(model: str, version: str, bento: str, image: str | None) -> dict[str, Any]:
    memory, folder = remember(model), _kustomization()
    return hand_over(memory, version, image, folder) if folder and image else put_in_front(memory, version, image or Path(bento))


def _kustomization() -> Path | None:
    """The folder that releases write into, if the environment names one."""
    folder = os.environ.get("PERENNIAL_KUSTOMIZATION")
    if folder and not images.configured():
        raise PerennialError(f"PERENNIAL_KUSTOMIZATION is {folder} and PERENNIAL_IMAGES is not set: a cluster runs images; set both")
    return Path(folder) if folder else None


def ship_image(memory: Memory, version: str, bento: Path) -> str:
    """Build a version's image and push it; its reference by the registry's digest, which the ledger keeps."""
    where, facts = images.configured(), models.manifest(memory.store, memory.name, version)
    where.repository(memory.name)  # refuses a name before anything is built
    [registered] = [event for event in memory.ledger.events() if event.kind == "registered" and event.data["version"] == version]
    image = images.build(where, bento, {
        "org.opencontainers.image.title": memory.name, "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": registered.data["git"] or "",
        "perennial.model": memory.name, "perennial.version": version, "perennial.bento": f"{memory.name}:{bento.name}",
        "perennial.data": facts["data"]["digest"], "perennial.contract": facts["contract"], "perennial.code": facts["code"]})
    reference = images.push(where, image, memory.name, version[:12])
    memory.ledger.record("imaged", {"version": version, "image": reference}, once=("version", "image"))
    return reference


def artefact(memory: Memory, version: str) -> Path | str:
    """What replicas of a version start from: the image that the ledger names, or where no images are made its bento."""
    if not images.configured():
        return build_bento(memory, version)
    recorded = memory.ledger.state().recorded  # an image that has served comes before one that was only made
    known = [each["image"] for kind in ("imaged", "released") for each in recorded.get(kind, ())
             if each["version"] == version and each.get("image")]
    return known[-1] if known else ship_image(memory, version, build_bento(memory, version))


def build_bento(memory: Memory, version: str) -> Path:
    """The bento of a version: service/, contracts/ and the model's files, nothing else; built once."""
    home = memory.run / "bentoml"
    bento = home / "bentos" / memory.name / version[:16]
    if (bento / "bento.yaml").exists():
        return bento
    shutil.rmtree(bento, ignore_errors=True)  # of an older perennial that was killed while it built
    bento.parent.mkdir(parents=True, exist_ok=True)
    # Staged outside of `.perennial`: BentoML reads no hidden path. Built on the run folder's file system, for the rename.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=home, prefix="building-") as beside:
        stage = _stage(memory, version, Path(folder))
        command = [sys.executable, "-m", "bentoml", "build", "--version", version[:16], str(stage)]
        built = subprocess.run(command, cwd=stage, capture_output=True, text=True, check=False,
                               env=os.environ | ENVIRONMENT | {"BENTOML_HOME": beside})
        if built.returncode:
            raise ReleaseFailed(f"{memory.name}: the bento of {version[:12]} was not built:\n{built.stdout}{built.stderr}")
        try:
            Path(beside, "bentos", memory.name, version[:16]).rename(bento)
        except OSError:  # another process was first, with the same bytes
            if not (bento / "bento.yaml").exists():
                raise
    return bento


def _stage(memory: Memory, version: str, folder: Path) -> Path:
    """The build context; the contract's file goes to contracts/<model>.py wherever it was kept."""
    for room in ("service", "contracts"):
        (folder / room).mkdir()
        for source in (ROOT / room).glob("*.py"):
            if room == "service" or source.stem in ("__init__", "contract", "bins"):
                shutil.copy(source, folder / room)
    shutil.copy(memory.contract.source_file, folder / "contracts" / f"{memory.name}.py")
    files = models.fetch(memory.store, memory.name, version, memory.run / "models")
    shutil.copytree(files, folder / "model")
    manifest = json.loads((files / "manifest.json").read_bytes())
    (folder / "model" / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
    shutil.copy(ROOT / "requirements-service.txt", folder)
    (folder / "bentofile.yaml").write_text(yaml.safe_dump({
        "service": "service.bento:service", "name": memory.name, "include": ["service/", "contracts/", "model/"],
        "labels": {"model": memory.name, "version": version[:63], "data": manifest["data"]["digest"][:63]},
        "python": {"requirements_txt": "requirements-service.txt", "lock_packages": False},
        "envs": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
    }))
    return folder


@contextmanager
def serving(memory: Memory) -> Iterator[None]:
    """One `perennial serve` of a model at a time: else the end of one would take the replicas of the other."""
    memory.run.mkdir(parents=True, exist_ok=True)
    with open(memory.run / f"{memory.name}.serve", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PerennialError(f"{memory.name} is served from {memory.run} already; see: perennial status {memory.name}") from None
        yield


def serve_champion(memory: Memory, port: int = 8080) -> str:
    """Bring the champion up behind the balancer; the balancer's address."""
    version = models.resolve(memory.ledger, "champion")
    address = balancer.start(memory.run, port).url
    put_in_front(memory, version, artefact(memory, version))
    return address


def roll_back(model: str, to: str, reason: str) -> dict[str, str]:
    """Make an earlier version champion; where this machine serves the model, its replicas are up before."""
    memory = remember(model)
    before, target = models.resolve(memory.ledger, "champion"), models.resolve(memory.ledger, to)

    def decide(_: str | None = None) -> None:
        memory.ledger.roll_back(reason, to=target)

    if folder := _kustomization():
        hand_over(memory, target, artefact(memory, target), folder, decide)
    elif balancer.routed(memory.run, memory.name):
        put_in_front(memory, target, artefact(memory, target), decide)
    else:
        decide()
    return {"from": before, "to": target, "reason": reason}
