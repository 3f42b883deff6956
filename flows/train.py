"""The flow that trains a challenger, judges it, and releases it if it passed."""

from typing import Any, NotRequired, TypedDict

from msgspec import convert
from prefect import State, flow, runtime, task
from prefect.cache_policies import INPUTS, NO_CACHE
from prefect.client.schemas import FlowRun

from contracts.core.digests import JsonObject
from contracts.core.gate_verdict import GateVerdict
from contracts.core.verdict import as_json
from flows.orchestration.events import STARTED, begin_run, emit, run_name
from flows.orchestration.results import RESUMED, resumable
from flows.orchestration.runs import is_alive
from flows.orchestration.steps import RETRIED, memory_limit
from flows.recalibration.due import ask_for_recalibration
from flows.release import release as release_flow
from flows.reporting.artifacts import show_challengers, show_gate
from flows.training.judging import choose_challenger, evaluate_version, record_verdict
from flows.training.version import (
    code_digest,
    forget_rows,
    preprocess_rows,
    register_version,
    save_version,
)
from registry import data
from registry.context import open_model
from registry.data import DataVersion

BY_HAND = "by hand"  # the window of a training that a person asked for


class TrainingResult(TypedDict):
    """`outcome` of the gate or the release, or "nothing to do" without an open claim; `why`: its reasons."""

    outcome: str
    window: str
    version: NotRequired[str]
    why: NotRequired[list[str]]


@flow(name="train", flow_run_name=run_name)
def train(model: str, window: str = BY_HAND, reason: str = "asked by a person", release: bool = True,
          cause: str | None = None) -> TrainingResult:
    """Train the contract's challengers on the newest data version, judge each, and release the best if it
    passed.

    `window` names the retraining that the ledger granted; a finished or unknown one, or one that another run
    works on, is not run again. `cause`: what started this run, for its page in Prefect.
    """
    begin_run(model, cause)
    if not may_run(model, window):
        return {"outcome": "nothing to do", "window": window}
    context = open_model(model)
    bounded, champion = resumable(context.contract.training.time), context.ledger.state().champion
    pinned = INPUTS if window != BY_HAND else NO_CACHE  # a resumed retraining goes on with its own data
    source = bounded(read_data.with_options(cache_policy=pinned))(model, window)
    rows = bounded(preprocess)(model, source, code_digest(context.contract))
    names = [challenger.name for challenger in context.contract.challengers]
    versions = {bounded(fit)(model, source, rows, champion, name): name for name in names}
    forget_rows(context, rows)
    verdicts = {version: convert(bounded(evaluate)(model, version, champion), GateVerdict)
                for version in versions}
    for version, verdict in verdicts.items():
        register(model, version, champion, as_json(verdict))
    passed = [version for version, verdict in verdicts.items() if verdict.passed]
    version = bounded(choose)(model, passed or [*versions][:1])
    verdict = verdicts[version]
    show_gate(model, version, verdict)
    if len(versions) > 1:
        show_challengers(model, versions, verdicts, version)
    outcome, why = str(verdict.outcome), verdict.reasons
    if verdict.passed and release:
        released = release_flow(model, version)
        outcome, why = released["outcome"], (released["canary"] or {"reasons": ()})["reasons"]
    finish(model, window, version, outcome)
    return {"outcome": outcome, "version": version, "window": window, "why": list(why)}


@train.on_failure
@train.on_cancellation
@train.on_crashed
def record_failure(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Record the run that failed, was cancelled or ran out of time; after a few the retraining is given up.
    A run that was killed can't: the reconciler records it."""
    window = flow_run.parameters.get("window", BY_HAND)
    if window != BY_HAND:
        context = open_model(flow_run.parameters["model"])
        context.ledger.retrain_failed(window, f"{state.name}: {state.message or ''}",
                                      context.contract.training.attempts, str(flow_run.id))


def may_run(model: str, window: str) -> bool:
    """Whether this run may do the retraining that the ledger granted; training by hand needs no grant."""
    if window == BY_HAND:
        return True
    run = str(runtime.flow_run.id)
    started = open_model(model).ledger.start_retraining(window, run, is_alive)
    if started:
        emit(model, STARTED, f"{window} {run}", {"window": window})
    return started


@task(task_run_name="read data of {model}", **RETRIED, **RESUMED)
def read_data(model: str, window: str) -> JsonObject:
    """The data version to train on: the newest when the retraining first ran."""
    context = open_model(model)
    return data.newest(context.store, context.name).as_json()


@task(task_run_name="preprocess {model}", **RETRIED, **RESUMED)
def preprocess(model: str, source: JsonObject, code: str) -> str:
    """The name of the training set on this machine's disk; `code`: the digest of the code that makes it."""
    context = open_model(model)
    with memory_limit(model, context.contract.training.memory_gb):
        return preprocess_rows(context, DataVersion.from_json(source), code)


@task(task_run_name="fit {model}", **RETRIED, **RESUMED)
def fit(model: str, source: JsonObject, rows: str, champion: str | None, challenger: str) -> str:
    """The version that was trained, its files stored; its bins divide those of the `champion`. `challenger`:
    which of the contract's."""
    context = open_model(model)
    [chosen] = [one for one in context.contract.challengers if one.name == challenger]
    with memory_limit(model, context.contract.training.memory_gb):
        return save_version(context, DataVersion.from_json(source), rows, chosen)


@task(task_run_name="evaluate {model} {version:.12}", **RETRIED, **RESUMED)
def evaluate(model: str, version: str, champion: str | None) -> JsonObject:
    """The gate's verdict on a version against the champion, as JSON."""
    return as_json(evaluate_version(open_model(model), version, champion))


@task(task_run_name="choose a challenger of {model}", **RETRIED, **RESUMED)
def choose(model: str, versions: list[str]) -> str:
    """The challenger to release, of those that the gate passed, the simplest first."""
    return choose_challenger(open_model(model), versions)


@task(task_run_name="register {model} {version:.12}", **RETRIED)
def register(model: str, version: str, champion: str | None, verdict: JsonObject) -> None:
    """Record the version and the gate's verdict in the ledger."""
    context = open_model(model)
    register_version(context, version, champion)
    record_verdict(context, version, champion, convert(verdict, GateVerdict))


def finish(model: str, window: str, version: str, outcome: str) -> None:
    if window != BY_HAND:
        open_model(model).ledger.retrain_finished(window, outcome, version)
        ask_for_recalibration(model)  # which waited for it
