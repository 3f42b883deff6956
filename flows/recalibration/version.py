"""Make a recalibrated version: fit the layer, and store it with the files of the version it is laid on."""

import json
from dataclasses import asdict, replace

from contracts.core.binning import REFERENCE_FILE
from contracts.core.classification import is_output
from contracts.core.digests import plain_json
from contracts.core.features import Columns
from contracts.core.policies import Recalibration
from contracts.core.recalibration import fit_layer
from contracts.core.reference import decode_references, encode_references
from flows.monitoring.windows import known_labels
from flows.recalibration.due import DueRecalibration
from flows.recalibration.evidence import labelled_answers
from flows.training.dataset import SAMPLE, sampled, sorted_sample
from flows.training.version import git_revision, learn_references
from registry import data, models
from registry.context import ModelContext, fetch_version
from registry.events import Layer, Registered
from service.model import SERVED, TWIN, Model, columns_of_records, load_model
from service.profiles import bins_in


def save_recalibrated(context: ModelContext, due: DueRecalibration) -> str:
    """Fit the layer and store the version; returns its digest. The same labels make the same version."""
    policy = policy_of(context)
    labels, newest = known_labels(context), data.newest(context.store, context.name)
    booster = load_model(context.contract, fetch_version(context, due.base))
    answers = labelled_answers(context, booster, due.start, due.until)
    layer = fit_layer(answers, due.until, policy)
    manifest = dict(models.manifest(context.store, context.name, due.base))
    manifest["layer"] = models.LayerOrigin(
        base=due.base, before=due.champion, start=due.start.isoformat(), until=due.until.isoformat(),
        rows=len(answers.labels), data=newest.digest, labels=labels, bias=list(layer.bias),
        temperature=layer.temperature, policy=plain_json(asdict(policy)))
    files = _files(context, replace(booster, calibration=layer), due.base)
    return models.save(context.store, context.name, files, manifest)  # type: ignore[arg-type]  # its keys


def policy_of(context: ModelContext) -> Recalibration:
    """The contract's settings of recalibration; the usual ones where it has none by now."""
    return context.contract.recalibration or Recalibration()


def register_recalibrated(context: ModelContext, version: str) -> str:
    """Record a recalibrated version; returns the one that the ledger has for these labels, which another run
    may have recorded first."""
    manifest = models.manifest(context.store, context.name, version)
    origin = manifest["layer"]
    layer = Layer(base=origin["base"], start=origin["start"], until=origin["until"], rows=origin["rows"])
    context.ledger.registered(Registered(
        version=version, data=origin["data"], rounds=manifest["metrics"]["rounds"], git=git_revision(),
        bins_of=origin["base"], layer=layer))
    return next(known for known, other in context.ledger.state().layers.items()
                if (other.base, other.until) == (layer.base, layer.until))


def _files(context: ModelContext, model: Model, base: str) -> dict[str, bytes]:
    """The version's files: those of its base, but for the layer and what follows from the answers."""
    folder = fetch_version(context, base)
    files = {name: (folder / name).read_bytes()
             for name in models.manifest(context.store, context.name, base)["files"]
             if not name.startswith(f"{TWIN}.")}
    made = model.files()
    del made[f"{SERVED}.ubj"]  # the very bytes of the base
    samples = json.loads(files["samples.json"])
    samples["probabilities"] = model.probabilities(
        columns_of_records(model.contract, samples["records"])).tolist()
    sample = _training_sample(context, base)
    references = learn_references(model, sample, bins_in(folder))
    known = decode_references(files[REFERENCE_FILE])
    outputs = {name: reference for name, reference in references.items() if is_output(name)}
    return files | made | {"samples.json": json.dumps(samples).encode(),
                           REFERENCE_FILE: encode_references(known | outputs)}


def _training_sample(context: ModelContext, base: str) -> Columns:
    """An even sample of the rows that a version was trained on."""
    contract = context.contract
    source = data.DataVersion.from_json(models.manifest(context.store, context.name, base)["data"])
    every, read, parts = -(-source.rows // SAMPLE), 0, []
    for chunk in data.chunks(context.store, source, contract.request_columns):
        chosen = sampled(read, len(chunk), every) == 0
        parts.append(contract.columns_of(chunk[chosen]))
        read += len(chunk)
    return sorted_sample(contract, parts)
