"""The events that chain the flows, and what each run's page says of its cause."""

import logging
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun
from prefect.events import Event, emit_event
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from contracts.core.digests import JsonObject

log = logging.getLogger("perennial.flows")

# Each event's name; its resource is the model.
INGESTED = "perennial.data.ingested"
RETRAIN, STARTED = "perennial.window.retrain", "perennial.training.started"
RECALIBRATE = "perennial.recalibration.due"
CLOCK_REACHED = "perennial.clock.reached"  # a replay's clock has reached a time of a contract's schedule


def emit(model: str, event: str, key: str, payload: JsonObject) -> None:
    """Emit an event about a model; its id follows from `key`, so that Prefect drops repetitions for as long
    as it remembers ids, half an hour."""
    log.info("%s: %s %s", model, event, key, extra={"model": model, "event": event, "run": flow_run.get_id(),
                                                    "window": payload.get("window")})
    emit_event(event=event, id=uuid5(NAMESPACE_URL, f"{event}/{model}/{key}"), resource=resource_of(model),
               payload={"model": model, "run": flow_run.get_id() or "", **payload})


def post_event(event: Event) -> None:
    """Send an event; raises httpx.HTTPError if the server does not take it. `emit_event` returns before the
    server has the event, and raises nothing."""
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])


def resource_of(model: str) -> dict[str, str]:
    return {"prefect.resource.id": f"perennial.model.{model}", "prefect.resource.name": model}


def run_name() -> str:
    """A run's name: the parameters that tell it from others of its flow."""
    parameters = flow_run.get_parameters()
    lengths = {"model": 40, "window": 30, "version": 12, "start": 20}  # of a version its short form
    named = (str(parameters.get(name) or "")[:length] for name, length in lengths.items())
    return " ".join(filter(None, named)) or "all models"


def begin_run(model: str, cause: str | None) -> None:
    """Tag this run with its model, and write on its page what started it, and on the other's page this run.

    `cause`: the id of the run whose event started this one; empty where a person or a schedule did.
    """
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run.get_id()))
        client.update_flow_run(run.id, tags=sorted({*run.tags, f"model:{model}"}))
        starter = _starter(client, cause)
        _write(client, run, "cause", f"Started by {_described(run, starter)}.")
        if starter:
            _write(client, starter, f"started-{str(run.id)[:8]}", f"This run started {_link(run)}.")


def _starter(client: SyncPrefectClient, cause: str | None) -> FlowRun | None:
    try:
        return client.read_flow_run(UUID(cause)) if cause else None
    except (ObjectNotFound, ValueError):
        return None


def _described(run: FlowRun, starter: FlowRun | None) -> str:
    creator: Any = run.created_by
    by = (f"{creator.type.lower()} {creator.display_value or ''}".strip() if creator
          else "a person or a parent run")
    return f"{by}, after the event of {_link(starter)}" if starter else by


def _link(run: FlowRun) -> str:
    return f"[{run.name}]({url_for('flow-run', obj_id=run.id)})"


def _write(client: SyncPrefectClient, run: FlowRun, key: str, text: str) -> None:
    client.create_artifact(ArtifactCreate(key=f"{run.id}-{key}", type="markdown", data=text,
                                          flow_run_id=run.id))
