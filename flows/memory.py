"""Where a flow finds what Perennial remembers: addresses come from the environment, nothing else does."""

import os
from dataclasses import dataclass
from pathlib import Path

from contracts.contract import Contract, load
from registry.ledger import Ledger
from registry.store import Store, open_store


@dataclass(frozen=True)
class Memory:
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


def remember(model: str) -> Memory:
    """The memory of `model`, in PERENNIAL_STORE (a folder or s3://…) and PERENNIAL_RUN (a folder)."""
    contract = load(model)
    store = open_store(os.environ.get("PERENNIAL_STORE", ".perennial/store"))
    return Memory(contract, store, Ledger(store, contract.name), run_folder())


def run_folder() -> Path:
    return Path(os.environ.get("PERENNIAL_RUN", ".perennial/run")).absolute()
