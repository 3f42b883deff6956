"""The flow that makes up for lost events and killed runs, at every link of the chain: data that was not
looked for, windows that were not judged, granted retrainings that did not run, a champion without replicas.
"""

import logging
from typing import TypedDict

from prefect import flow
from prefect.client.schemas import FlowRun
from prefect.states import Cancelling, Crashed

from contracts.core.errors import PerennialError, Stale
from contracts.core.loading import known_models
from contracts.core.retraining import Claim
from contracts.core.verdict import Action
from flows.ingest import ingest
from flows.monitor import announce, monitor
from flows.monitoring.alerts import (
    update_alerts,
    update_claim_alerts,
    update_stale_alert,
    update_window_alerts,
)
from flows.monitoring.faults import RunFault, end_fault, raise_fault
from flows.monitoring.windows import due, stale_labels, windows_of_traffic
from flows.orchestration.events import run_name
from flows.orchestration.recurrence import is_look_overdue, next_look
from flows.orchestration.runs import (
    find_run,
    has_deployment,
    has_lost_its_worker,
    is_paused,
    is_under_way,
    last_ended,
    set_state,
    start,
    waiting_runs,
)
from flows.recalibrate import recalibrate
from flows.recalibration.due import NotDue, due_recalibration
from flows.release import TIME_LIMIT, release
from flows.releasing.rollout import is_served
from registry import data
from registry.clock import machine_time
from registry.context import ModelContext, open_model

log = logging.getLogger("perennial.reconcile")


class Reconciled(TypedDict):
    """What was done for a model: whether a look for data was started, the windows judged, the runs of
    retrainings that were started, whether its champion was recalibrated, and whether it was released again.
    `faults`: what went wrong meanwhile."""

    looked: bool
    judged: list[str]
    trainings: list[str]
    recalibrated: bool
    released: bool
    faults: list[str]


@flow(name="reconcile", flow_run_name=run_name)
def reconcile(names: list[str] | None = None) -> dict[str, Reconciled]:
    """Do what is overdue for each model. What fails of one holds up no other; in the end it fails the run."""
    done = {model: reconcile_model(model) for model in names or known_models()}
    faults = [f"{model}: {fault}" for model, result in done.items() for fault in result["faults"]]
    if faults:
        raise PerennialError("; ".join(faults))
    return done


def reconcile_model(model: str) -> Reconciled:
    """Do what is overdue for one model, each part whether or not the others fail."""
    result: Reconciled = {"looked": False, "judged": [], "trainings": [], "recalibrated": False,
                          "released": False, "faults": []}
    try:
        open_model(model).ledger.state()
        end_fault(model, RunFault.OPEN)
    except Exception as error:  # of the contract, the ledger, or a store that does not answer
        return result | {"faults": [str(error), *_told(model, error)]}
    for name, part in (("data", look), ("windows", judge_due), ("retrainings", run_claims),
                       ("recalibration", recalibrate_champion), ("crashes", tell_crashes),
                       ("labels", tell_stale_labels), ("alerts", resend_alerts),
                       ("replicas", serve_champion)):
        try:
            part(model, result)
        except Exception as error:  # of a contract's author, a source, the store: told, and the rest goes on
            log.error("%s: %s: %s", model, name, error, extra={"model": model})
            result["faults"].append(f"{name}: {type(error).__name__}: {error}")
    return result


def _told(model: str, error: Exception) -> list[str]:
    """Tell a person that the model can't be opened; returns why that was not possible, if it was not."""
    try:
        raise_fault(model, RunFault.OPEN, str(error))
    except Exception as fault:  # Prefect's server may be down, too
        log.error("%s: nobody could be told: %s", model, fault, extra={"model": model})
        return [str(fault)]
    return []


def look(model: str, result: Reconciled) -> None:
    """Start a look for data, if the contract's schedule has passed a time at which nothing was looked for.

    It is a run of its own, so that a source that hangs holds up nothing else.
    """
    deployment, now = f"ingest/{model}", machine_time()
    if not is_look_overdue(open_model(model)) or is_paused(deployment) or is_under_way(deployment, now):
        return
    result["looked"] = True
    if has_deployment(deployment):
        start("ingest", model, {}, key=f"look for {model} at {now.isoformat()}")
        return
    try:  # `perennial deploy` was not called: a flow's own deployment has one place for all models
        ingest(model)
    except Stale as error:  # of which there is an alert
        log.warning("%s: %s", model, error, extra={"model": model})


def judge_due(model: str, result: Reconciled) -> None:
    """Judge the windows that are due, and ask for a first training."""
    context = open_model(model)
    if data.versions(context.store, context.name) and (due(context) or not context.ledger.state().champion):
        result["judged"] = list(monitor(model))


