"""The models that the replay is compared with: one never retrained, and one retrained every month."""

from contextlib import closing
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from contracts.core.contract import Contract
from contracts.core.loading import load_contract
from flows.demo.traffic import MODELS, TRAFFIC, YEAR, source_rows
from flows.training.dataset import read_training_set
from service.model import Model, load_model


def rival_probabilities(first: str, until: datetime) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities of both for all the traffic, (n, classes): of the `first` model's files, and
    of a model retrained at the start of each month without a gate."""
    contract = load_contract(MODELS[0])
    rows = source_rows(contract, YEAR, until)
    columns, times = contract.columns_of(rows), rows[contract.event_time]
    served = (times >= TRAFFIC).to_numpy()
    frozen = load_model(contract, Path(first)).probabilities(_only(columns, served))
    calendar = np.full((len(rows), len(contract.label.classes)), np.nan)
    for month in pd.date_range(TRAFFIC, until, freq="MS", inclusive="left"):
        known = (times < month - contract.label.matures).to_numpy()
        due = ((times >= month) & (times < month + pd.offsets.MonthBegin(1))).to_numpy()
        calendar[due] = _trained(contract, rows[known]).probabilities(_only(columns, due))
    return frozen, calendar[served]


def _trained(contract: Contract, rows: pd.DataFrame) -> Model:
    with TemporaryDirectory() as folder, closing(read_training_set(contract, [rows], len(rows), datetime.max,
                                                                   Path(folder))) as ready:
        return ready.fit(ready.rounds(threads=1)["rounds"], threads=1)


def _only(columns: Any, chosen: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[chosen] for name, values in columns.items()}
