"""The flow that recalibrates the champion on labels, judges the result, and releases it if it passed."""

from typing import NotRequired, TypedDict

from msgspec import convert
from prefect import flow, task

from contracts.core.digests import JsonObject
from contracts.core.gate_verdict import GateVerdict
from contracts.core.verdict import as_json
from flows.monitoring.faults import RunFault, tell_of_failure, tell_of_success
from flows.orchestration.events import begin_run, run_name
from flows.orchestration.results import RESUMED, resumable
from flows.orchestration.steps import RETRIED, memory_limit
from flows.recalibration.due import DueRecalibration, NotDue, due_recalibration
from flows.recalibration.judging import evaluate_recalibrated, record_recalibrated
from flows.recalibration.version import register_recalibrated, save_recalibrated
from flows.release import release as release_flow
from flows.reporting.artifacts import show_gate
from registry.context import open_model


class RecalibrationResult(TypedDict):
    """`outcome` of the gate or the release, or "nothing to do"; `why`: its reasons."""

    outcome: str
    why: list[str]
    version: NotRequired[str]


@flow(name="recalibrate", flow_run_name=run_name)
def recalibrate(model: str, by_hand: bool = False, cause: str | None = None) -> RecalibrationResult:
    """Fit a layer to the labels that came since, on the champion's booster, judge it on rows that it was not
    fitted to, and release it if it passed.

    Nothing is done while a retraining is under way, or before it is due; `by_hand`: whenever there are newer
    labels. `cause`: what started this run, for its page in Prefect.
    """
    begin_run(model, cause)
    context = open_model(model)
    due = due_recalibration(context, by_hand)
    if isinstance(due, NotDue):
        return {"outcome": "nothing to do", "why": [due.why]}
    bounded = resumable(context.contract.training.time)
    version = register(model, bounded(fit)(model, as_json(due)))
    verdict = convert(bounded(evaluate)(model, version, due.champion), GateVerdict)
    record(model, version, due.champion, as_json(verdict))
    show_gate(model, version, verdict)
    if not verdict.passed:
        return {"outcome": str(verdict.outcome), "version": version, "why": list(verdict.reasons)}
    if isinstance(still := due_recalibration(context), NotDue):
        return {"outcome": str(verdict.outcome), "version": version, "why": [f"not released: {still.why}"]}
    released = release_flow(model, version)
    why = (released["canary"] or {"reasons": ()})["reasons"]
    return {"outcome": released["outcome"], "version": version, "why": list(why)}


recalibrate.on_failure(tell_of_failure(RunFault.RECALIBRATE))
recalibrate.on_completion(tell_of_success(RunFault.RECALIBRATE))


@task(task_run_name="fit a layer for {model}", **RETRIED, **RESUMED)
def fit(model: str, due: JsonObject) -> str:
    """The recalibrated version, its files stored."""
    context = open_model(model)
    with memory_limit(model, context.contract.training.memory_gb):
        return save_recalibrated(context, convert(due, DueRecalibration))


@task(task_run_name="register the recalibration of {model}", **RETRIED)
def register(model: str, version: str) -> str:
    """Record the version; returns the one that the ledger has for these labels."""
    return register_recalibrated(open_model(model), version)


@task(task_run_name="evaluate {model} {version:.12}", **RETRIED, **RESUMED)
def evaluate(model: str, version: str, champion: str) -> JsonObject:
    """The gate's verdict on the version against the champion, as JSON."""
    context = open_model(model)
    with memory_limit(model, context.contract.training.memory_gb):
        return as_json(evaluate_recalibrated(context, version, champion))


@task(task_run_name="record the verdict on {model} {version:.12}", **RETRIED)
def record(model: str, version: str, champion: str, verdict: JsonObject) -> None:
    record_recalibrated(open_model(model), version, champion, convert(verdict, GateVerdict))
