"""Where Prefect keeps the results of steps: in the store, so that any worker can resume a run."""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from prefect.cache_policies import INPUTS
from prefect.filesystems import WritableFileSystem

from contracts.core.errors import NotFound
from registry import layout, settings
from registry.store import Store, open_store, put


class StoredResults(WritableFileSystem):
    """Results as objects of Perennial's store; they are references and verdicts, never data."""

    _block_type_slug = "perennial-results"

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]  # as Prefect calls it
        try:
            return _store(settings.store_address()).get(layout.step_result(path))
        except NotFound as error:
            raise ValueError(f"no result {path}") from error

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        put(_store(settings.store_address()), layout.step_result(path), content)


@cache
def _store(address: str) -> Store:
    return open_store(address)


# A step whose result for the same inputs is kept is not run again: a run after a kill goes on behind it.
RESUMED: dict[str, Any] = {"persist_result": True, "result_serializer": "json", "cache_policy": INPUTS}


def resumable(limit: timedelta) -> Callable[[Any], Any]:
    """Have steps keep their results in the store, and end, all together, within `limit` from now."""
    storage: Any = StoredResults()
    storage.save("perennial", overwrite=True)  # Prefect takes no storage that its server doesn't know
    deadline = time.monotonic() + limit.total_seconds()
    return lambda step: step.with_options(result_storage=storage,
                                          timeout_seconds=max(1.0, deadline - time.monotonic()))
