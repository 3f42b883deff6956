"""Prefect's server on SQLite, as a machine of one's own has it: how it waits for its turn to write."""

import os
import subprocess
import sys

SAID = """
import asyncio
import sqlalchemy as sa
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from flows.orchestration import local_server

local_server.app = lambda: None
local_server.main()

async def main():
    async with provide_database_interface().session_context() as session:
        print((await session.execute(sa.text("PRAGMA busy_timeout"))).scalar())
    async with triggers.automations_session(begin_transaction=True) as session:
        await session.execute(sa.text("SELECT 1"))
        try:
            async with triggers.automations_session(begin_transaction=True) as second:
                await second.execute(sa.text("SELECT 1"))
        except sa.exc.OperationalError as error:
            print(error.statement or error)

asyncio.run(main())
"""


def test_a_trigger_takes_the_write_lock_when_it_begins_and_waits_for_seconds_not_a_minute(tmp_path):
    environ = os.environ | {"PREFECT_HOME": str(tmp_path), "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    environ.pop("PREFECT_API_URL", None)
    done = subprocess.run([sys.executable, "-c", SAID], env=environ, capture_output=True, text=True,
                          check=True)
    assert done.stdout.splitlines() == ["5000", "BEGIN IMMEDIATE"]
