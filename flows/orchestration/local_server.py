"""Prefect's command, with its server changed to bear SQLite, which takes one writer at a time.

`python -m flows.orchestration.local_server server start`.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from prefect.cli import app
from prefect.server.database import provide_database_interface
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.events import triggers
from sqlalchemy.ext.asyncio import AsyncSession

BUSY_SECONDS = 5  # that a statement waits for another writer


@asynccontextmanager
async def automations_session(begin_transaction: bool = False) -> AsyncGenerator[AsyncSession, None]:
    """A session that waits for its turn to write when its transaction begins.

    Prefect's own begins by reading. If another has written by the time it writes, SQLite refuses at once;
    after four such refusals the event is dropped, so that an automation misses it.
    """
    database = provide_database_interface()
    async with database.session_context(begin_transaction, with_for_update=begin_transaction) as session:
        yield session


class LocalConfiguration(AioSqliteConfiguration):
    """SQLite with a shorter wait for other writers than Prefect's 60 seconds.

    A refused statement that is freed in the main thread stops the whole server while another statement waits
    on its connection, for a writer who needs the main thread to end. A request that is given up after
    the wait is answered 503, and Prefect's clients send it again.
    """

    def setup_sqlite(self, conn: Any, record: Any) -> None:
        super().setup_sqlite(conn, record)
        cursor = conn.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000};")
        cursor.close()


def main() -> None:
    triggers.automations_session = automations_session  # type: ignore[attr-defined,assignment]
    database: Any = provide_database_interface()
    if isinstance(database.database_config, AioSqliteConfiguration):
        database.database_config.__class__ = LocalConfiguration
    app()


if __name__ == "__main__":
    main()
