"""Everything a flow needs to know of one model: contract, store, ledger and run folder."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from contracts.core.contract import Contract
from contracts.core.loading import load_contract
from registry import clock, models, settings
from registry.ledger import Ledger
from registry.store import Store, open_store


@dataclass(frozen=True)
class ModelContext:
    """One model's contract, its store and ledger, and the folder of what runs on this machine."""

    contract: Contract
    store: Store
    ledger: Ledger
    run: Path

    @property
    def name(self) -> str:
        return self.contract.name

    @property
    def spool(self) -> Path:
        """Where replicas leave their profiles; the monitor ships them to the store."""
        return spool_of(self.run)

    def now(self) -> datetime:
        """The present moment as the model's event times are written."""
        return clock.now(self.contract.schedule.time_zone)


def spool_of(run: Path) -> Path:
    """Of a run folder the part that it shares with its replicas."""
    return run / "profiles"


def open_model(model: str) -> ModelContext:
    """The context of a model, by its contract's name, at the addresses that the environment names."""
    contract = load_contract(model)
    store = open_store(settings.store_address())
    return ModelContext(contract, store, Ledger(store, contract.name), settings.run_folder())


def open_ledger(model: str) -> Ledger:
    """The ledger of a model, whether or not its contract can be loaded."""
    return Ledger(open_store(settings.store_address()), model)


ROOT = Path(__file__).parent.parent


def fetch_version(context: ModelContext, version: str) -> Path:
    """The version's files on this machine, their digests checked."""
    return models.fetch(context.store, context.name, version, context.run / "models")
