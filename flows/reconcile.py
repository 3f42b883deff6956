"""The flow that makes up for lost events and killed runs: windows that were not
judged, granted retrainings that did not run, a champion without replicas."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from prefect import flow
from prefect.deployments import run_deployment

from contracts.core.loading import known_models
from contracts.core.verdict import Action
from flows.monitor import announce, monitor
from flows.monitoring.alerts import update_alerts
from flows.monitoring.decision import record_and_decide
from flows.monitoring.windows import due, stale, windows_of_traffic
from flows.release import release_version
from flows.releasing.rollout import RolloutResult, is_served
from registry.context import ModelContext, open_model
from registry.traffic import ship

log = logging.getLogger("perennial.monitor")
LONGEST_TRAINING = timedelta(minutes=10)  # after which a claim without an end counts as lost


class Reconciled(TypedDict):
    """What was done for a model: the action of each window judged, why its labels
    are stale, the training runs started, and the release of its champion."""

    windows: dict[str, str]
    stale: list[str]
    trainings: list[str]
    released: RolloutResult | None


@flow(name="reconcile")
def reconcile(names: list[str] | None = None) -> dict[str, Reconciled]:
    """Do what is overdue: judge closed windows, start granted retrainings, start the champion's replicas."""
    done: dict[str, Reconciled] = {}
    for model in names or known_models():
        context = open_model(model)
        ship(context)
        if missed := stale(context):
            log.error("%s is stale: %s", model, "; ".join(missed.reasons))
            announce(model, str(missed.figures.since), missed, Action.PAGE)
            update_alerts(context, max(windows_of_traffic(context)).isoformat(), missed, Action.PAGE)
        resend_alerts(context)
        judged = {window.isoformat(): monitor(model, window.isoformat())["action"] for window in due(context)}
        started = [start_training(model, window) for window in overdue_claims(context)]
        champion = context.ledger.state().champion
        released = release_version(model, champion) if champion and not is_served(context) else None
        done[model] = {"windows": judged, "stale": [*missed.reasons] if missed else [], "trainings": started,
                       "released": released}
    return done


def resend_alerts(context: ModelContext) -> None:
    """Update the alerts of the newest judged window again: the run that judged it may have been killed."""
    windows = context.ledger.state().windows
    if windows:
        newest = max(windows)
        verdict = windows[newest].verdict
        update_alerts(context, newest, verdict,
                      record_and_decide(context, datetime.fromisoformat(newest), verdict))


def start_training(model: str, window: str) -> str:
    """Run the deployment, not the flow, so that its concurrency limit holds; returns the run's name."""
    parameters = {"model": model, "window": window, "reason": "reconciled: its event was lost"}
    run: Any = run_deployment("train/train", parameters=parameters, timeout=0, tags=[f"model:{model}"])
    return str(run.name)


def overdue_claims(context: ModelContext) -> list[str]:
    """Granted retrainings that are not finished after LONGEST_TRAINING: their event or run was lost."""
    late = datetime.now(UTC) - LONGEST_TRAINING
    claims = context.ledger.state().claims
    return [key for key, claim in claims.items() if claim.is_granted and claim.at and claim.at < late]
