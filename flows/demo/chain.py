"""What the replay reads of the chain of runs: it waits for it, and shows it; it starts nothing."""

import asyncio
import time
from datetime import datetime
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from contracts.core.digests import JsonObject
from contracts.core.errors import PerennialError
from registry.context import ModelContext
from registry.settings import demo_folder

PATIENCE = 240  # seconds in which a link of the chain must have ended
LOOK = 0.5


async def ended_run(flow: str, model: str, since: datetime) -> FlowRun:
    """The first run of a model's flow that was created at `since` (UTC) or later, once it has ended."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for run in await asyncio.to_thread(runs_of, flow, model):
            if run.created and run.created >= since and run.state and run.state.is_final():
                return run
        await asyncio.sleep(LOOK)
    raise PerennialError(f"{flow}/{model} did not end within {PATIENCE} s; its worker's log says why: "
                         f"{demo_folder() / 'run' / 'logs' / 'prefect-worker.log'}")


def runs_of(flow: str, model: str) -> list[FlowRun]:
    """The newest runs of a model's flow, oldest first."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"{flow}/{model}").id
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment])),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=5)
    return sorted(runs, key=lambda run: str(run.created))


def all_runs() -> list[FlowRun]:
    """Every run that Prefect has, but for those that are only planned."""
    runs: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while page := client.read_flow_runs(sort=FlowRunSort.ID_DESC, limit=200, offset=len(runs)):
            runs += page
    return [run for run in runs if run.state and not run.state.is_scheduled()]


def chains(context: ModelContext, runs: list[FlowRun]) -> list[JsonObject]:
    """Each retraining of a model, from its cause to what became of it, oldest first."""
    by_id = {str(run.id): run for run in runs}
    claims = context.ledger.state().claims
    return [_chain(run, by_id, claims[run.parameters["window"]]) for run in sorted(runs, key=_start)
            if run.parameters.get("model") == context.name and run.parameters.get("window") in claims
            and "reason" in run.parameters]


def _chain(train: FlowRun, by_id: dict[str, FlowRun], claim: Any) -> JsonObject:
    monitor = by_id.get(train.parameters.get("cause") or "")
    ingest = by_id.get((monitor.parameters.get("cause") or "") if monitor else "")
    found = (("ingest", ingest), ("monitor", monitor), ("train", train))
    links = [_link(flow, run) for flow, run in found if run]
    return {"window": claim.key, "reason": claim.reason, "outcome": claim.outcome or "under way",
            "version": claim.version, "links": links}


def _link(flow: str, run: FlowRun) -> JsonObject:
    by = run.created_by.display_value if run.created_by else None
    return {"flow": flow, "by": by or "", "at": _start(run),
            "seconds": round(run.total_run_time.total_seconds(), 1)}


def _start(run: FlowRun) -> str:
    return str(run.start_time or run.created)


def started_by_nobody(runs: list[FlowRun]) -> list[str]:
    """The names of the runs that neither a schedule, nor an automation, nor a parent run has started."""
    return [run.name for run in runs if not run.created_by and not run.parent_task_run_id]
