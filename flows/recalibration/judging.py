"""Judge a recalibrated version by the gate, on rows that its layer was not fitted to."""

from dataclasses import replace
from datetime import datetime

import numpy as np

from contracts.core.calibration import Calibration
from contracts.core.gate import gate
from contracts.core.gate_verdict import GateVerdict
from contracts.core.recalibration import cross_fitted
from flows.recalibration.evidence import labelled_answers
from flows.recalibration.version import policy_of
from flows.training.judging import disagreement, latency, saved_answers
from registry import models
from registry.context import ModelContext, fetch_version
from service.model import load_model


def evaluate_recalibrated(context: ModelContext, version: str, champion: str) -> GateVerdict:
    """The gate's verdict on a recalibrated version against the champion, on the newest window of labels.

    Each day is judged by a layer that was fitted to the other days, as the twin of a training is; the layer
    that serves is fitted to all of them, and the gate's `refit_shift` limits how far the two may differ.
    """
    contract, origin = context.contract, models.manifest(context.store, context.name, version)["layer"]
    start, until = datetime.fromisoformat(origin["start"]), datetime.fromisoformat(origin["until"])
    files = fetch_version(context, version)
    model = load_model(contract, files)
    with saved_answers(context, files) as process:
        answers = labelled_answers(context, replace(model, calibration=None), start, until)
        is_judged, unseen = cross_fitted(answers, until, contract.gate.window, policy_of(context))
        judged = answers.rows(is_judged)
        refitted = applied(model.calibration, judged.probabilities)
        difference = disagreement(process, files)  # awaited before the latency is measured
    before = load_model(contract, fetch_version(context, champion)).calibration
    # By the slices that callers send: of the others no answer says in which it is.
    known = replace(contract, gate=replace(contract.gate, slices=tuple(judged.slices)))
    return gate(known, judged.labels, unseen, applied(before, judged.probabilities), judged.slices,
                latency_ms=latency(model, files), disagreement=difference,
                size_mb=sum(file.stat().st_size for file in files.iterdir()) / 2**20,
                refit_shift=float(np.abs(refitted - unseen).mean()) if len(unseen) else 0.0)


def record_recalibrated(context: ModelContext, version: str, champion: str, verdict: GateVerdict) -> None:
    """Record the verdict in the ledger, with the data version that has the labels."""
    origin = models.manifest(context.store, context.name, version)["layer"]
    context.ledger.judged(version, verdict, champion, origin["data"])


def applied(layer: Calibration | None, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities recalibrated by a layer, if there is one."""
    return probabilities if layer is None else layer.apply(probabilities)
