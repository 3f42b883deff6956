"""What Prefect knows of a run."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from contracts.core.digests import JsonObject
from contracts.core.errors import NotFound

BEGINS_WITHIN = timedelta(minutes=5)  # a run that a worker has taken; images are pulled within it, too


def find_run(run: str) -> FlowRun | None:
    """A run by its id; None if Prefect does not know it (any more)."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(UUID(run))
    except ObjectNotFound:
        return None


def waiting_runs(deployment: str) -> list[FlowRun]:
    """The runs of a deployment, as "train/flights", that are not finished."""
    return _runs(deployment, FlowRunFilterStateType(not_any_=sorted(TERMINAL_STATES)))


def last_ended(deployment: str, number: int) -> list[FlowRun]:
    """The last runs of a deployment that are finished, newest first."""
    return _runs(deployment, FlowRunFilterStateType(any_=sorted(TERMINAL_STATES)),
                 sort=FlowRunSort.END_TIME_DESC, limit=number)


def _runs(deployment: str, states: FlowRunFilterStateType, **order: Any) -> list[FlowRun]:
    flow, _, name = deployment.partition("/")
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=states)), **order)


def is_under_way(deployment: str, now: datetime) -> bool:
    """Whether a run of a deployment was begun, or should have been; `now`: machine time (UTC)."""
    return any(run.expected_start_time is None or run.expected_start_time <= now
               for run in waiting_runs(deployment))


def has_lost_its_worker(run: FlowRun, now: datetime) -> bool:
    """Whether a worker took a run and did not begin it in time; `now`: machine time (UTC)."""
    state = run.state
    return bool(state and state.is_pending() and now - state.timestamp > BEGINS_WITHIN)


def start(flow: str, model: str, parameters: JsonObject, key: str) -> str:
    """Run a flow's deployment of a model, so that its limits hold; the same `key` starts one run only.
    Returns the run's id. Where `perennial deploy` did not make one a model, the flow's own is used."""
    name = next(filter(has_deployment, (f"{flow}/{model}", f"{flow}/{flow}")), None)
    if name is None:
        raise NotFound(f"{model}: Prefect's server has no deployment {flow}/{model}; run: perennial deploy")
    run: Any = run_deployment(name, parameters={"model": model, **parameters}, timeout=0, idempotency_key=key,
                              tags=[f"model:{model}"])
    return str(run.id)


def has_deployment(name: str) -> bool:
    return _deployment(name) is not None


def is_paused(name: str) -> bool:
    """Whether a deployment, as "ingest/flights", was paused, by a person or as it has no contract."""
    deployment = _deployment(name)
    return deployment is not None and deployment.paused


def _deployment(name: str) -> DeploymentResponse | None:
    with get_client(sync_client=True) as client:
        try:
            return client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None


def is_alive(run: str) -> bool:
    """Whether a run is waiting, running or paused."""
    found = find_run(run)
    return bool(found and found.state and not found.state.is_final())


def set_state(run: str, state: State[Any]) -> None:
    """Put a run into a final state, whatever it is in."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), state, force=True)
