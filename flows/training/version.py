"""Train a version of a model and register it."""

import json
import logging
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version as installed

import numpy as np

from contracts.core import reference
from contracts.core.binning import REFERENCE_FILE, Bins, monitored_columns
from contracts.core.challenger_policy import ALL_ROWS, Challenger
from contracts.core.classification import classification_metrics
from contracts.core.contract import Contract
from contracts.core.dependencies import imported_modules
from contracts.core.digests import JsonObject, digest_of, plain_json
from contracts.core.errors import PerennialError
from contracts.core.features import Columns
from contracts.core.ordinary import BASELINE_FILE, encode_baseline
from contracts.core.verdict import as_json
from flows.training import cluster
from flows.training.dataset import SAMPLE_LABEL, TrainingSet, read_training_set
from flows.training.kept import building, has_training_set, keep_training_set, open_training_set
from flows.training.out_of_time import learn_outcome_baseline
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
    contract = context.contract
    return source.complete_until(contract.schedule.stale_after) - contract.gate.window


def fit_version(context: ModelContext) -> str:
    """Train on the newest data version and register the result; returns the version's digest."""
    source, champion = data.newest(context.store, context.name), context.ledger.state().champion
    rows = preprocess_rows(context, source, code_digest(context.contract))
    version = save_version(context, source, rows, context.contract.challengers[0])
    forget_rows(context, rows)
    register_version(context, version, champion)
    return version


def preprocess_rows(context: ModelContext, source: data.DataVersion, code: str) -> str:
    """Read a data version's rows into a training set on this machine's disk, and return its name, which
    follows from the rows, the contract and the code. With Dask its workers read them, in `save_version`."""
    name = digest_of([source.digest, context.contract.digest, code])
    folder, cut = context.run / "training" / name, judged_from(context, source)
    if not settings.dask_address() and not has_training_set(folder):
        chunks = data.chunks(context.store, source, context.contract.training_columns)
        with building(folder) as unfinished, closing(read_training_set(
                context.contract, chunks, source.rows, cut, unfinished, log.info, keep=True)) as rows:
            keep_training_set(rows, unfinished)
    return name


def save_version(context: ModelContext, source: data.DataVersion, rows: str,
                 challenger: Challenger = ALL_ROWS) -> str:
    """Train a challenger on its choice of the training set `rows` of a data version and store the files;
    returns the version's digest.

    A version is trained twice with the same number of rounds: the *twin* on all rows but the newest labelled
    window, so that the gate can judge it there, and the model that serves on every row.
    """
    with training_rows(context, source, rows) as training_set:
        files, metrics = train_files(context, training_set.of(challenger))
    manifest = _manifest(context, source, metrics, training_set.older)
    if training_set.workers > 1:
        manifest["workers"] = training_set.workers
    if challenger != ALL_ROWS:
        manifest["challenger"] = plain_json(asdict(challenger))
    return models.save(context.store, context.name, files, manifest)


def forget_rows(context: ModelContext, rows: str) -> None:
    """Delete a training set from this machine's disk, once all challengers are trained on it."""
    shutil.rmtree(context.run / "training" / rows, ignore_errors=True)


def register_version(context: ModelContext, version: str, champion: str | None) -> None:
    """Record a version in the ledger; `champion`: whose bins its own divide."""
    manifest = models.manifest(context.store, context.name, version)
    challenger = manifest.get("challenger", {}).get("name")
    context.ledger.registered(Registered(version=version, data=manifest["data"]["digest"],
                                         rounds=manifest["metrics"]["rounds"], git=git_revision(),
                                         bins_of=champion, challenger=challenger))


@contextmanager
def training_rows(context: ModelContext, source: data.DataVersion,
                  rows: str) -> Iterator[TrainingSet | cluster.DistributedTrainingSet]:
    """A data version's training set: the one that `preprocess_rows` made on this machine, made again where
    another machine did; or on the Dask cluster of PERENNIAL_DASK."""
    cut, address = judged_from(context, source), settings.dask_address()
    if address:
        with cluster.dask_client(address) as client, cluster.named_worker_losses(address):
            yield cluster.distribute(client, context.contract, context.store.address, source, cut)
    else:
        folder = context.run / "training" / rows
        if not has_training_set(folder):
            preprocess_rows(context, source, code_digest(context.contract))
        with closing(open_training_set(context.contract, folder)) as kept:
            yield kept


