"""What `perennial deploy` does: register what follows from prefect.yaml and the contracts."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from contracts.core.contract import Contract
from contracts.core.errors import ContractError
from contracts.core.loading import known_models, load_contract
from contracts.core.policies import TrainingLimits
from deployments.prefect_server import POOL, create_pool
from flows.monitoring.notifications import to_webhook
from flows.orchestration.automations import (
    crashed_before_it_began,
    crashed_without_heartbeat,
    page_if_no_worker,
    reconcile_if_not_started,
    set_automation,
    tell_of_worker,
)
from flows.orchestration.deployments import Change, changes, derived, register
from registry.settings import alert_webhook


@dataclass(frozen=True)
class Deployed:
    """What registering changes or has changed, and the contracts that can't be loaded, each with why."""

    changes: Sequence[Change]
    faults: Sequence[str]


def deploy(models: Sequence[str] | None = None, dry_run: bool = False) -> Deployed:
    """Register the deployments and automations of these models, by default of every contract in contracts/.

    What a contract that can't be loaded has registered before is left as it is. Safe to repeat.
    """
    models = models or known_models()
    contracts, faults = _loaded(models)
    entries = derived(contracts, models)
    broken = {fault.model for fault in faults}
    asked = [change for change in changes(entries)
             if not (change.what == "paused" and change.deployment.partition("/")[2] in broken)]
    if not dry_run:
        if not has_pool():
            create_pool()
        register(entries, asked)
        to_webhook(alert_webhook())
        set_automation(crashed_without_heartbeat())
        set_automation(crashed_before_it_began())
        set_automation(tell_of_worker())
        limits = [contract.training.start_within for contract in contracts]
        set_automation(page_if_no_worker(min(limits, default=TrainingLimits.start_within)))
        with get_client(sync_client=True) as client:
            reconciler = client.read_deployment_by_name("reconcile/reconcile").id
        for contract in contracts:
            set_automation(reconcile_if_not_started(contract, reconciler))
    return Deployed(asked, [fault.why for fault in faults])


def has_pool() -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            return False
        return True


@dataclass(frozen=True)
class Fault:
    """A contract that can't be loaded, and why."""

    model: str
    why: str


def _loaded(models: Sequence[str]) -> tuple[list[Contract], list[Fault]]:
    contracts, faults = [], []
    for model in models:
        try:
            contracts.append(load_contract(model))
        except ContractError as error:
            faults.append(Fault(model, str(error)))
    return contracts, faults
