"""Where a flow finds what Perennial remembers: addresses come from the environment, nothing else does."""

import os
from dataclasses import dataclass
from pathlib import Path

from contracts.contract import Contract, PerennialError, load
from registry.ledger import Ledger
from registry.store import Store, open_store


class PrefectAway(PerennialError):
    """The server that keeps the runs does not answer."""

    exit_code = 1


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


def need_prefect() -> None:
    """Refuse to start where PREFECT_API_URL names a server that does not answer; unset, Prefect brings its own."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url and (error := get_client(sync_client=True).api_healthcheck()):
        raise PrefectAway(f"no Prefect server answers at {url}: {error}; start it, or mend or unset PREFECT_API_URL")


def run_folder() -> Path:
    return Path(os.environ.get("PERENNIAL_RUN", ".perennial/run")).absolute()


def demo_home() -> Path:
    return Path(os.environ.get("PERENNIAL_DEMO", ".perennial/demo")).absolute()
