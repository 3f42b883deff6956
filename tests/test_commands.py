"""What the person on call types: doctor and status, also where a part is down or a contract is broken."""

import json
import logging
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import contracts
from contracts.core import loading
from flows.cli import app
from flows.commands.doctor import CHECKS, Health, findings
from flows.commands.logs import JsonLines
from flows.ingest import ingest_batch
from flows.reporting.overview import overview
from registry.context import open_model
from tests.test_sources import END, START

BROKEN = "import numpy\n\ncontract = Contract(name='broken'\n"


def found() -> dict[str, tuple[str, str]]:
    return {finding.part: (finding.health, finding.found) for finding in findings()}


def test_a_sound_machine_has_no_fault(addresses, servers):
    health = found()
    assert {part for part, (health, _) in health.items() if health is Health.FAULT} == set(), health
    assert set(health) == set(CHECKS)
    assert "1 online" in health["worker"][1] and "Prefect 3." in health["Prefect server"][1]


def test_what_is_down_is_named_with_what_to_do(addresses, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PERENNIAL_STORE", "s3://nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("PERENNIAL_CLOCK", raising=False)
    health = found()
    assert {part for part, (health, _) in health.items() if health is Health.FAULT} == {
        "store", "Prefect server", "worker", "clock"}
    assert "AWS_ENDPOINT_URL" in health["store"][1] or "keys" in health["store"][1]
    answer = CliRunner().invoke(app, ["doctor", "--json"])
    assert answer.exit_code == 1 and json.loads(answer.stdout)[0]["part"] == "contracts"


@pytest.fixture
def broken(monkeypatch, tmp_path) -> None:
    """A contract with a syntax error beside the others."""
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.setattr(contracts, "__path__", [*contracts.__path__, str(tmp_path)])


def test_a_broken_contract_is_told_and_holds_up_no_other(broken, addresses):
    """C16: by doctor, by status and by deploy, with its line."""
    assert "broken" in loading.known_models()
    assert found()["contracts"][0] is Health.FAULT and "broken.py, line" in found()["contracts"][1]
    rows = {row["model"]: row["fault"] for row in overview(loading.known_models())}
    assert "broken.py, line" in rows["broken"] and rows["pumps"] is None
    answer = CliRunner().invoke(app, ["status"])
    assert answer.exit_code == 1 and "pumps" in answer.stdout and "can't be read" in answer.stdout


def test_a_module_without_a_contract_is_no_model(broken, tmp_path):
    (tmp_path / "orders_features.py").write_text("def doubled(x):\n    return x * 2\n")
    assert "broken" in loading.known_models() and "orders_features" not in loading.known_models()


def test_status_tells_the_next_look_the_newest_row_and_what_waits(addresses):
    context = open_model("pumps")
    ingest_batch(context, START, END)
    [row] = overview(["pumps"])
    assert row["next_look"].endswith("T13:00:00") and row["newest_row"].startswith("2024-01-05T23")
    assert "labels, which mature at" in row["waits"][0] and row["under_way"] == []
    context.ledger.claim_first_training("first", now=START, reason="no version serves yet",
                                        drift=context.contract.drift)
    assert "no run has begun since" in overview(["pumps"])[0]["under_way"][0]


def test_a_log_line_is_json_where_the_output_is_no_terminal(addresses):
    record = logging.LogRecord("perennial.flows", logging.INFO, "x.py", 1, "%s: judged", ("pumps",), None)
    record.model, record.window = "pumps", "2024-01-01T00:00:00"
    line = json.loads(JsonLines().format(record))
    assert line["message"] == "pumps: judged" and line["window"] == "2024-01-01T00:00:00"
    said = subprocess.run(
        [sys.executable, "-c", "from flows.commands.logs import set_up; set_up(); import logging; "
         "logging.getLogger('perennial.ingest').info('hello')"], capture_output=True, text=True, check=True)
    assert json.loads(said.stderr)["message"] == "hello"
