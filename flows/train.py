"""data version → features → XGBoost → gate → registered version, released if the gate allows it."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import State, flow, task
from prefect.client.schemas import FlowRun

from contracts import reference
from contracts.bins import REFERENCE, Bins, watched
from contracts.contract import Columns, PerennialError, Verdict, digest_of
from contracts.quality import gate, scores
from flows import cluster
from flows.artifacts import show_gate, tag_run
from flows.fit import Prepared, prepared
from flows.memory import Memory, remember
from flows.release import release_version
from flows.rollout import answered_by
from registry import data, models
from service.model import SERVED, TWIN, Model, columns_of_records, records_of_columns, restore, serves
from service.profiles import bins_of

ROOT = Path(__file__).parent.parent
PACKAGES = ("numpy", "pandas", "pandera", "scikit-learn", "xgboost-cpu", "whylogs", "bentoml")
BY_HAND = "by hand"  # the window of a training that a person asked for
SAMPLES = 200
LATENCY_RECORDS = 300
PATIENCE = 300  # seconds in which a new process must answer the samples

log = logging.getLogger("perennial.train")


@flow(name="train", flow_run_name="{model} {window}")
def train(model: str, window: str = BY_HAND, reason: str = "asked by a person", release: bool = True) -> dict[str, Any]:
    """Train a challenger on the newest data version, judge it, and release it if it passed.

    `window` names the retraining that the ledger granted; a finished or unknown one is not run again.
    """
    tag_run(model)
    if not may_run(model, window):
        return {"outcome": "nothing to do", "window": window}
    version = train_version(model)
    verdict = judge_version(model, version)
    show_gate(model, version, verdict)
    outcome, why = verdict["outcome"], verdict["reasons"]
    if outcome == "passed" and release:
        released = release_version(model, version)
        outcome, why = released["outcome"], (released["canary"] or {"reasons": ()})["reasons"]
    return finish(model, window, version, outcome) | {"why": list(why)}


@train.on_failure
def remember_failure(_: Any, run: FlowRun, state: State) -> None:
    """Tell the ledger, so that the reconciler tries again, and gives up in the end."""
    if run.parameters.get("window", BY_HAND) != BY_HAND:
        remember(run.parameters["model"]).ledger.retrain_failed(run.parameters["window"], state.message)


def may_run(model: str, window: str) -> bool:
    """Whether the ledger holds an unfinished claim for this window; training by hand needs none."""
    if window == BY_HAND:
        return True
    return remember(model).ledger.state().claims.get(window, {}).get("state") == "claimed"


@task(task_run_name="fit {model}")
def train_version(model: str) -> str:
    return fit_version(remember(model))


@task(task_run_name="judge {model} {version:.12}")
def judge_version(model: str, version: str) -> dict[str, Any]:
    return judge(remember(model), version).as_json()


def finish(model: str, window: str, version: str, outcome: str) -> dict[str, Any]:
    if window != BY_HAND:
        remember(model).ledger.retrain_finished(window, outcome, {"version": version})
    return {"outcome": outcome, "version": version, "window": window}


def judged_from(memory: Memory, source: data.DataVersion) -> datetime:
    """The start of the newest labelled window: older rows train, newer ones judge."""
    return datetime.fromisoformat(source.end) - memory.contract.gate.window


def fit_version(memory: Memory) -> str:
    """Train on the newest data version and register the result; gives the version's digest.

    A version holds the recipe trained twice: the *twin* on all but the newest labelled window, for the gate to
    judge on rows it never saw, and the model that serves, on every row, in as many rounds.
    """
    source = data.newest(memory.store, memory.name)
    with gathered(memory, source) as rows:
        files, metrics = fitted(memory, rows)
    manifest = _manifest(memory, source, metrics, rows.older) | ({"workers": rows.workers} if rows.workers > 1 else {})
    version = models.save(memory.store, memory.name, files, manifest)
    memory.ledger.registered(version, {"data": source.digest, "rounds": metrics["rounds"], "git": git_revision(),
                                        "bins_of": memory.ledger.state().champion})
    return version


@contextmanager
def gathered(memory: Memory, source: data.DataVersion) -> Iterator[Prepared | cluster.Spread]:
    """The rows of a data version as they are trained on: here, or on the Dask cluster that the environment names."""
    cut, address = judged_from(memory, source), os.environ.get(cluster.ADDRESS)
    if address:
        with cluster.client_of(address) as client, cluster.lost_workers_named(address):
            yield cluster.spread(client, memory.contract, memory.store.address, source, cut)
    else:
        chunks = data.chunks(memory.store, source, memory.contract.training_columns)
        with closing(prepared(memory.contract, chunks, source.rows, cut, memory.run / "training", log.info)) as rows:
            yield rows


def fitted(memory: Memory, rows: Prepared | cluster.Spread) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A version's files by name, and its metrics."""
    if rows.older < 2 or rows.older == rows.rows:  # early stopping holds back one of those that train
        raise PerennialError(f"{memory.name}: {rows.older} of {rows.rows} rows are older than the gate's window, which starts at "
                             f"{rows.cut}; 2 must be, to train, and 1 in it, to judge: ingest more first")
    contract, history = memory.contract, rows.rounds()
    model, champion = rows.fit(history["rounds"]), memory.ledger.state().champion
    before = bins_of(fetched(memory, champion)) if champion else {}
    with ThreadPoolExecutor(1) as beside:  # what is learnt of ordinary traffic keeps one core busy, and a training hardly notices
        training, sample = beside.submit(rows.fit, history["rounds"], older=True), rows.sample
        references = ordinary(model, sample, before)
        twin = training.result()
    return model.files() | twin.files(TWIN) | {
        REFERENCE: reference.to_bytes(references),
        "samples.json": json.dumps(_samples(model, sample)).encode(),
        "contract.json": json.dumps(contract.describe(), indent=1, sort_keys=True, ensure_ascii=False).encode(),
    }, history | {"newest_window": scores(contract, *rows.newest(twin))}


