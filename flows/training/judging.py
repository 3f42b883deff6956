"""Judge a challenger: measure what the gate needs, and get the champion's answers to the same rows."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from contracts.core.absent_classes import has_every_class
from contracts.core.challengers import best_challenger
from contracts.core.errors import PerennialError
from contracts.core.gate import gate
from contracts.core.gate_verdict import GateVerdict
from flows.releasing.replica_check import answered_by
from flows.training.class_history import class_history
from registry import data, models
from registry.context import ROOT, ModelContext, fetch_version
from service.model import (
    SERVED,
    TWIN,
    Model,
    columns_of_records,
    is_compatible,
    load_model,
    records_of_columns,
)

LATENCY_RECORDS = 300
# A replica has no scikit-learn either, and XGBoost takes a second to import it.
ANSWER_SAMPLES = "import sys; sys.modules['sklearn'] = None; from service.model import main; main()"
ANSWER_TIMEOUT = 300  # seconds within which a new process must answer the sample records


def judge(context: ModelContext, version: str) -> GateVerdict:
    """The gate's verdict on a version against the present champion; recorded in the ledger."""
    champion = context.ledger.state().champion
    verdict = evaluate_version(context, version, champion)
    record_verdict(context, version, champion, verdict)
    return verdict


def record_verdict(context: ModelContext, version: str, champion: str | None, verdict: GateVerdict) -> None:
    if version != champion:
        source = models.manifest(context.store, context.name, version)["data"]
        context.ledger.judged(version, verdict, champion, source["digest"])


def evaluate_version(context: ModelContext, version: str, champion: str | None) -> GateVerdict:
    """The gate's verdict on a version, against the champion on the newest labelled window."""
    contract = context.contract
    if version == champion:  # an earlier run was killed after the promotion, or there was no new data
        judged = context.ledger.state().last_judged(version)
        assert judged is not None  # nothing is promoted without a verdict
        return judged.verdict
    manifest = models.manifest(context.store, context.name, version)
    source = data.DataVersion.from_json(manifest["data"])
    files = fetch_version(context, version)
    since = datetime.fromisoformat(manifest["judged_from"])
    with saved_answers(context, files) as process:
        rows = data.read(context.store, source, start=since)
        columns, labels = contract.columns_of(rows), contract.labels_of(rows)
        served, twin = (load_model(contract, files, stem).probabilities(columns) for stem in (SERVED, TWIN))
        answers = champion_probabilities(context, champion, rows)
        difference = disagreement(process, files)  # awaited before the latency is measured
    return gate(
        contract, labels, twin, answers, {name: rows[name].to_numpy() for name in contract.gate.slices},
        latency_ms=latency(load_model(contract, files), files), disagreement=difference,
        size_mb=sum(file.stat().st_size for file in files.iterdir()) / 2**20,
        refit_shift=float(np.abs(served - twin).mean()), since=since,
        history=None if has_every_class(contract, labels) else class_history(context, source, since))


def choose_challenger(context: ModelContext, versions: Sequence[str]) -> str:
    """Of several challengers that the gate passed the one to release, the simplest first: by their twins'
    answers to the rows that the gate judged them on."""
    if len(versions) == 1:
        return versions[0]
    contract, manifest = context.contract, models.manifest(context.store, context.name, versions[0])
    rows = data.read(context.store, data.DataVersion.from_json(manifest["data"]),
                     start=datetime.fromisoformat(manifest["judged_from"]))
    columns = contract.columns_of(rows)
    answers = [load_model(contract, fetch_version(context, version), TWIN).probabilities(columns)
               for version in versions]
    return versions[best_challenger(contract.gate, contract.labels_of(rows), answers)]


def champion_probabilities(context: ModelContext, champion: str | None,
                           rows: pd.DataFrame) -> np.ndarray | None:
    """The champion's probabilities for the judged rows, (n, classes); None without a champion. One that was
    recalibrated on labels of these rows answers as it did before that. Raises PerennialError for rows that it
    was trained on, where no challenger could win."""
    if champion is None:
        return None
    source = data.DataVersion.from_json(models.manifest(context.store, context.name, champion)["data"])
    trained_until = source.complete_until(context.contract.schedule.stale_after)
    if trained_until > rows[context.contract.event_time].min():
        raise PerennialError(f"{context.name}: the champion was trained on events up to {trained_until}, so "
                             f"nothing fresh is left to judge on; ingest newer events first: perennial "
                             f"ingest {context.name}")
    contract, files = context.contract, fetch_version(context, champion)
    if is_compatible(contract, files):
        before = calibrated_before(context, champion, rows[contract.event_time].min())
        return load_model(contract, fetch_version(context, before)).probabilities(contract.columns_of(rows))
    request_columns = json.loads((files / "contract.json").read_bytes())["request"]
    known = contract.columns_of(rows, tuple(name for name in request_columns if name in contract.columns))
    return answered_by(context, champion, records_of_columns(contract, known))


def calibrated_before(context: ModelContext, champion: str, time: datetime) -> str:
    """The champion, or the version that was champion before its last recalibrations on labels of events from
    `time` on: its layer must not have seen the rows on which a challenger, too, is judged unseen."""
    manifest = models.manifest(context.store, context.name, champion)
    while "layer" in manifest and datetime.fromisoformat(manifest["layer"]["until"]) > time:
        champion = manifest["layer"]["before"]
        manifest = models.manifest(context.store, context.name, champion)
    return champion


def latency(model: Model, files: Path) -> float:
    """The 99th percentile of the milliseconds that one record takes, from columns to probabilities."""
    records = json.loads((files / "samples.json").read_bytes())["records"]
    times = []
    for index in range(LATENCY_RECORDS):
        columns = columns_of_records(model.contract, [records[index % len(records)]])
        begun = time.perf_counter()
        model.probabilities(columns)
        times.append(time.perf_counter() - begun)
    return float(np.percentile(times, 99) * 1000)


@contextmanager
def saved_answers(context: ModelContext, files: Path) -> Iterator[subprocess.Popen[str]]:
    """A new process that answers the version's sample records from its saved files; killed at the end."""
    command = [sys.executable, "-c", ANSWER_SAMPLES, context.contract.module, str(files)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()  # does nothing if it has ended


def disagreement(process: subprocess.Popen[str], files: Path) -> float:
    """The largest difference between the trainer's sample answers and those of `saved_answers`."""
    answers, errors = process.communicate(timeout=ANSWER_TIMEOUT)
    if process.returncode:
        raise PerennialError(f"the saved model does not answer in a new process:\n{errors.strip()}")
    expected = json.loads((files / "samples.json").read_bytes())["probabilities"]
    return float(np.abs(np.asarray(json.loads(answers)) - np.asarray(expected)).max())
