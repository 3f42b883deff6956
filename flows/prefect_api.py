"""Refuse early, with a clear error, when no Prefect server answers at PREFECT_API_URL."""

from contracts.core.errors import Unavailable


def require_prefect() -> None:
    """Refuse to start where PREFECT_API_URL names a server
    that does not answer; unset, Prefect brings its own."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url and (error := get_client(sync_client=True).api_healthcheck()):
        raise Unavailable(f"no Prefect server answers at {url}: {error}; start it, or mend or unset "
                          f"PREFECT_API_URL")
