"""Run a flow from the command line, in this process."""

from collections.abc import Callable
from typing import Any

from contracts.core.errors import Unavailable


def run_flow(flow: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run a flow without Prefect's heartbeat, which delays a flow's end by up to a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    require_prefect()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return flow(*arguments, **options)


def require_prefect() -> None:
    """Raise Unavailable if PREFECT_API_URL names a server that does not
    answer; without that variable Prefect starts a temporary one."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url and (error := get_client(sync_client=True).api_healthcheck()):
        raise Unavailable(f"no Prefect server answers at {url}: {error}; start it, or correct or unset "
                          f"PREFECT_API_URL")
