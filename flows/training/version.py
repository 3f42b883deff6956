"""Train a version of a model and register it."""

import json
import logging
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version as installed
from typing import Any

import numpy as np

from contracts.core import reference
from contracts.core.binning import REFERENCE_FILE, Bins, monitored_columns
from contracts.core.classification import classification_metrics
from contracts.core.contract import Contract
from contracts.core.dependencies import imported_modules
from contracts.core.digests import digest_of
from contracts.core.errors import PerennialError
from contracts.core.features import Columns
from contracts.core.verdict import as_json
from flows.training import cluster
from flows.training.dataset import TrainingSet, read_training_set
from registry import data, models, settings
from registry.context import ROOT, ModelContext, fetch_version
from registry.events import Registered
from service.model import TWIN, Model, records_of_columns
from service.profiles import bins_in

PACKAGES = ("numpy", "pandas", "pandera", "scikit-learn", "xgboost-cpu", "whylogs", "bentoml")
SAMPLES = 200

log = logging.getLogger("perennial.train")


def judged_from(context: ModelContext, source: data.DataVersion) -> datetime:
    """The start of the newest labelled window: older rows train, newer ones judge."""
    return datetime.fromisoformat(source.end) - context.contract.gate.window


def fit_version(context: ModelContext) -> str:
    """Train on the newest data version and register the result; gives the version's digest.

    A version holds the recipe trained twice: the *twin* on all but the newest labelled window, for the
    gate to judge on rows it never saw, and the model that serves, on every row, in as many rounds.
    """
    source = data.newest(context.store, context.name)
    with gathered(context, source) as rows:
        files, metrics = fitted(context, rows)
    manifest = _manifest(context, source, metrics,
                         rows.older) | ({"workers": rows.workers} if rows.workers > 1 else {})
    version = models.save(context.store, context.name, files, manifest)
    context.ledger.registered(Registered(
        version=version, data=source.digest, rounds=metrics["rounds"], git=git_revision(),
        bins_of=context.ledger.state().champion))
    return version


@contextmanager
def gathered(context: ModelContext,
             source: data.DataVersion) -> Iterator[TrainingSet | cluster.DistributedTrainingSet]:
    """The rows of a data version as they are trained on: here,
    or on the Dask cluster that the environment names."""
    cut, address = judged_from(context, source), settings.dask_address()
    if address:
        with cluster.dask_client(address) as client, cluster.lost_workers_named(address):
            yield cluster.distribute(client, context.contract, context.store.address, source, cut)
    else:
        chunks = data.chunks(context.store, source, context.contract.training_columns)
        with closing(read_training_set(context.contract, chunks, source.rows, cut, context.run / "training",
                                       log.info)) as rows:
            yield rows


def fitted(context: ModelContext,
           rows: TrainingSet | cluster.DistributedTrainingSet) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A version's files by name, and its metrics."""
    if rows.older < 2 or rows.older == rows.rows:  # early stopping holds back one of those that train
        raise PerennialError(f"{context.name}: {rows.older} of {rows.rows} rows are older than the gate's "
                             f"window, which starts at {rows.cut}; 2 must be, to train, and 1 in it, to "
                             f"judge: ingest more first")
    contract, history = context.contract, rows.rounds()
    model, champion = rows.fit(history["rounds"]), context.ledger.state().champion
    before = bins_in(fetch_version(context, champion)) if champion else {}
    # What is learnt of ordinary traffic keeps one core busy, and a training hardly notices.
    with ThreadPoolExecutor(1) as beside:
        training, sample = beside.submit(rows.fit, history["rounds"], older=True), rows.sample
        references = learn_references(model, sample, before)
        twin = training.result()
    return (model.files() | twin.files(TWIN)
            | {REFERENCE_FILE: reference.encode_references(references),
               "samples.json": json.dumps(_samples(model, sample)).encode(),
               "contract.json": json.dumps(contract.describe(), indent=1, sort_keys=True,
                                           ensure_ascii=False).encode()},
            history | {"newest_window": as_json(classification_metrics(contract, *rows.newest(twin)))})


def learn_references(model: Model, sample: Columns,
                     before: Mapping[str, Bins]) -> dict[str, reference.Reference]:
    """What later traffic of a model is compared with, in bins that divide the champion's."""
    contract, probabilities = model.contract, model.probabilities(sample)
    seen = monitored_columns(contract, sample, probabilities, model.classes(probabilities))
    return reference.learn_reference(seen, sample[contract.event_time], contract.drift.window,
                                     contract.drift.false_alarms, before)


def _samples(model: Model, columns: Columns) -> dict[str, Any]:
    """Records as a caller would send them, and what the trainer answers: every replica must say the same.

    Spread over all the rows: those of a single cold night would show no fault in how the temperature is read.
    """
    rows = np.linspace(0, len(columns[model.contract.event_time]) - 1, SAMPLES).astype(int)
    some = {name: values[rows] for name, values in columns.items()}
    return {"records": records_of_columns(model.contract, some),
            "probabilities": model.probabilities(some).tolist()}


def _manifest(context: ModelContext, source: data.DataVersion, metrics: dict[str, Any],
              twin_rows: int) -> models.Manifest:
    contract = context.contract
    return {"model": context.name, "contract": contract.digest, "classes": list(contract.label.classes),
            "features": [feature.name for feature in contract.features], "data": source.as_json(),
            "rows": source.rows, "twin_rows": twin_rows,
            "judged_from": judged_from(context, source).isoformat(), "metrics": metrics,
            "seed": contract.seed, "code": code_digest(contract),
            "packages": {name: installed(name) for name in PACKAGES}}


def code_digest(contract: Contract) -> str:
    """The digest of the code that fits a model and answers
    with it: its contract, what that imports, and the core."""
    needed = imported_modules("service.bento", contract.module)
    needed |= {name: file for name, file in imported_modules(__name__).items()
               if name.startswith(("contracts.core", "flows.training"))}
    return digest_of({name: sha256(file.read_bytes()).hexdigest() for name, file in needed.items()})


def git_revision() -> str | None:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                           check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None
