"""The command line: what it prints, for people and programs, and the code it ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from registry.events import Noted
from registry.folder_store import FolderStore
from registry.ledger import Ledger

ROOT = Path(__file__).parent.parent


def perennial(*words: str, cwd=ROOT, **environ: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(Path(sys.executable).parent / "perennial"), *words], cwd=cwd,
                          capture_output=True, text=True, env=os.environ | environ, timeout=60)


@pytest.fixture
def remembered(flights_version):
    """The addresses of a store that holds one flights version, not promoted."""
    context, _ = flights_version
    return {"PERENNIAL_STORE": context.store.address, "PERENNIAL_RUN": str(context.run)}


def test_every_command_explains_itself():
    said = perennial("--help")
    assert said.returncode == 0
    for name in ("demo", "ingest", "train", "release", "monitor", "report", "serve", "status", "history",
                 "verify", "rollback", "metrics", "contract"):
        assert name in said.stdout


def test_without_a_prefect_server_a_mistake_is_still_one_line(tmp_path):
    said = perennial("ingest", "flights", "--start", "2013-02-01", "--end", "2013-01-01",
                     PERENNIAL_STORE=str(tmp_path / "store"), PERENNIAL_RUN=str(tmp_path / "run"),
                     PREFECT_HOME=str(tmp_path / "prefect"))
    assert said.returncode == 2 and said.stderr.startswith(
        "perennial: ") and "is empty" in said.stderr, said.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [(("status", "fights"), ("no contract 'fights'", "known: departures, flights")),
     (("release", "flights"), ("no champion", "perennial train flights")),
     (("rollback", "flights"), ("no champion", "perennial train flights")),
     (("ingest", "flights", "--start", "2013-01-01", "--end", "2013-01-02", "--file", "no.csv"),
      ("no file no.csv", ".parquet")),
     (("contract", "diff", "flights", "no.py"), ("no file no.py", "model@version")),
     (("history", "flights", "--at", "teatime"), ("teatime", "2013-07-01T12:00")),
     (("history", "flights", "--at", ""), ("'' is not a time", "2013-07-01T12:00")),
     (("ingest", "flights", "--start", "2013-03-01", "--end", "2013-02-01"),
      ("is empty", "an --end after --start")),
     (("monitor", "flights", "--window", "2013-01-02"),
      ("2013-01-02T00:00:00 is not a window", "starts at 2012-12-31T00:00:00")),
     (("status", "..foo"), ("no contract '..foo'", "known: departures, flights"))])
def test_the_users_mistake_is_one_line_that_names_the_remedy(servers, tmp_path, words, named):
    said = perennial(*words, PERENNIAL_STORE=str(tmp_path / "store"), PERENNIAL_RUN=str(tmp_path / "run"),
                     PREFECT_LOGGING_LEVEL="CRITICAL")  # the fixture's servers log more
    assert said.returncode == 2 and all(part in one_line(said) for part in named), said.stderr


def one_line(said: subprocess.CompletedProcess) -> str:
    [line] = said.stderr.splitlines()
    assert line.startswith("perennial: "), said.stderr
    return line


@pytest.mark.parametrize(
    ("text", "fault"),
    [("x = (", "SyntaxError: '(' was never closed"), ("import nothere", "No module named 'nothere'"),
     ("from contracts.core.contract import Contract\ncontract = Contract(colour='red')",
      "unexpected keyword argument 'colour'"), ("contract = 5", "no `contract = Contract(…)`"),
     ("", "no `contract = Contract(…)`")], ids=["syntax", "import", "argument", "five", "empty"])
def test_a_faulty_contract_is_one_line(tmp_path, text, fault):
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "x.py").write_text(text)
    for words in (("status", "faulty.x"), ("contract", "diff", "flights", str(tmp_path / "faulty" / "x.py"))):
        said = perennial(*words, PYTHONPATH=str(tmp_path), PERENNIAL_STORE=str(tmp_path / "store"))
        assert said.returncode == 2 and fault in one_line(said), said.stderr


@pytest.mark.parametrize("words",
                         [("deploy",), ("ingest", "flights", "--start", "2013-01-01", "--end", "2013-01-02")])
def test_prefect_away_is_a_failure_of_one_line(tmp_path, words):
    said = perennial(*words, PERENNIAL_STORE=str(tmp_path / "store"), PERENNIAL_RUN=str(tmp_path / "run"),
                     PREFECT_HOME=str(tmp_path / "prefect"), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert said.returncode == 1 and "no Prefect server answers at http://127.0.0.1:9/api" in one_line(
        said), said.stderr


def test_a_time_with_a_zone_is_refused(tmp_path):
    for words in (("ingest", "flights", "--start"), ("monitor", "flights", "--window")):
        said = perennial(*words, "2013-01-01T00:00:00+00:00", PERENNIAL_STORE=str(tmp_path), COLUMNS="200")
        assert said.returncode == 2 and "does not match" in said.stderr and "Traceback" not in said.stderr


def test_a_store_that_is_none_is_one_line(tmp_path):
    said = perennial("status", "flights", PERENNIAL_STORE="/proc/nope")
    assert said.returncode == 2 and "'/proc/nope'" in one_line(said) and "PERENNIAL_STORE" in said.stderr


def test_status_and_history_for_programs(remembered, flights_version):
    status = json.loads(perennial("status", "flights", "--json", **remembered).stdout)
    assert status["champion"] is None and status["versions"] == 1 and status["data"]["rows"] > 20_000
    events = json.loads(perennial("history", "flights", "--json", **remembered).stdout)
    assert [event["kind"] for event in events] == ["ingested", "registered", "judged"]
    assert events[1]["data"]["version"] == flights_version[1]
    at = json.loads(perennial("history", "flights", "--at", "2030-01-01T00:00", "--json",
                              **remembered).stdout)
    assert at == {"at": "2030-01-01T00:00", "champion": None}


def test_a_contract_against_the_one_a_version_was_trained_under(remembered, tmp_path):
    said = perennial("contract", "diff", "flights@1", "flights", **remembered)
    assert said.returncode == 0 and "no difference" in said.stdout
    narrower = tmp_path / "narrower.py"
    text = (ROOT / "contracts" / "flights.py").read_text()
    for old, new in {"ge=10, le=6000": "ge=10, le=2000", '"on_time"': '"fine"'}.items():
        assert old in text
        text = text.replace(old, new)
    narrower.write_text(text)
    said = perennial("contract", "diff", "flights@1", str(narrower), "--json", **remembered)
    breaking = {change["path"]: change["breaks"] for change in json.loads(said.stdout) if change["breaks"]}
    assert said.returncode == 1 and len(breaking) == 2
    assert ("answers name other classes" in breaking.values()
            and "values of distance that passed are refused" in breaking.values())


@pytest.fixture
def noted(tmp_path):
    """A ledger of 130 notes."""
    ledger = Ledger(FolderStore(tmp_path / "store"), "pumps")
    for number in range(130):
        ledger.record(Noted(version="v", text=str(number)))
    return {"PERENNIAL_STORE": str(tmp_path / "store"), "PERENNIAL_RUN": str(tmp_path / "run"),
            "COLUMNS": "200"}


def test_history_is_listed_by_the_page(noted):
    def listed(*words: str) -> list[int]:
        return [event["seq"] for event in json.loads(perennial("history", "pumps", *words, "--json",
                                                               **noted).stdout)]

    assert listed() == list(range(80, 130)) and listed("--before", "80") == list(range(30, 80))
    assert listed("--before", "30") == list(range(30)) and listed("--before", "0") == []
    assert listed("--last", "3", "--before", "900") == [127, 128, 129] and listed("--all") == list(range(130))
    said = perennial("history", "pumps", "--last", "2", **noted).stdout
    assert "2 of 130 events; those before: perennial history pumps --before 128" in said
    assert "those before" not in perennial("history", "pumps", "--all", **noted).stdout
    wrong = perennial("history", "pumps", "--all", "--before", "3", **noted)
    assert wrong.returncode == 2 and "exclude each other" in one_line(wrong)
    assert perennial("history", "pumps", "--last", "0", **noted).returncode == 2


def test_verify_says_what_is_wrong_and_ends_with_1(noted, tmp_path):
    said = perennial("verify", "pumps", **noted)
    assert said.returncode == 0
    assert "pumps: 130 events, 0 segments and 0 snapshots verified: all right" in said.stdout
    told = json.loads(perennial("verify", "--json", **noted).stdout)
    assert {one["model"]: one["events"] for one in told}["pumps"] == 130 and len(told) > 1
    event = tmp_path / "store" / "ledger" / "pumps" / "00000007.json"
    event.write_bytes(event.read_bytes().replace(b'"text":"7"', b'"text":"8"'))
    said = perennial("verify", "pumps", **noted)
    assert said.returncode == 1 and "verified: 1 wrong" in said.stdout and "Traceback" not in said.stderr
    assert "ledger/pumps/00000007.json: pumps: event 7 is not the one that was appended" in said.stdout
    assert perennial("verify", "pumps", "--repair", **noted).returncode == 1  # no event is written anew
    told = json.loads(perennial("verify", "pumps", "--json", **noted).stdout)
    assert [fault["key"] for fault in told[0]["faults"]] == ["ledger/pumps/00000007.json"]


def test_verify_repairs_copies(noted, tmp_path):
    ledger = Ledger(FolderStore(tmp_path / "store"), "pumps")
    for number in range(130, 700):
        ledger.record(Noted(version="v", text=str(number)))
    [segment] = (tmp_path / "store" / "ledger" / "pumps" / "segments").iterdir()
    segment.write_bytes(segment.read_bytes()[:1_000])
    said = perennial("verify", "pumps", **noted)
    assert said.returncode == 1 and "perennial verify --repair" in said.stdout
    assert perennial("verify", "pumps", "--repair", **noted).returncode == 0
    assert "1 segments and 1 snapshots verified: all right" in perennial("verify", "pumps", **noted).stdout