def ordinary(model: Model, sample: Columns, before: Mapping[str, Bins]) -> dict[str, reference.Reference]:
    """What later traffic of a model is compared with, in bins that divide the champion's."""
    contract, probabilities = model.contract, model.probabilities(sample)
    seen = watched(contract, sample, probabilities, model.classes(probabilities))
    return reference.learn(seen, sample[contract.event_time], contract.drift.window, contract.drift.false_alarms, before)


def _samples(model: Model, columns: Columns) -> dict[str, Any]:
    """Records as a caller would send them, and what the trainer answers: every replica must say the same.

    Spread over all the rows: those of a single cold night would show no fault in how the temperature is read.
    """
    rows = np.linspace(0, len(columns[model.contract.event_time]) - 1, SAMPLES).astype(int)
    some = {name: values[rows] for name, values in columns.items()}
    return {"records": records_of_columns(model.contract, some), "probabilities": model.probabilities(some).tolist()}


def _manifest(memory: Memory, source: data.DataVersion, metrics: dict[str, Any], twin_rows: int) -> dict[str, Any]:
    contract = memory.contract
    return {
        "model": memory.name, "contract": contract.digest, "classes": list(contract.label.classes),
        "features": [feature.name for feature in contract.features], "data": source.as_json(),
        "rows": source.rows, "twin_rows": twin_rows, "judged_from": judged_from(memory, source).isoformat(), "metrics": metrics,
        "seed": contract.seed, "code": code_digest(), "packages": {name: installed(name) for name in PACKAGES},
    }


def code_digest() -> str:
    """The digest of the code that fits a model, and of all that a bento holds."""
    sources = [path for room in ("contracts", "service") for path in sorted((ROOT / room).glob("*.py"))]
    sources += [ROOT / "flows" / name for name in ("cluster.py", "fit.py")]
    return digest_of({str(path.relative_to(ROOT)): sha256(path.read_bytes()).hexdigest() for path in sources})


