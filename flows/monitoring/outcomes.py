"""Join logged predictions with their labels, by the contract's key or by the prediction's id.

An event is a labelled row that was ingested from the source, not one of the ledger's.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pyarrow as pa

from contracts.core.classification import estimate_performance
from contracts.core.contract import Contract
from contracts.core.errors import Conflict, PerennialError
from contracts.core.verdict import Estimate
from flows.tables import read_table
from registry import data, layout
from registry.context import ModelContext
from registry.events import LabelsStored
from registry.traffic import labels_by_id, logged_predictions, parquet, read_predictions, traffic_keys

INGESTED = ".later"  # suffix of a column as it was ingested, beside the one that the caller sent

SHIFTS = {f"{abs(hours)} hours {'earlier' if hours < 0 else 'later'}": timedelta(hours=hours)
          for hours in (-24, -12, -1, 1, 12, 24)}


@dataclass(frozen=True)
class Outcomes:
    """A version's logged predictions of a window: all (`logged`), those `joined` with an ingested
    event by its key, and those `labelled` by that event or by a label for the prediction's id.

    `can_join`: whether callers sent the key, or labels were sent for ids.
    """

    logged: pd.DataFrame
    joined: pd.DataFrame
    labelled: pd.DataFrame
    can_join: bool

    @property
    def coverage(self) -> float:
        return len(self.labelled) / max(len(self.logged), 1)

    @property
    def unjoined(self) -> pd.DataFrame:
        return self.logged[~self.logged["id"].isin(self.joined["id"])]


def unlabelled_windows(context: ModelContext) -> dict[str, Estimate]:
    """The estimated performance on windows whose labels are not all in, by their starts, oldest first."""
    contract, promoted = context.contract, context.ledger.state().promoted
    labelled_until = data.newest(context.store, context.name).complete_until(contract.schedule.stale_after)
    unlabelled: dict[datetime, list[str]] = {}
    for path, (version, start) in traffic_keys(context, layout.PREDICTIONS).items():
        if version in promoted and start + contract.drift.window > labelled_until:
            unlabelled.setdefault(start, []).append(path)
    if not unlabelled:
        return {}
    return {start.isoformat(): estimate_performance(
                contract.label.probabilities_in(read_predictions(context, paths)))
            for start, paths in sorted(unlabelled.items())}


def join_outcomes(context: ModelContext, version: str, start: datetime, events: pd.DataFrame) -> Outcomes:
    """A window's predictions joined with its events on the contract's key,
    and with labels sent for ids; without a key, with the latter alone."""
    logged, key = logged_predictions(context, version, start), list(context.contract.key)
    with_key = logged.dropna(subset=key) if key and {*key} <= {*logged} else logged.head(0)
    joined = (with_key if with_key.empty
              else with_key.merge(_last_of_key(key, events), on=key, suffixes=("", INGESTED)))
    by_id = logged[~logged["id"].isin(joined["id"])].merge(labels_by_id(context), on="id",
                                                           suffixes=(".sent", ""))
    labelled = pd.concat([_labelled(context.contract, rows) for rows in (joined, by_id)], ignore_index=True)
    return Outcomes(logged, joined, labelled, bool(len(with_key) or len(by_id)))


def _labelled(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """Ids, probabilities, and the columns that the label is made from."""
    if rows.empty:
        return pd.DataFrame()
    needs = {f"{name}{INGESTED}" if f"{name}{INGESTED}" in rows else name: name
             for name in contract.label.needs}
    known = [name for name in dict.fromkeys((contract.event_time, *contract.gate.slices)) if name in rows]
    return rows[["id", *known, *contract.label.probability_names, *needs]].rename(columns=needs)


def store_labels(context: ModelContext, file: str) -> int:
    """Store labels of prediction ids from a .parquet or .csv file; returns how many. The same
    file again changes nothing; of an id with several labels the first one holds."""
    from contracts.core.cells import read_cells

    needs, rows = context.contract.label.needs, read_table(Path(file))
    if lacking := [name for name in ("id", *needs) if name not in rows]:
        raise PerennialError(f"{file} has no column {', '.join(lacking)}; it holds a prediction's id and "
                             f"{', '.join(needs)} on each row")
    if rows.empty:
        raise PerennialError(f"{file} has no row; name a file with a prediction's id and its label on each")
    typed = {name: read_cells(rows[name], context.contract.python_type(name)) for name in needs}
    for name, values in typed.items():
        if (bad := rows[name].notna() & values.isna()).any():
            raise PerennialError(f"{file}: {name} is {rows.loc[bad, name].iloc[0]!r} in row "
                                 f"{int(bad.to_numpy().argmax())}, not of type "
                                 f"{context.contract.python_type(name).__name__}; {int(bad.sum())} rows are "
                                 f"like it: correct them")
    content = parquet(pa.table({"id": rows["id"].astype(str).to_numpy(object),
                                **{name: values.to_numpy() for name, values in typed.items()}}))
    digest = sha256(content).hexdigest()
    with suppress(Conflict):
        context.store.create(layout.labels(context.name, digest), content)
    context.ledger.record(LabelsStored(labels=digest, rows=len(rows)), once=("labels",))
    return len(rows)


def _last_of_key(key: list[str], events: pd.DataFrame) -> pd.DataFrame:
    return events.drop_duplicates(key, keep="last")


def joins_if_shifted(contract: Contract, outcomes: Outcomes, events: pd.DataFrame) -> dict[str, int]:
    """By the name of a time shift, how many of the predictions without an event
    have one, that no other prediction has, if their event time is shifted."""
    key, time, unjoined = list(contract.key), contract.event_time, outcomes.unjoined
    if unjoined.empty:
        return {}
    marked = events.merge(outcomes.joined[key].drop_duplicates(), on=key, how="left", indicator="side")
    free = _last_of_key(key, marked[marked["side"] == "left_only"])[key]
    shifted = {name: unjoined[key].assign(**{time: unjoined[time] + shift}) for name, shift in SHIFTS.items()}
    return {name: len(rows.merge(free, on=key)) for name, rows in shifted.items()}


def ingested_events(context: ModelContext, start: datetime) -> pd.DataFrame:
    """The ingested events of a window, as the arrays that serving builds from a request."""
    contract = context.contract
    rows = data.read(context.store, data.newest(context.store, context.name), start,
                     start + contract.drift.window)
    names = tuple(dict.fromkeys((*contract.sent_columns, *contract.key, *contract.label.needs)))
    return pd.DataFrame(contract.columns_of(rows, names))

