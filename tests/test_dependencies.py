"""What of the project's code a model depends on: its contract,
what that imports, and the functions that features call."""

import importlib
import json
import sys
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np
import pytest

from contracts.core.contract import Contract
from contracts.core.errors import PerennialError
from contracts.core.loading import load_contract
from contracts.flights import contract as flights
from deployments import fleet, replicas
from flows.ingest import ingest_batch
from flows.releasing.bento import build_bento
from flows.training.version import code_digest, fit_version
from registry import models
from registry.context import open_model
from service.model import load_model

BOILERS = """
from dataclasses import replace

from acme import units
from contracts.core.features import number
from contracts.pumps import contract as pumps

PRESSURE = {"usual": 2.5}
OTHERS = {"half": print}  # no data: its text would be another one in each process


def half(values):
    return values / 2


def load(heat):
    return half(units.kelvin(heat)) / PRESSURE["usual"] if OTHERS else heat


contract = replace(pumps, name="boilers", features=(*pumps.features, number("load", "heat", compute=load)))
"""
UNITS = """
ZERO = 273.15


def kelvin(celsius):
    return celsius + ZERO
"""


@pytest.fixture
def acme(tmp_path, monkeypatch) -> Path:
    """A package outside of contracts/ whose contract imports a module of its own."""
    package = tmp_path / "source" / "acme"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", "boilers": BOILERS, "units": UNITS}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.syspath_prepend(str(package.parent))
    yield package
    forget()


def forget() -> None:
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        del sys.modules[name]


def edited(file: Path, old: str, new: str) -> Contract:
    """The contract as a new process reads it after an edit, which is taken back."""
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    forget()
    try:
        contract = load_contract("acme.boilers")
        assert contract.digest and contract.serving_digest and code_digest(contract)
        contract.__dict__["code"] = code_digest(contract)
        return contract
    finally:
        file.write_text(text)


@pytest.mark.parametrize(("module", "old", "new"),
                         [("boilers", "values / 2", "values / 3"), ("boilers", "2.5", "2.6"),
                          ("units", "celsius + ZERO", "ZERO + celsius"), ("units", "273.15", "273.16")])
def test_an_edit_of_what_a_feature_calls_is_another_model(acme, module, old, new):
    before = edited(acme / "boilers.py", "2.5", "2.50")
    after = edited(acme / f"{module}.py", old, new)
    assert (before.serving_digest != after.serving_digest and before.digest != after.digest
            and before.__dict__["code"] != after.__dict__["code"])
    assert before.serving_digest_format_1 == after.serving_digest_format_1
    assert set(after.describe()["features"]["load"]["helpers"]) == {
        "acme.boilers.PRESSURE", "acme.boilers.half", "acme.units.ZERO", "acme.units.kelvin"}


def test_an_edit_of_what_no_feature_calls_serves_on(acme):
    before = edited(acme / "units.py", "ZERO = ", "ZERO  = ")
    after = edited(acme / "units.py", "ZERO = ", "POUNDS = 0.4536\nZERO = ")
    assert before.serving_digest == after.serving_digest


def test_code_of_the_core_and_of_libraries_is_in_no_helper():
    helpers = {name for feature in flights.describe()["features"].values()
               for name in feature.get("helpers", {})}
    assert helpers == {"contracts.flights.minute_of_day"}


def test_its_bento_serves(acme, addresses):
    context = open_model("acme.boilers")
    ingest_batch(context, datetime(2024, 1, 1), datetime(2024, 2, 12))
    version = fit_version(context)
    started = replicas.start(build_bento(context, version), version, 1, context.run, context.name, {})
    fleet.wait_ready(started)
    record = {"measured_at": "2024-02-12T00:00:00", "vibration": 8.0, "heat": 60.0, "starts": 100}
    answer = httpx.post(f"{started[0].url}/predict", json={"records": [record]}, timeout=20)
    assert answer.status_code == 200 and answer.json()["predictions"][0]["class"] in ("runs", "stops")


def test_a_model_of_format_1_is_held_to_the_digest_of_its_time(acme, addresses):
    context = open_model("acme.boilers")
    ingest_batch(context, datetime(2024, 1, 1), datetime(2024, 2, 12))
    folder = models.fetch(context.store, context.name, fit_version(context), context.run / "models")
    columns = context.contract.columns_of(context.contract.source(datetime(2024, 2, 12),
                                                                       datetime(2024, 2, 13)))
    expected = load_model(context.contract, folder).probabilities(columns)
    with pytest.raises(PerennialError, match="trained for other columns"):
        load_model(edited(acme / "units.py", "273.15", "273.16"), folder)

    state = json.loads((folder / "model.json").read_text())
    folder.chmod(0o700)
    (folder / "model.json").unlink()
    (
        folder / "model.json").write_text(json.dumps(
            state | {"format": 1, "serving": context.contract.serving_digest_format_1}))
    np.testing.assert_array_equal(load_model(context.contract, folder).probabilities(columns), expected)
    (folder / "model.json").write_text(json.dumps(state | {"format": 4}))
    with pytest.raises(PerennialError, match="format 4, this code reads up to 3"):
        load_model(context.contract, folder)