def run_claims(model: str, result: Reconciled) -> None:
    """Record the runs of granted retrainings that died, and start those that no run works on."""
    context = open_model(model)
    for claim in _granted(context):
        _record_dead_run(context, claim)
    for claim in _granted(context):
        if claim.run is None and not _is_waiting(model, claim):
            run = start("train", model, {"window": claim.key,
                                         "reason": f"{claim.reason}; its event or its run was lost"},
                        key=f"{model}/{claim.key}/{claim.failures}")
            ended = find_run(run)
            if ended and ended.state and ended.state.is_final():
                # One that was started before under this key, and died before the ledger knew of it.
                context.ledger.retrain_failed(claim.key, _how_it_ended(ended),
                                              context.contract.training.attempts)
            else:
                result["trainings"].append(run)


def _granted(context: ModelContext) -> list[Claim]:
    return [claim for claim in context.ledger.state().claims.values() if claim.is_granted]


def _record_dead_run(context: ModelContext, claim: Claim) -> None:
    """Record that a retraining's run has ended without a result, or took too long and is ended now."""
    if claim.run is None or claim.at is None:
        return
    run, limits = find_run(claim.run), context.contract.training
    if run and run.state and not run.state.is_final():
        allowed = limits.time + TIME_LIMIT
        if machine_time() - claim.at < allowed:
            return
        if not run.state.is_cancelling():
            set_state(claim.run, Cancelling(message=f"still under way after {allowed}"))
            return  # until the worker has ended its process, or there is none that does
        set_state(claim.run, Crashed(message=f"still under way after {allowed}, and no worker ended it"))
    context.ledger.retrain_failed(claim.key, _how_it_ended(run), limits.attempts, claim.run)


def _how_it_ended(run: FlowRun | None) -> str:
    return f"{run.state.name}: {run.state.message or ''}" if run and run.state else "Prefect has lost its run"


def _is_waiting(model: str, claim: Claim) -> bool:
    """Whether a run for the claim was created and will begin; ends one whose worker died before that."""
    waiting = [run for run in (*waiting_runs(f"train/{model}"), *waiting_runs("train/train"))
               if (run.parameters.get("window"), run.parameters.get("model")) == (claim.key, model)]
    lost = [run for run in waiting if has_lost_its_worker(run, machine_time())]
    for run in lost:
        set_state(str(run.id), Crashed(message="its worker died before it began"))
    return len(waiting) > len(lost)


def recalibrate_champion(model: str, result: Reconciled) -> None:
    """Start a recalibration that is due, unless a run is under way."""
    deployment, due, now = f"recalibrate/{model}", due_recalibration(open_model(model)), machine_time()
    if isinstance(due, NotDue) or is_paused(deployment) or is_under_way(deployment, now):
        return
    result["recalibrated"] = True
    if has_deployment(deployment):
        start("recalibrate", model, {}, key=f"recalibrate {model} {due.key} at {now.isoformat()}")
    else:  # `perennial deploy` was not called
        recalibrate(model)


def tell_crashes(model: str, result: Reconciled) -> None:
    """Page a person if a flow's last two runs were killed: such a run can't tell of it by itself."""
    for flow_name, fault in (("ingest", RunFault.INGEST), ("monitor", RunFault.MONITOR),
                             ("recalibrate", RunFault.RECALIBRATE), ("release", RunFault.RELEASE)):
        last = last_ended(f"{flow_name}/{model}", 2)
        if len(last) == 2 and all(run.state and run.state.is_crashed() for run in last):
            raise_fault(model, fault, f"the last two runs were killed, the last: {_how_it_ended(last[0])}")


def tell_stale_labels(model: str, result: Reconciled) -> None:
    """Page a person if labels stay away though there is traffic."""
    context = open_model(model)
    verdict = stale_labels(context)
    if verdict:
        window = max(windows_of_traffic(context)).isoformat()
        announce(model, window, verdict, Action.PAGE)
        update_alerts(context, window, verdict, Action.PAGE)


def resend_alerts(model: str, result: Reconciled) -> None:
    """Bring the alerts up to date: the run that judged the newest window may have been killed."""
    context = open_model(model)
    update_window_alerts(context)
    update_claim_alerts(context)
    if next_look(context):  # else a person brings the data
        update_stale_alert(context)


def serve_champion(model: str, result: Reconciled) -> None:
    """Release the champion again, if this machine serves the model and its replicas are not complete."""
    context = open_model(model)
    champion = context.ledger.state().champion
    if champion and not is_served(context):
        release(model, champion)
        result["released"] = True
