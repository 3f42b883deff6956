"""The rules of the house: who may import whom, what the README names exists, nothing is pickled."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from contracts.core.errors import PerennialError
from contracts.core.loading import load_contract
from flows.cli import app
from registry import settings

ROOT = Path(__file__).parent.parent
# Each may import itself and those before it.
ROOMS = ("contracts", "service", "registry", "deployments", "flows")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
GUIDES = [*sorted(ROOT.glob("*.md")), *(ROOT / room / "README.md" for room in (*ROOMS, "tests"))]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path):
    room, modules = path.relative_to(ROOT).parts[0], {name.split(".")[0] for name in imported(path)}
    above = {"service": ("registry", "deployments", "flows"), "registry": ("deployments", "flows"),
             "contracts": ROOMS[1:], "deployments": ("flows",), "flows": ()}[room]
    assert not modules & set(above)
    assert not modules & {"pickle", "cloudpickle", "joblib", "dill", "tests"}
    if room != "flows":
        assert "prefect" not in modules
    if room != "registry":
        assert not modules & {"boto3", "docker", "deltalake"}


def test_the_demo_is_a_client():
    """The product never imports the demo; only the command that starts it does."""
    importers = [path for path in SOURCES if any(name.startswith("flows.demo") for name in imported(path))]
    assert {path.relative_to(ROOT).as_posix() for path in importers if path.parent.name != "demo"} == {
        "flows/cli.py"}


def test_files_are_short_and_untyped_dicts_are_few():
    texts = {path: path.read_text() for path in SOURCES}
    assert [path for path, text in texts.items() if len(text.splitlines()) > 300] == []
    assert sum(text.count("dict[str, Any]") for text in texts.values()) < 20


def test_only_one_module_knows_the_task():
    """How a class's outputs are called, and what XGBoost minimizes, is said in `core/classification.py`."""
    asking = [path for path in SOURCES if path.name != "classification.py"
              and re.search(r"multi:softprob|\bPROBABILITY\b|isinstance\([\w.]*label", path.read_text())]
    assert asking == []


# Each takes longer to import than the answer to `--help`.
SLOW = {"numpy", "pandas", "pandera", "scipy", "sklearn", "xgboost", "bentoml", "whylogs", "prefect",
        "deltalake", "pyarrow", "boto3", "docker", "httpx", "matplotlib", "jinja2"}
TRAINING = {"scipy", "sklearn", "xgboost", "bentoml", "whylogs", "prefect", "deltalake", "boto3", "docker",
            "httpx", "matplotlib"}


@pytest.mark.parametrize(("words", "without"),
                         [(["--help"], SLOW), (["history", "--help"], SLOW),
                          (["contract", "diff", "--help"], SLOW), (["history", "flights"], TRAINING),
                          (["contract", "diff", "flights", "flights"], TRAINING),
                          (["status", "flights"],
                           {"scipy", "sklearn", "xgboost", "bentoml", "whylogs", "boto3", "matplotlib"})],
                         ids=lambda one: " ".join(one) if isinstance(one, list) else "")
