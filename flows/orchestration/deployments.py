"""The deployments of every model: derived from prefect.yaml and the contracts, compared, registered."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse

from contracts.core.contract import Contract
from contracts.core.digests import JsonObject, digest_of, plain_json
from contracts.core.errors import Unavailable
from flows.orchestration.events import CLOCK_REACHED
from registry.clock import is_simulated
from registry.context import ROOT

TAG = "perennial"
WITHOUT_CONTRACT = "perennial:without-contract"  # the tag of a deployment that is paused for that
FOR_ALL = ("reconcile",)  # flows with one deployment for all models
RECALIBRATE = "recalibrate"  # the flow of contracts that ask for recalibrations
T = TypeVar("T")
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


@dataclass(frozen=True)
class Change:
    """What registering changes of one deployment: "new", "changed", "resumed", "paused" or "unchanged".

    One that a person has paused stays so.
    """

    deployment: str
    what: str
    details: str = ""


def derived(contracts: Iterable[Contract], models: Sequence[str]) -> dict[str, JsonObject]:
    """The deployments of these contracts as entries of a prefect.yaml, by name, as "ingest/flights".

    `models`: those that are reconciled, among them any whose contract can't be loaded just now.
    """
    flows = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    names = {"names": [*models]}
    entries = {f"{flow['name']}/{flow['name']}": flow | {"parameters": names} for flow in flows
               if flow["name"] in FOR_ALL}
    for contract in contracts:
        left_out = (*FOR_ALL, *(() if contract.recalibration else (RECALIBRATE,)))
        entries |= {f"{flow['name']}/{contract.name}": _of_model(flow, contract) for flow in flows
                    if flow["name"] not in left_out}
    # The folder is where runs start, so that a deployment from another clone counts as changed.
    return {name: entry | {"version": digest_of(plain_json([entry, str(ROOT)]))[:16]}
            for name, entry in entries.items()}


def _of_model(flow: JsonObject, contract: Contract) -> JsonObject:
    """A flow's deployment narrowed to one model, on its contract's schedule."""
    schedule, model = contract.schedule, contract.name
    when = {"ingest": schedule.data if contract.source else None, "monitor": schedule.judge}.get(flow["name"])
    triggers = [_narrowed(trigger, model) for trigger in flow.get("triggers", ())]
    schedules = [_recurrence(when, schedule.time_zone)] if when else []
    if is_simulated() and when:
        triggers, schedules = [*triggers, _on_clock(flow["name"], model)], []
    return flow | {"name": model, "tags": [*flow["tags"], f"model:{model}"], "parameters": {"model": model},
                   "triggers": triggers, "schedules": schedules}


def _narrowed(trigger: JsonObject, model: str) -> JsonObject:
    return trigger | {"name": f"{trigger['name']}: {model}",
                      "match": {"prefect.resource.id": f"perennial.model.{model}"}}


def _recurrence(when: str | timedelta, time_zone: str) -> JsonObject:
    every = {"interval": when.total_seconds()} if isinstance(when, timedelta) else {"cron": when}
    return every | {"timezone": time_zone}


def _on_clock(flow: str, model: str) -> JsonObject:
    """What takes the schedule's place where PERENNIAL_CLOCK sets the time: the event that it is reached."""
    return {"type": "event", "name": f"the clock has reached a time to {flow}: {model}",
            "expect": [CLOCK_REACHED], "for_each": ["prefect.resource.id"],
            "match": {"prefect.resource.id": f"perennial.model.{model}", "flow": flow},
            "parameters": {"model": model}}


def changes(entries: Mapping[str, JsonObject]) -> list[Change]:
    """What registering these deployments would change on the server."""
    with get_client(sync_client=True) as client:
        known = _known(client)
    found = [_change(name, entry, known.get(name)) for name, entry in entries.items()]
    gone = [Change(name, "paused", "no contract asks for it any more") for name, deployment in known.items()
            if name not in entries and not deployment.paused]
    return found + gone


def _change(name: str, entry: JsonObject, known: DeploymentResponse | None) -> Change:
    if known is None:
        return Change(name, "new", _when(entry["schedules"]))
    if known.version != entry["version"]:
        before = _when([schedule.schedule.model_dump(mode="json") for schedule in known.schedules])
        now = _when(entry.get("schedules", ()))
        return Change(name, "changed",
                      f"{before} → {now}" if before != now else "its flow, limits or triggers")
    if known.paused and WITHOUT_CONTRACT in known.tags:
        return Change(name, "resumed")
    return Change(name, "unchanged", "a person has paused it" if known.paused else "")


def _when(schedules: Iterable[JsonObject]) -> str:
    return ", ".join(f"{schedule.get('cron') or str(timedelta(seconds=schedule['interval']))} "
                     f"{schedule['timezone']}" for schedule in schedules) or "on events"


def register(entries: Mapping[str, JsonObject], asked: Iterable[Change]) -> None:
    """Carry out changes: register deployments that are new or changed, and pause those without a contract."""
    asked = list(asked)
    written = {change.deployment: entries[change.deployment] for change in asked
               if change.what in ("new", "changed")}
    with get_client(sync_client=True) as client:
        known = _known(client)
        if written:
            _prefect_deploy(written)
        for change in asked:
            before = known.get(change.deployment)
            if before and (change.what == "paused" or WITHOUT_CONTRACT in before.tags):
                _set_paused(client, before.id, change.what == "paused")
            elif before and before.paused and change.what == "changed":
                client.pause_deployment(before.id)  # Prefect's command has resumed it


def _prefect_deploy(entries: Mapping[str, JsonObject]) -> None:
    """Have Prefect's own command register entries of a prefect.yaml."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"name": "perennial", "deployments": plain_json([*entries.values()])}, file)
        file.flush()
        command = ["deploy", "--all", "--prefect-file", file.name]
        done = subprocess.run([*PREFECT, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"`prefect deploy` failed; is PREFECT_API_URL right?\n{done.stdout}{done.stderr}")


def _known(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """All of our deployments that the server has, by name, as "ingest/flights"."""
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    flows = {flow.id: flow.name for flow in _all(client.read_flows)}
    return {f"{flows[deployment.flow_id]}/{deployment.name}": deployment
            for deployment in _all(client.read_deployments, deployment_filter=ours)}


def _all(read: Callable[..., list[T]], **filters: Any) -> list[T]:
    """All that Prefect has of something, of which it gives 200 at a time."""
    found: list[T] = []
    while page := read(limit=200, offset=len(found), **filters):
        found += page
    return found


def _set_paused(client: SyncPrefectClient, deployment: UUID, paused: bool) -> None:
    """Stop or resume a deployment's schedules and the automations that run it."""
    (client.pause_deployment if paused else client.resume_deployment)(deployment)
    tags = {*client.read_deployment(deployment).tags} - {WITHOUT_CONTRACT}
    client.update_deployment(deployment, DeploymentUpdate(
        tags=sorted(tags | {WITHOUT_CONTRACT} if paused else tags)))
    for automation in client.read_resource_related_automations(f"prefect.deployment.{deployment}"):
        (client.pause_automation if paused else client.resume_automation)(automation.id)
