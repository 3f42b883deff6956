"""version → bento → replicas beside the old → checked → champion → all the traffic; or back."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml
from prefect import flow, task

from contracts.contract import PerennialError
from deployments import balancer, replicas
from deployments.replicas import Replica
from flows.artifacts import show_release, tag_run
from flows.memory import Memory, remember
from registry import models
from service.request import SAMPLE

ROOT = Path(__file__).parent.parent
REPLICAS = 2
ENVIRONMENT = {"OTEL_SDK_DISABLED": "true", "OMP_NUM_THREADS": "1", "WHYLOGS_NO_ANALYTICS": "True",
               "BENTOML_DO_NOT_TRACK": "True"}


class ReleaseFailed(PerennialError):
    """The new version does not serve; what served before goes on."""

    exit_code = 1


@flow(name="release", flow_run_name="{model} {version:.12}")
def release(model: str, version: str = "champion") -> dict[str, Any]:
    """Put a version that passed the gate (or the champion again) in front of the callers."""
    tag_run(model)
    return release_version(model, models.resolve(remember(model).ledger, version))


def release_version(model: str, version: str) -> dict[str, Any]:
    bento = bento_of(model, version)
    released = roll_out(model, version, bento)
    show_release(model, version, released)
    return released


@task(task_run_name="bento {model} {version:.12}")
def bento_of(model: str, version: str) -> str:
    return str(build_bento(remember(model), version))


@task(task_run_name="roll out {model} {version:.12}")
def roll_out(model: str, version: str, bento: str) -> dict[str, Any]:
    return put_in_front(remember(model), version, Path(bento))


def build_bento(memory: Memory, version: str) -> Path:
    """The bento of a version: service/, contracts/ and the model's files, nothing else; built once."""
    home = memory.run / "bentoml"
    bento = home / "bentos" / memory.name / version[:16]
    if (bento / "bento.yaml").exists():
        return bento
    with tempfile.TemporaryDirectory() as folder:
        stage = _stage(memory, version, Path(folder))
        command = [sys.executable, "-m", "bentoml", "build", "--version", version[:16], str(stage)]
        built = subprocess.run(command, cwd=stage, capture_output=True, text=True, check=False,
                               env=os.environ | ENVIRONMENT | {"BENTOML_HOME": str(home)})
    if built.returncode:
        raise ReleaseFailed(f"{memory.name}: the bento of {version[:12]} was not built:\n{built.stdout}{built.stderr}")
    return bento


def _stage(memory: Memory, version: str, folder: Path) -> Path:
    """The build context; the contract's file goes to contracts/<model>.py wherever it was kept."""
    for room in ("service", "contracts"):
        (folder / room).mkdir()
        for source in (ROOT / room).glob("*.py"):
            if room == "service" or source.stem in ("__init__", "contract", "drift"):
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


def put_in_front(
    memory: Memory, version: str, bento: Path, decide: Callable[[str | None], Any] | None = None,
) -> dict[str, Any]:
    """Start replicas beside the old, check them, let the ledger decide, shift the traffic, stop the old.

    `decide` writes the ledger's event, given the champion before; by default the promotion. Until the ledger names
    the new champion a failure leaves everything as it was. Run again after a kill, it takes up replicas that run.
    """
    before = memory.ledger.state().champion
    mine = [replica for replica in replicas.running(memory.run, memory.name) if replica.version == version]
    try:
        balancer.start(memory.run)
        mine += replicas.start(bento, version, REPLICAS - len(mine), memory.run, memory.name,
                               {"PERENNIAL_PROFILES": str(memory.spool)})
        replicas.wait_ready(mine)
        checked = [answers_like_trainer(memory, replica) for replica in mine]
        decide(before) if decide else memory.ledger.promote(version, expect=before)
    except Exception as error:
        if version != before:
            replicas.stop(mine, memory.run, memory.name)
        _say_why(memory, version, error)
        raise
    try:
        balancer.route(memory.run, memory.name, [replica.url for replica in mine], version)
    except Exception as error:
        _go_back(memory, before, version, mine, error)
        raise
    retire(memory, version)
    memory.ledger.record("released", {"version": version, "replicas": len(mine)}, once=("version",))
    return {"version": version, "before": before, "replicas": [replica.url for replica in mine], "checked": checked}


def _say_why(memory: Memory, version: str, error: Exception) -> None:
    memory.ledger.record("release_failed", {"version": version, "why": f"{type(error).__name__}: {error}"})


def _go_back(memory: Memory, before: str | None, version: str, mine: list[Replica], error: Exception) -> None:
    """The traffic could not be shifted: the old version is champion again, and its replicas never stopped."""
    _say_why(memory, version, error)
    if before and before != version:
        memory.ledger.roll_back(f"traffic was not shifted: {error}", to=before)
        old = [replica.url for replica in replicas.running(memory.run, memory.name) if replica.version == before]
        balancer.route(memory.run, memory.name, old, before)
        replicas.stop(mine, memory.run, memory.name)


def answers_like_trainer(memory: Memory, replica: Replica) -> dict[str, Any]:
    """Ask a replica the version's sample records over HTTP; refuse it unless it answers as the trainer did."""
    files = models.fetch(memory.store, memory.name, replica.version, memory.run / "models")
    samples = json.loads((files / "samples.json").read_bytes())
    reply = httpx.post(f"{replica.url}/predict", json={"records": samples["records"]}, headers=SAMPLE, timeout=10)
    if reply.status_code != 200:
        raise ReleaseFailed(f"{replica.url} answers the samples with {reply.status_code}: {reply.text[:500]}")
    answer = reply.json()
    got = [list(one["probabilities"].values()) for one in answer["predictions"]]
    far = float(np.abs(np.asarray(got) - np.asarray(samples["probabilities"])).max())
    if answer["version"] != replica.version or far > 0:
        raise ReleaseFailed(f"{replica.url} serves {answer['version'][:12]} and its answers differ by {far} from the "
                            f"trainer's of {replica.version[:12]}; see {replica.log}")
    return {"url": replica.url, "records": len(got), "furthest": far, "seconds": reply.elapsed.total_seconds()}


def served(memory: Memory) -> bool:
    """Whether the champion has all its replicas here; true as well where this machine does not serve the model."""
    champion, routed = memory.ledger.state().champion, balancer.routed(memory.run, memory.name)
    alive = [one.url for one in replicas.running(memory.run, memory.name) if one.version == champion]
    return not routed or (len(alive) >= REPLICAS and sorted(alive) == routed)


def retire(memory: Memory, version: str) -> None:
    """Drain and stop every replica that is not of `version`; the balancer sends them nothing any more."""
    old = [replica for replica in replicas.running(memory.run, memory.name) if replica.version != version]
    replicas.drain(old)
    replicas.stop(old, memory.run, memory.name)


def serve_champion(memory: Memory, port: int = 8080) -> str:
    """Bring the champion up behind the balancer; the balancer's address."""
    version = models.resolve(memory.ledger, "champion")
    address = balancer.start(memory.run, port).url
    put_in_front(memory, version, build_bento(memory, version))
    return address


def roll_back(model: str, to: str, reason: str) -> dict[str, str]:
    """Make an earlier version champion; where this machine serves the model, its replicas are up before."""
    memory = remember(model)
    before, target = models.resolve(memory.ledger, "champion"), models.resolve(memory.ledger, to)

    def decide(_: str | None = None) -> None:
        memory.ledger.roll_back(reason, to=target)

    if balancer.routed(memory.run, memory.name):
        put_in_front(memory, target, build_bento(memory, target), decide)
    else:
        decide()
    return {"from": before, "to": target, "reason": reason}
