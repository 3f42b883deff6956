"""Prefect's command, with its server changed so that it loses no event on SQLite, which takes one writer at a
time. `python -m flows.orchestration.local_server server start`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from sqlalchemy.ext.asyncio import AsyncSession


@asynccontextmanager
async def automations_session(begin_transaction: bool = False) -> AsyncGenerator[AsyncSession, None]:
    """A session that waits for its turn to write when its transaction begins.

    Prefect's own begins by reading. If another has written by the time it writes, SQLite refuses at once;
    after four such refusals the event is dropped, so that an automation misses it. And the cursor of a
    refused statement, freed in the main thread while another thread waits on its connection, stops the whole
    server for the 60 seconds that a writer may wait.
    """
    database = provide_database_interface()
    async with database.session_context(begin_transaction, with_for_update=begin_transaction) as session:
        yield session


def main() -> None:
    triggers.automations_session = automations_session  # type: ignore[attr-defined,assignment]
    app()


if __name__ == "__main__":
    main()