def test_a_command_imports_no_more_than_it_needs(words, without, addresses):
    program = """
import sys
from flows.cli import app
from registry import settings
sys.argv = ["perennial", *sys.argv[1:]]
try:
    app()
finally:
    print(*sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert said.returncode == 0, said.stderr
    assert not without & set(said.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module",
                         ["flows.train", "flows.monitor", "service.model", "contracts.core.gate"])
def test_threads_that_wait_do_not_spin(module):
    """Whichever library brings OpenMP first: OpenMP itself says what it has read, when it is loaded."""
    environ = {name: value for name, value in os.environ.items()
               if name != "OMP_WAIT_POLICY"} | {"OMP_DISPLAY_ENV": "VERBOSE"}
    said = subprocess.run([sys.executable, "-c", f"import {module}, xgboost"], cwd=ROOT, capture_output=True,
                          text=True, env=environ, timeout=60)
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said.stderr)) == {"0"}, said.stderr


def test_only_the_contract_and_the_replay_know_flights():
    """No other source holds the name of one of its columns that another model would not have."""
    own = set(load_contract("flights").columns) - {"distance", "flight"}
    for path in SOURCES:
        if path.name in ("flights.py", "departures.py", "faults.py"):
            continue
        texts = {node.value for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Constant)}
        assert not own & texts, path
        assert not {name for name in imported(path) if name.startswith(("contracts.flights", "tests"))}, path


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_guides_commands_exist(guide):
    group = get_command(app)
    for line in re.findall(r"^perennial .*$|`(?:\.venv/bin/)?perennial [^`…]*`", guide.read_text(),
                           re.MULTILINE):
        words = shlex.split(line.strip("`").split("#")[0])[1:]
        command = group
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert command is not group or not words or words[0].startswith("-"), line
        known = {option for parameter in command.params
                 for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_guides_paths_make_targets_and_imports_exist(guide):
    text = re.sub(r"contracts/mine\.py", "", guide.read_text())  # the reader's own
    for name in re.findall(
            r"`((?:flows|contracts|service|registry|deployments|tests|\.ci|\.github)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name
    for names in re.findall(r"^\| (`[^|]*`)[^|]*\|", text, re.MULTILINE) if guide.parent != ROOT else ():
        for name in re.findall(r"`([\w/]+(?:\.(?:py|yaml)|/)|Dockerfile)`", names):
            assert (guide.parent / name).exists(), name
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", text)) <= targets
    for module, names in re.findall(r"^from ((?:flows|contracts|service|registry|deployments)[\w.]*) import "
                                    r"(.*)$", text, re.MULTILINE):
        assert all(hasattr(importlib.import_module(module), name.strip())
                   for name in names.split(",")), (module, names)


def test_keys_of_the_store_are_spelt_in_one_file():
    """A key is a text that begins with one of its top folders and goes on."""
    folders = "ledger|data|looks|models|profiles|predictions|labels|reports"
    for path in SOURCES:
        if path.name == "layout.py":
            continue
        texts = {node.value for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        assert not [text for text in texts if re.match(rf"({folders})/[^ ]*$", text)], path


def test_variables_are_read_in_one_file_and_those_of_a_replica_in_another():
    for path in SOURCES:
        if path.name in ("settings.py", "app.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
                assert "PERENNIAL_" not in ast.unparse(node), (path, ast.unparse(node))


def test_every_room_has_a_guide_that_names_its_files():
    for room in ROOMS:
        text = (ROOT / room / "README.md").read_text()
        files = {path.relative_to(ROOT / room) for path in SOURCES if path.parts[len(ROOT.parts)] == room
                 and path.name != "__init__.py"}
        missing = [str(file) for file in files if f"`{file}`" not in text
                   and f"`{file.parts[0]}/`" not in text]
        assert not missing, (room, missing)


def test_every_variable_is_in_a_guide_and_every_guides_variable_is_read():
    read = {name for path in SOURCES for name in re.findall(r"\bPERENNIAL_[A-Z_]+\b", path.read_text())}
    read -= {"PERENNIAL_PROCESS"}  # a mark on the processes that we start, nobody sets it
    told = {name for guide in GUIDES for name in re.findall(r"\bPERENNIAL_[A-Z_]+\b", guide.read_text())}
    assert read == told


def test_every_deployment_names_a_flow_that_exists():
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for one in declared:
        file, _, function = one["entrypoint"].partition(":")
        assert (function in {node.name for node in ast.parse((ROOT / file).read_text()).body
                             if isinstance(node, ast.FunctionDef)})
    assert ({one["entrypoint"].rpartition(":")[2] for one in declared}
            == {"ingest", "train", "recalibrate", "release", "monitor", "reconcile"})


def test_the_locks_name_no_index_and_pin_every_package_by_hash():
    for name in ("requirements.txt", "requirements-service.txt"):
        text = (ROOT / name).read_text()
        assert "index-url" not in text and "://" not in text
        pinned = re.findall(r"^[\w.-]+(?:\[[\w,-]+\])?==", text, re.MULTILINE)
        assert len(pinned) > 20 and text.count("--hash=sha256:") >= len(pinned)


def test_an_address_of_dask_without_a_scheme_is_refused(monkeypatch):
    monkeypatch.setenv("PERENNIAL_DASK", "tcp://127.0.0.1:8786")
    assert settings.dask_address() == "tcp://127.0.0.1:8786"
    monkeypatch.setenv("PERENNIAL_DASK", "")
    assert settings.dask_address() is None
    monkeypatch.setenv("PERENNIAL_DASK", "127.0.0.1:8786")
    with pytest.raises(
            PerennialError,
            match=r"PERENNIAL_DASK is '127.0.0.1:8786'; it must be an address such as tcp://host:8786"):
        settings.dask_address()
