"""Join logged predictions with their labels, by the event's key or by the prediction's id."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from contracts.core.classification import PROBABILITY
from contracts.core.contract import Contract
from contracts.core.errors import Conflict, PerennialError
from flows.tables import read_table
from registry import data, layout
from registry.context import ModelContext
from registry.traffic import _parquet, _read, labels_by_id, logged_predictions

LATER = ".later"  # ends the name of a column as it was ingested, beside the one that the caller sent

SHIFTS = {f"{abs(hours)} hours {'earlier' if hours < 0 else 'later'}": timedelta(hours=hours) for hours in (-24, -12, -1, 1, 12, 24)}


@dataclass(frozen=True)
class Outcomes:
    """A version's logged predictions of a window, those of them whose event was ingested since, and all whose label is in:
    of such an event, or sent for their id."""

    logged: pd.DataFrame
    met: pd.DataFrame
    labelled: pd.DataFrame
    could_meet: bool  # that callers sent the key, or labels came for ids

    @property
    def coverage(self) -> float:
        return len(self.labelled) / max(len(self.logged), 1)

    @property
    def unmet(self) -> pd.DataFrame:
        return self.logged[~self.logged["id"].isin(self.met["id"])]


def unlabelled_windows(memory: ModelContext) -> list[dict[str, Any]]:
    """The windows whose labels are not all in, oldest first: how many predictions each logged, and what these promise."""
    contract, labels, promoted = memory.contract, data.newest(memory.store, memory.name).end, memory.ledger.state().promoted
    open_: dict[datetime, list[str]] = {}
    for key in memory.store.list(layout.traffic(layout.PREDICTIONS, memory.name)):
        version, start = layout.parse_traffic(key)
        if version in promoted and (start + contract.drift.window).isoformat() > labels:
            open_.setdefault(start, []).append(key)
    if not open_:
        return []
    from contracts.core.performance import estimate_performance

    return [{"window": start.isoformat()} | estimate_performance(probabilities_of(contract, _read(memory, keys)))
            for start, keys in sorted(open_.items())]


def join_outcomes(memory: ModelContext, version: str, start: datetime, events: pd.DataFrame) -> Outcomes:
    """A window's predictions and events, joined on the contract's key; none is met where it names no key or callers send none."""
    answered, key = logged_predictions(memory, version, start), list(memory.contract.key)
    told, by_id = answered.dropna(subset=key) if key and {*key} <= {*answered} else answered.head(0), labels_by_id(memory)
    met = told if told.empty else told.merge(_once(key, events), on=key, suffixes=("", LATER))
    named = answered[~answered["id"].isin(met["id"])].merge(by_id, on="id", suffixes=(".sent", ""))
    labelled = pd.concat([_with_labels(memory.contract, met), _with_labels(memory.contract, named)], ignore_index=True)
    return Outcomes(answered, met, labelled, bool(len(told) or len(named)))


def _with_labels(contract: Contract, found: pd.DataFrame) -> pd.DataFrame:
    """Ids, probabilities and the columns that the label is made of, as they came with the label."""
    if found.empty:
        return pd.DataFrame()
    needs = {f"{name}{LATER}" if f"{name}{LATER}" in found else name: name for name in contract.label.needs}
    return found[["id", *(PROBABILITY + name for name in contract.label.classes), *needs]].rename(columns=needs)


def store_labels(memory: ModelContext, file: str) -> int:
    """Keep the labels of predictions by their ids, from a .parquet or .csv file; how many. The same file again changes nothing; of
    an id that comes again the label stays that came first."""
    from contracts.core.cells import read_cells

    needs, rows = memory.contract.label.needs, read_table(Path(file))
    if lacking := [name for name in ("id", *needs) if name not in rows]:
        raise PerennialError(f"{file} has no column {', '.join(lacking)}; it holds a prediction's id and {', '.join(needs)} on each row")
    if rows.empty:
        raise PerennialError(f"{file} holds no row; name a file with a prediction's id and its label on each")
    typed = {name: read_cells(rows[name], memory.contract.python_type(name)) for name in needs}
    for name, values in typed.items():
        if (bad := rows[name].notna() & values.isna()).any():
            raise PerennialError(f"{file}: {name} is {rows.loc[bad, name].iloc[0]!r} in row {int(bad.to_numpy().argmax())}, no "
                                 f"{memory.contract.python_type(name).__name__}; {int(bad.sum())} rows are like it: mend them")
    content = _parquet(pa.table({"id": rows["id"].astype(str).to_numpy(object), **{name: values.to_numpy() for name, values in typed.items()}}))
    digest = sha256(content).hexdigest()
    with suppress(Conflict):
        memory.store.create(layout.labels(memory.name, digest), content)
    memory.ledger.record("labelled", {"labels": digest, "rows": len(rows)}, once=("labels",))
    return len(rows)


def _once(key: list[str], events: pd.DataFrame) -> pd.DataFrame:
    return events.drop_duplicates(key, keep="last")


def shifted(contract: Contract, found: Outcomes, events: pd.DataFrame) -> dict[str, int]:
    """How many predictions that met no event meet one, that nobody else predicted, a while before or after."""
    key, unmet = list(contract.key), found.unmet
    if unmet.empty:
        return {}
    left = events.merge(found.met[key].drop_duplicates(), on=key, how="left", indicator="whose")
    left = _once(key, left[left["whose"] == "left_only"])[key]
    there = {name: unmet[key].assign(**{contract.event_time: unmet[contract.event_time] + while_}) for name, while_ in SHIFTS.items()}
    return {name: len(moved.merge(left, on=key)) for name, moved in there.items()}


def ingested_events(memory: ModelContext, start: datetime) -> pd.DataFrame:
    """The events of a window as they were ingested, typed as a request's columns are."""
    contract = memory.contract
    rows = data.read(memory.store, data.newest(memory.store, memory.name), start, start + contract.drift.window)
    names = tuple(dict.fromkeys((*contract.sent_columns, *contract.key, *contract.label.needs)))
    return pd.DataFrame(contract.columns_of(rows, names))


def probabilities_of(contract: Contract, predictions: pd.DataFrame) -> np.ndarray:
    """What was answered, (n, classes)."""
    return predictions[[PROBABILITY + name for name in contract.label.classes]].to_numpy()