def git_revision() -> str | None:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def judge(memory: Memory, version: str) -> Verdict:
    """The gate's Verdict on a version, against the champion on the newest labelled window; kept in the ledger."""
    contract, state = memory.contract, memory.ledger.state()
    if version == state.champion:  # a run that was killed after the promotion, or nothing new to train on
        return Verdict.from_json(state.verdicts[version][-1]["verdict"])
    manifest = models.manifest(memory.store, memory.name, version)
    source = data.DataVersion.from_json(manifest["data"])
    files = fetched(memory, version)
    with saved_answers(memory, files) as answering:
        rows = data.read(memory.store, source, start=datetime.fromisoformat(manifest["judged_from"]))
        columns, labels = contract.columns_of(rows), contract.labels_of(rows)
        served, twin = (restore(contract, files, stem).probabilities(columns) for stem in (SERVED, TWIN))
        champion = champion_probabilities(memory, state.champion, rows)
        apart = disagreement(answering, files)  # awaited before the latency is measured
    verdict = gate(
        contract, labels, twin, champion, {name: rows[name].to_numpy() for name in contract.gate.slices},
        latency_ms=latency(restore(contract, files), files), disagreement=apart,
        size_mb=sum(file.stat().st_size for file in files.iterdir()) / 2**20,
        refit_shift=float(np.abs(served - twin).mean()))
    memory.ledger.judged(version, verdict, state.champion, {"data": source.digest})
    return verdict


def champion_probabilities(memory: Memory, champion: str | None, rows: pd.DataFrame) -> np.ndarray | None:
    """What the champion says of the judged rows; refuses rows that it was trained on, on which nobody could win."""
    if champion is None:
        return None
    seen = models.manifest(memory.store, memory.name, champion)["data"]["end"]
    if seen > rows[memory.contract.event_time].min().isoformat():
        raise PerennialError(f"{memory.name}: the champion was trained on events up to {seen}, so nothing fresh is left "
                             f"to judge on; ingest newer events first: perennial ingest {memory.name}")
    contract, files = memory.contract, fetched(memory, champion)
    if serves(contract, files):
        return restore(contract, files).probabilities(contract.columns_of(rows))
    wanted = json.loads((files / "contract.json").read_bytes())["request"]
    known = contract.columns_of(rows, tuple(name for name in wanted if name in contract.columns))
    return answered_by(memory, champion, records_of_columns(contract, known))


def fetched(memory: Memory, version: str) -> Path:
    """The version's files on this machine, their digests checked."""
    return models.fetch(memory.store, memory.name, version, memory.run / "models")


def latency(model: Model, files: Path) -> float:
    """Milliseconds: 99th percentile of one record from columns to probabilities."""
    records = json.loads((files / "samples.json").read_bytes())["records"]
    times = []
    for index in range(LATENCY_RECORDS):
        columns = columns_of_records(model.contract, [records[index % len(records)]])
        begun = time.perf_counter()
        model.probabilities(columns)
        times.append(time.perf_counter() - begun)
    return float(np.percentile(times, 99) * 1000)


@contextmanager
def saved_answers(memory: Memory, files: Path) -> Iterator[subprocess.Popen[str]]:
    """A new process that answers the version's sample records from its saved files; it ends where nobody wants its answers any more."""
    command = [sys.executable, "-m", "service.model", memory.contract.schema.__module__, str(files)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as answering:
        try:
            yield answering
        finally:
            answering.kill()  # no more than a formality where it has ended


def disagreement(answering: subprocess.Popen[str], files: Path) -> float:
    """The largest difference between the trainer's sample answers and those of `saved_answers`."""
    answers, told = answering.communicate(timeout=PATIENCE)
    if answering.returncode:
        raise PerennialError(f"the saved model does not answer in a new process:\n{told.strip()}")
    expected = json.loads((files / "samples.json").read_bytes())["probabilities"]
    return float(np.abs(np.asarray(json.loads(answers)) - np.asarray(expected)).max())
