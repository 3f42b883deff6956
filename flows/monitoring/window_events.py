"""One pass over a window's ingested events: what a join needs of them, on disk, and whole rows of those that
sampled predictions are of. An event is a labelled row from the source, not one of the ledger's."""

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.core.contract import Contract
from flows.monitoring.event_keys import EventKey, exact
from flows.monitoring.spill import Spill
from registry import data
from registry.store import Store

# Columns on disk besides the key: the event's time, where it was read, and what the label is made from, by
# its place in `needs`.
TIME, PLACE, NEED_OF = "t", "q", "a"
ROW = "row"  # of a sampled prediction


class WindowEvents:
    """What a pass leaves: how many events there are (`rows`), and their keys and labels `on_disk`."""

    def __init__(self, key: EventKey, spill: Spill, sample: pa.Table):
        """`sample`: sampled predictions, with their key."""
        self._key, self._contract, self._spill = key, key.contract, spill
        self.on_disk, self.rows = spill.table("events"), 0
        self._sampled = sample.select(key.names).append_column(ROW, pa.array(np.arange(len(sample))))
        self._found: list[pa.Table] = []

    def read(self, store: Store, version: data.DataVersion, start: datetime, end: datetime) -> None:
        contract = self._contract
        names = dict.fromkeys((contract.event_time, *contract.sent_columns, *contract.key,
                               *contract.label.needs))
        self._spill.connection.register("sampled", self._sampled)
        for batch in data.batches(store, version, start, end, [*names]):
            self._add(pa.Table.from_batches([batch]))

    def _add(self, events: pa.Table) -> None:
        places, times = np.arange(self.rows, self.rows + len(events)), events[self._contract.event_time]
        keys = pa.table({**self._key.columns(events), TIME: exact(times, datetime), PLACE: places})
        self.on_disk.add(pa.table({**dict(zip(keys.column_names, keys.columns)),
                                   **need_columns(self._contract, events)}))
        self._spill.connection.register("batch", keys)
        found = self._spill.connection.sql(
            f"SELECT s.{ROW}, e.{TIME}, e.{PLACE} FROM batch e JOIN sampled s ON {self._key.match('e', 's')}"
        ).to_arrow_table()
        if len(found):
            self._found.append(pa.table({
                **{f" {name}": found[name] for name in found.column_names},
                **{name: events[name].take(pc.subtract(found[PLACE], self.rows))
                   for name in events.column_names}}))
        self.rows += len(events)

    def of_sample(self) -> tuple[np.ndarray, pa.Table] | None:
        """The sampled predictions that have an event, by their place in the sample, and these events; of
        several with the same key the last. None where none has."""
        if not self._found:
            return None
        order = [(f" {name}", "ascending") for name in (ROW, TIME, PLACE)]
        events = pa.concat_tables(self._found).sort_by(order)
        rows = events[f" {ROW}"].to_numpy()
        is_last = np.append(rows[1:] != rows[:-1], True)
        whole = [name for name in events.column_names if not name.startswith(" ")]
        return rows[is_last], events.select(whole).filter(pa.array(is_last))


def need_names(contract: Contract) -> list[str]:
    """The columns, in tables that are joined, of what the label is made from."""
    return [f"{NEED_OF}{index}" for index in range(len(contract.label.needs))]


def need_columns(contract: Contract, table: pa.Table) -> dict[str, pa.Array]:
    return {need: exact(table[name], contract.python_type(name))
            for need, name in zip(need_names(contract), contract.label.needs)}
