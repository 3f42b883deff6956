"""The replay's process and the Prefect server that it has started."""

import subprocess
import sys

ADDRESS = "http://127.0.0.1:9/api"
PROGRAM = f"""
import sys
from flows.demo.replay import set_environment

assert "prefect" in sys.modules
set_environment({{"PREFECT_API_URL": "{ADDRESS}"}})
from prefect.client.orchestration import get_client

with get_client(sync_client=True) as client:
    print(client.api_url)
"""


def test_the_replay_talks_to_the_server_that_it_starts_and_to_no_other():
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert said.stdout.strip().rstrip("/") == ADDRESS