def train_files(
    context: ModelContext, rows: TrainingSet | cluster.DistributedTrainingSet,
) -> tuple[dict[str, bytes], models.TrainingMetrics]:
    """A version's files by name, and its metrics."""
    if rows.older < 2 or rows.older == rows.rows:  # early stopping needs one row besides those it trains on
        raise PerennialError(f"{context.name}: {rows.older} of {rows.rows} rows are older than the gate's "
                             f"window, which starts at {rows.cut}; 2 must be, to train, and 1 in it, to "
                             f"judge: ingest more first")
    contract, stopping = context.contract, rows.rounds()
    model, champion = rows.fit(stopping["rounds"]), context.ledger.state().champion
    before = bins_in(fetch_version(context, champion)) if champion else {}
    # Learning the reference keeps one core busy, which hardly slows the training down.
    with ThreadPoolExecutor(1) as executor:
        training = executor.submit(rows.fit, stopping["rounds"], older=True)
        columns = dict(rows.sample)
        labels = columns.pop(SAMPLE_LABEL)
        references = learn_references(model, columns, before)
        twin = training.result()
    baseline = learn_outcome_baseline(model, columns, labels, stopping["rounds"])
    metrics: models.TrainingMetrics = {
        **stopping, "newest_window": as_json(classification_metrics(contract, *rows.newest(twin)))}
    return {**model.files(), **twin.files(TWIN),
            REFERENCE_FILE: reference.encode_references(references),
            **({BASELINE_FILE: encode_baseline(baseline)} if baseline else {}),
            "samples.json": json.dumps(_sample_records(model, columns)).encode(),
            "contract.json": json.dumps(contract.describe(), indent=1, sort_keys=True,
                                        ensure_ascii=False).encode()}, metrics


def learn_references(model: Model, sample: Columns,
                     before: Mapping[str, Bins]) -> dict[str, reference.Reference]:
    """The reference of the model's later traffic, in bins that divide the champion's."""
    contract, probabilities = model.contract, model.probabilities(sample)
    monitored = monitored_columns(contract, sample, probabilities, model.classes(probabilities))
    return reference.learn_reference(monitored, sample[contract.event_time], contract.drift.window,
                                     contract.drift.false_alarms, before)


def _sample_records(model: Model, columns: Columns) -> JsonObject:
    """Sample records as a caller would send them, and the trainer's answers, which every replica must give.

    They are spread over all rows: those of a single cold night would not show that a replica misreads heat.
    """
    rows = np.linspace(0, len(columns[model.contract.event_time]) - 1, SAMPLES).astype(int)
    sampled = {name: values[rows] for name, values in columns.items()}
    return {"records": records_of_columns(model.contract, sampled),
            "probabilities": model.probabilities(sampled).tolist()}


def _manifest(context: ModelContext, source: data.DataVersion, metrics: models.TrainingMetrics,
              twin_rows: int) -> models.Manifest:
    contract = context.contract
    return {"model": context.name, "contract": contract.digest, "classes": list(contract.label.classes),
            "features": [feature.name for feature in contract.features], "data": source.as_json(),
            "rows": source.rows, "twin_rows": twin_rows,
            "judged_from": judged_from(context, source).isoformat(), "metrics": metrics,
            "seed": contract.seed, "code": code_digest(contract),
            "packages": {name: installed(name) for name in PACKAGES}}


def code_digest(contract: Contract) -> str:
    """The digest of the code that trains a model and serves it: its
    contract and what that imports, the service, the core, and the training."""
    modules = imported_modules("service.bento", contract.module)
    modules |= {name: file for name, file in imported_modules(__name__).items()
               if name.startswith(("contracts.core", "flows.training"))}
    return digest_of({name: sha256(file.read_bytes()).hexdigest() for name, file in modules.items()})


def git_revision() -> str | None:
    completed = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                           check=False)
    return completed.stdout.strip() if completed.returncode == 0 else None
