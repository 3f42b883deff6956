"""TODO"""

import os
from dataclasses import dataclass
from pathlib import Path

from contracts.core.contract import Contract
from contracts.core.loading import load_contract
from registry import models
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
        return self.run / "profiles"


def open_model(model: str) -> ModelContext:
    """The memory of `model`, in PERENNIAL_STORE (a folder or s3://…) and PERENNIAL_RUN (a folder)."""
    contract = load_contract(model)
    store = open_store(os.environ.get("PERENNIAL_STORE", ".perennial/store"))
    return ModelContext(contract, store, Ledger(store, contract.name), run_folder())


def run_folder() -> Path:
    return Path(os.environ.get("PERENNIAL_RUN", ".perennial/run")).absolute()


def demo_home() -> Path:
    return Path(os.environ.get("PERENNIAL_DEMO", ".perennial/demo")).absolute()


ROOT = Path(__file__).parent.parent


def fetch_version(memory: ModelContext, version: str) -> Path:
    """The version's files on this machine, their digests checked."""
    return models.fetch(memory.store, memory.name, version, memory.run / "models")
