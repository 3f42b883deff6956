"""The flow that trains a challenger, judges it, and releases it if it passed."""

from typing import Any, NotRequired, TypedDict

from prefect import State, flow, task
from prefect.client.schemas import FlowRun

from contracts.core.verdict import GateVerdict
from flows.release import release_version
from flows.reporting.artifacts import show_gate, tag_run
from flows.training.judging import judge
from flows.training.version import fit_version
from registry.context import open_model

BY_HAND = "by hand"  # the window of a training that a person asked for


class TrainingResult(TypedDict):
    """`outcome` of the gate or the release, or "nothing to do" without an open claim; `why`: its reasons."""

    outcome: str
    window: str
    version: NotRequired[str]
    why: NotRequired[list[str]]


@flow(name="train", flow_run_name="{model} {window}")
def train(model: str, window: str = BY_HAND, reason: str = "asked by a person",
          release: bool = True) -> TrainingResult:
    """Train a challenger on the newest data version, judge it, and release it if it passed.

    `window` names the retraining that the ledger granted; a finished or unknown one is not run again.
    """
    tag_run(model)
    if not may_run(model, window):
        return {"outcome": "nothing to do", "window": window}
    version = train_version(model)
    verdict = judge_version(model, version)
    show_gate(model, version, verdict)
    outcome, why = str(verdict.outcome), verdict.reasons
    if verdict.passed and release:
        released = release_version(model, version)
        outcome, why = released["outcome"], (released["canary"] or {"reasons": ()})["reasons"]
    finish(model, window, version, outcome)
    return {"outcome": outcome, "version": version, "window": window, "why": list(why)}


@train.on_failure
def record_failure(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Record the failed run, so that the reconciler starts another, and after a few gives up."""
    if flow_run.parameters.get("window", BY_HAND) != BY_HAND:
        open_model(flow_run.parameters["model"]).ledger.retrain_failed(flow_run.parameters["window"],
                                                                       state.message or state.name
                                                                       or "failed")


def may_run(model: str, window: str) -> bool:
    """Whether the ledger holds an unfinished claim for this window; training by hand needs none."""
    if window == BY_HAND:
        return True
    claim = open_model(model).ledger.state().claims.get(window)
    return claim is not None and claim.is_granted


@task(task_run_name="fit {model}")
def train_version(model: str) -> str:
    return fit_version(open_model(model))


@task(task_run_name="judge {model} {version:.12}")
def judge_version(model: str, version: str) -> GateVerdict:
    return judge(open_model(model), version)


def finish(model: str, window: str, version: str, outcome: str) -> None:
    if window != BY_HAND:
        open_model(model).ledger.retrain_finished(window, outcome, version)
