"""Perennial and what a user would pick instead, as servers of the
same model, all on one core and each asked for the same record."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from deployments import fleet, replicas
from deployments.processes import free_ports, spawn, wait_until_answering
from deployments.replicas import REPLICA_ENVIRONMENT
from flows.releasing.bento import build_bento
from registry.context import ModelContext, fetch_version
from tests.bench import PEERS, peers
from tests.bench.load import CORES, Server, on_core

OURS, OFF = "Perennial", "Perennial, no profile, no log"
FASTAPI, MLSERVER, FLOOR = "FastAPI + joblib pipeline", "MLServer, raw tensor", "FastAPI, constant"
PORT = "PORT"  # stands for a free port in a command


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A program of an environment of peers, and how it is asked."""

    environment: str
    command: tuple[str, ...]
    ready: str
    path: str = "/predict"
    constant: bool = False

    def body(self, record: dict[str, Any], row: list[float]) -> Any:
        """What it is asked with: the record, or where it knows no records the row that stands for it."""
        if self.path == "/invocations":
            return {"dataframe_records": [record]}
        if self.environment == "mlserver":
            tensor = {"name": "row", "shape": [1, len(row)], "datatype": "FP32", "data": row}
            return {"inputs": [tensor], "outputs": [{"name": "predict_proba"}]}
        return {"records": [record]}


def _uvicorn(app: str) -> Peer:
    command = ("uvicorn", app, "--app-dir", str(PEERS), "--port", PORT, "--log-level", "warning",
               "--no-access-log")
    return Peer(environment="serve", command=command, ready="/openapi.json", constant="bare" in app)


def _bentoml(service: str) -> Peer:
    command = ("bentoml", "serve", service, "--working-dir", str(PEERS), "--host", "127.0.0.1", "--port",
               PORT)
    return Peer(environment="serve", command=command, ready="/readyz", constant="bare" in service)


def beside(model: Path) -> dict[str, Peer]:
    """The peers, whose model's files lie in a folder."""
    mlflow = ("mlflow", "models", "serve", "--model-uri", str(model / "mlflow"), "--env-manager", "local",
              "--port", PORT)
    return {
        FASTAPI: _uvicorn("fastapi_pipeline:app"),
        "mlflow models serve": Peer(environment="serve", command=mlflow, ready="/ping", path="/invocations"),
        MLSERVER: Peer(environment="mlserver", command=("mlserver", "start", str(model / "mlserver")),
                       ready="/v2/health/ready", path="/v2/models/flights/infer"),
        "LitServe": Peer(environment="serve", command=("python", str(PEERS / "litserve_pipeline.py"), PORT),
                         ready="/health"), "BentoML + joblib pipeline": _bentoml("bento_pipeline:Plain"),
        FLOOR: _uvicorn("fastapi_bare:app"), "BentoML, constant": _bentoml("bento_bare:Bare")}


def started(context: ModelContext, version: str, record: dict[str, Any]) -> dict[str, Server]:
    """All of them, by name, once all have answered the record
    with the same probabilities; they end with the run folder."""
    model = context.run / "peers"
    said = _saved_for_peers(fetch_version(context, version), model, record)
    with on_core(CORES[0]):
        ours = _ours(context, version, json.dumps({"records": [record]}))
        theirs = {name: _start(name, peer, model, context.run,
                               json.dumps(peer.body(record, said["matrix"][0])))
                  for name, peer in beside(model).items()}
    for name, peer in beside(model).items():
        server = theirs[name]
        wait_until_answering(server.process, server.url.removesuffix(peer.path) + peer.ready, 120)
    fleet.wait_ready([server.process for server in ours.values()])
    for name, server in (ours | theirs).items():
        if not (name in theirs and beside(model)[name].constant):
            _must_answer(server, said["probabilities"][0])
    return ours | theirs


def _saved_for_peers(files: Path, model: Path, record: dict[str, Any]) -> dict[str, Any]:
    model.mkdir()
    for name in ("model.ubj", "model.json"):
        (model / name).write_bytes((files / name).read_bytes())
    (model / "asked.json").write_text(json.dumps({"records": [record]}))
    command = [peers("serve"), PEERS / "saved.py", model, model / "asked.json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                     check=True).stdout)


def _ours(context: ModelContext, version: str, body: str) -> dict[str, Server]:
    bento, spool = build_bento(context, version), {"PERENNIAL_PROFILES": str(context.spool)}
    [on] = replicas.start(bento, version, 1, context.run, context.name, spool)
    [off] = replicas.start(bento, version, 1, context.run, f"{context.name}-off")
    return {name: Server(name=name, process=one, url=f"{one.url}/predict", body=body)
            for name, one in ((OURS, on), (OFF, off))}


def _start(name: str, peer: Peer, model: Path, run: Path, body: str) -> Server:
    programs = peers(peer.environment).parent
    port, *others = map(str, free_ports(3))
    program, *rest = (word.replace(PORT, port) for word in peer.command)
    environ = REPLICA_ENVIRONMENT | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(PEERS),
        "PEERS_MODEL": str(model), "BENTOML_HOME": str(run / "peers" / f"home-{port}"),
        "MLSERVER_HOST": "127.0.0.1", "MLSERVER_HTTP_PORT": port, "MLSERVER_GRPC_PORT": others[0],
        "MLSERVER_METRICS_PORT": others[1], "MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_DEBUG": "false"}
    process = spawn([str(programs / program), *rest], run / "logs" / f"peer-{port}.log", environ)
    return Server(name=name, process=process, url=f"http://127.0.0.1:{port}{peer.path}", body=body)


def _must_answer(server: Server, probabilities: list[float]) -> None:
    """Refuse to compare what does not answer the same."""
    answer = httpx.post(server.url, content=server.body, headers={"content-type": "application/json"},
                        timeout=30)
    numbers = np.array(list(_numbers(answer.json())))
    if (answer.status_code != 200
        or not all(np.isclose(numbers, one, atol=1e-6).any() for one in probabilities)):
        raise AssertionError(f"{server.name} answers {answer.status_code} {answer.text[:500]}, the pipeline "
                             f"{probabilities}")


def _numbers(answer: Any) -> Iterator[float]:
    if isinstance(answer, float | int):
        yield float(answer)
    elif isinstance(answer, dict | list):
        for part in answer.values() if isinstance(answer, dict) else answer:
            yield from _numbers(part)
