"""A fitted model: preprocessing and booster in one, saved as JSON and UBJSON, loaded without pickle."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xgboost

from contracts.core.calibration import CALIBRATION_FILE, Calibration
from contracts.core.contract import Contract
from contracts.core.errors import PerennialError
from contracts.core.features import Columns, Record
from contracts.core.loading import load_contract

# Of a saved model: raise it with a change that an older reader can't follow. `is_of` reads format 1.
# Without a recalibration layer a model is written as before there were layers, to the same bytes.
FORMAT, FORMAT_WITHOUT_LAYER = 3, 2
UNKNOWN = 0  # the category code of every value that training did not see often enough
SERVED = "model"  # the stem of the files of the model that serves
TWIN = "twin"  # and of the same model trained without the newest rows, by which the gate judges
PANDAS_ROWS = 10_000  # from which on importing and calling pandas is faster


@dataclass(frozen=True)
class Model:
    """A fitted model: category vocabularies and a booster, under one contract, and the layer by which it was
    recalibrated since, if it was."""

    contract: Contract
    vocabularies: Mapping[str, tuple[str, ...]]
    booster: xgboost.Booster
    calibration: Calibration | None = None

    @cached_property
    def _codes(self) -> dict[str, dict[Any, float]]:
        return _category_codes(self.vocabularies)

    def matrix(self, columns: Columns) -> np.ndarray:
        """The features of n records, float32 (n, features): the same code for one record and a million."""
        return _matrix(self.contract, self._codes, columns)

    def probabilities(self, columns: Columns) -> np.ndarray:
        """Each class's probability, float32 (n, classes)."""
        answers = self.booster.inplace_predict(self.matrix(columns))
        return answers if self.calibration is None else self.calibration.apply(answers)

    def classes(self, probabilities: np.ndarray) -> np.ndarray:
        """The index of the predicted class, int64 (n,)."""
        return self.contract.label.predicted(probabilities)

    def files(self, stem: str = SERVED) -> dict[str, bytes]:
        """The model's files by name: JSON for preprocessing and layer, UBJSON for the booster."""
        state = {"format": FORMAT if self.calibration else FORMAT_WITHOUT_LAYER,
                 "serving": self.contract.serving_digest,
                 "vocabularies": {name: list(values) for name, values in self.vocabularies.items()}}
        return {
            f"{stem}.json": json.dumps(state, sort_keys=True, indent=1).encode(),
            f"{stem}.ubj": bytes(self.booster.save_raw("ubj")),
            **({CALIBRATION_FILE: msgspec.json.encode(self.calibration)} if self.calibration else {}),
        }


def is_compatible(contract: Contract, folder: Path, stem: str = SERVED) -> bool:
    """Whether a saved model has the features and classes that the contract has now."""
    return is_of(contract, json.loads((folder / f"{stem}.json").read_bytes()))


def is_of(contract: Contract, state: Mapping[str, Any]) -> bool:
    """Whether a saved model's JSON `state` fits the contract."""
    return bool(state["serving"]
                == (contract.serving_digest if state["format"] > 1 else contract.serving_digest_format_1))


def load_model(contract: Contract, folder: Path, stem: str = SERVED, threads: int = 1) -> Model:
    """Load a saved model; raises PerennialError if it is another contract's or of a newer format."""
    state = json.loads((folder / f"{stem}.json").read_bytes())
    if state["format"] > FORMAT:
        raise PerennialError(f"{folder} has model format {state['format']}, this code reads up to {FORMAT}; "
                             f"upgrade perennial")
    if not is_of(contract, state):
        raise PerennialError(f"{folder} was trained for other columns, features or classes than the contract "
                             f"of {contract.name} has now; see: perennial contract diff "
                             f"{contract.name}@champion {contract.name}; train again: perennial train "
                             f"{contract.name}")
    booster = xgboost.Booster({"nthread": threads},
                              model_file=bytearray((folder / f"{stem}.ubj").read_bytes()))
    layer = read_calibration(folder) if state["format"] > FORMAT_WITHOUT_LAYER else None
    return Model(contract, {name: tuple(values) for name, values in state["vocabularies"].items()}, booster,
                 layer)


def read_calibration(folder: Path) -> Calibration:
    """The recalibration layer of a saved model."""
    return msgspec.json.decode((folder / CALIBRATION_FILE).read_bytes(), type=Calibration)


def _category_codes(vocabularies: Mapping[str, tuple[str, ...]]) -> dict[str, dict[Any, float]]:
    return {
        name: {None: np.nan, **{value: code for code, value in enumerate(values, start=UNKNOWN + 1)}}
        for name, values in vocabularies.items()
    }


def _matrix(contract: Contract, codes: Mapping[str, Mapping[Any, float]], columns: Columns) -> np.ndarray:
    rows = len(columns[contract.event_time])
    matrix = np.empty((rows, len(contract.features)), dtype=np.float32)
    for position, feature in enumerate(contract.features):
        values = feature.values(columns)
        if feature.kind == "category":
            values = _encode(codes[feature.name], values)
        matrix[:, position] = values
    return matrix


def _encode(codes: Mapping[Any, float], values: np.ndarray) -> Any:
    """The code of each value; with many rows each distinct value is looked up once."""
    if len(values) < PANDAS_ROWS:
        return [codes.get(value, UNKNOWN) for value in values]
    import pandas  # imported here: a request has few records, and does without

    positions, distinct = pandas.factorize(values)
    found = np.array([*(codes.get(value, UNKNOWN) for value in distinct), UNKNOWN], dtype=np.float64)
    encoded = found[positions]
    missing = positions < 0
    encoded[missing] = [codes.get(value, UNKNOWN) for value in values[missing]]
    return encoded


def columns_of_records(contract: Contract, records: list[Mapping[str, Any]]) -> Columns:
    """JSON records (times as ISO-8601 text, absent or null: missing) as columns."""
    types = {str: object, int: np.float64, float: np.float64, bool: np.float64}
    return {name: np.array([record.get(name) for record in records],
                           types.get(contract.python_type(name), "datetime64[s]"))
            for name in contract.request_columns}


def records_of_columns(contract: Contract, columns: Columns) -> list[Record]:
    """The inverse of `columns_of_records`; what a caller would send who knows these columns."""
    def plain(name: str, value: Any) -> Any:
        if contract.python_type(name) in (int, bool):
            return None if np.isnan(value) else contract.python_type(name)(value)
        if isinstance(value, np.datetime64):
            return str(value)
        return None if value is None or value != value else value

    names = tuple(columns)
    return [{name: plain(name, value) for name, value in zip(names, row)}
            for row in zip(*(columns[name].tolist() if columns[name].dtype.kind == "f" else columns[name]
                             for name in names))]


def main() -> None:
    """Answer a version's own sample records from its saved files; arguments: the contract, the folder."""
    contract, folder = load_contract(sys.argv[1]), Path(sys.argv[2])
    samples = json.loads((folder / "samples.json").read_bytes())
    columns = columns_of_records(contract, samples["records"])
    json.dump(load_model(contract, folder).probabilities(columns).tolist(), sys.stdout)
