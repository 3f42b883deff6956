"""Join a window's logged predictions with its events, by the contract's key, and with labels sent for their
ids, and add up how the model did on them."""

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from contracts.core.contract import Contract
from contracts.core.outcome_measures import BLOCKS, block_of
from contracts.core.outcome_sums import CodedValues, SlicedSums
from flows.monitoring.event_keys import EventKey
from flows.monitoring.logged import CODE, NUMBER_OF, PROBABILITY_OF, SLICE_OF, TIME, LoggedPredictions
from flows.monitoring.sample import Sample
from flows.monitoring.spill import MEMORY_FAULTS, Spill, SpilledTable, is_out_of_memory
from flows.monitoring.window_events import PLACE, WindowEvents, need_columns, need_names
from registry.context import ModelContext
from registry.labels import ORDER, read_labels
from registry.predictions import NUMBER, REPLICA

# Columns of a prediction that was joined: whether an event has its key, or else a label was sent for its id.
HAS_EVENT, HAS_LABEL = "has_event", "has_label"
LABEL = "label"  # the index of a sampled prediction's class
STREAMED_ROWS = 200_000  # joined rows in memory at a time
# How many times its memory DuckDB can join in one pass. It joined five times of numbers, not four of texts.
TIMES_MEMORY, TIMES_MEMORY_OF_TEXTS = 6, 1.5
MAX_PASSES = 256


@dataclass
class Joined:
    """What is added up of joined predictions: `sums` over all that are labelled; how many were `streamed`,
    and have an event (`joined`); of the sampled ones that are `labelled` code, number and LABEL; a sample of
    those `without_event`, by code and number."""

    sums: SlicedSums
    streamed: int = 0
    joined: int = 0
    labelled: list[pa.Table] = field(default_factory=list)
    without_event: Sample = field(default_factory=Sample)


def sent_labels(context: ModelContext, spill: Spill, logged: LoggedPredictions) -> SpilledTable:
    """The labels that were sent for the predictions, on disk; some more may be there."""
    codes, table = {name: code for code, name in enumerate(logged.replicas.names)}, spill.table("labels")
    for rows in read_labels(context, logged.numbers):
        replicas = rows[REPLICA].combine_chunks()
        places = np.array([codes.get(name, -1) for name in replicas.dictionary.to_pylist()], np.int32)
        table.add(pa.table({CODE: places[replicas.indices.to_numpy()], NUMBER_OF: rows[NUMBER],
                            ORDER: rows[ORDER], **need_columns(context.contract, rows)}))
    return table


def join(key: EventKey, spill: Spill, logged: LoggedPredictions, events: WindowEvents | None,
         labels: SpilledTable) -> Joined:
    """Join the predictions, of which there are some. An event's label goes before one that was sent for the
    id; of several of a key the last event's holds, of several for an id the first that was sent."""
    on_disk = events.on_disk if events and events.on_disk.rows else None
    if not on_disk and not labels.rows:
        return Joined(SlicedSums.empty(len(key.contract.label.classes)), logged.sums.rows)
    query = OutcomeQuery(key, logged, on_disk, labels)
    joined = _added_up(spill, query)
    if joined.streamed > logged.sums.rows:  # some key is that of several events, which is rare
        joined = _added_up(spill, replace(query, is_key_unique=False))
    return joined


@dataclass(frozen=True)
class OutcomeQuery:
    """The query of every prediction, with what its label is made from where an event or a label was found."""

    key: EventKey
    logged: LoggedPredictions
    events: SpilledTable | None
    labels: SpilledTable
    is_key_unique: bool = True

    def passes(self, memory_mb: int) -> int:
        """In how many passes so much memory should suffice."""
        has_texts = any(self.key.contract.python_type(name) is str for name in self.key.contract.key)
        times = TIMES_MEMORY_OF_TEXTS if has_texts and self.events else TIMES_MEMORY
        return 1 + int((self.events or self.labels).size_mb / (times * memory_mb))

    def sql(self, passes: int, index: int) -> str:
        """The query of those predictions whose key, or id where none is joined by it, falls to a pass."""
        def part(table: str) -> str:
            by = self.key.of(table) if self.events else [f"{table}.{CODE}", f"{table}.{NUMBER_OF}"]
            return f"hash({', '.join(by)}) % {passes} = {index}" if passes > 1 else "TRUE"

        needs, has_event, has_label = need_names(self.key.contract), "FALSE", "FALSE"
        tables, cells = f"(SELECT * FROM {self.logged.on_disk.sql} l WHERE {part('l')}) l", needs
        if self.labels.rows:
            # As one struct: of a label that came first, a missing cell holds, too.
            packed = ", ".join(f"{need} := {need}" for need in needs)
            tables = (f"{tables} LEFT JOIN (SELECT {CODE}, {NUMBER_OF}, arg_min(struct_pack({packed}), "
                      f"\"{ORDER}\") AS label FROM {self.labels.sql} b "
                      f"WHERE {'TRUE' if self.events else part('b')} GROUP BY ALL) b "
                      f"ON l.{CODE} = b.{CODE} AND l.{NUMBER_OF} = b.{NUMBER_OF}")
            has_label, cells = "b.label IS NOT NULL", [f"b.label.{need}" for need in needs]
        if self.events:
            last = "" if self.is_key_unique else (
                f"QUALIFY row_number() OVER (PARTITION BY {', '.join(self.key.of('e'))} "
                f"ORDER BY e.{TIME} DESC, e.{PLACE} DESC) = 1")
            tables = (f"{tables} LEFT JOIN (SELECT * FROM {self.events.sql} e WHERE {part('e')} {last}) e "
                      f"ON {self.key.match('l', 'e')}")
            has_event = f"e.{PLACE} IS NOT NULL"
            cells = [f"CASE WHEN {has_event} THEN e.{need} ELSE {cell} END" if self.labels.rows
                     else f"e.{need}" for need, cell in zip(needs, cells)]
        columns = [f"l.{CODE}", f"l.{NUMBER_OF}", f"l.{TIME}",
                   *(f"l.{PROBABILITY_OF}{place}" for place in range(len(self.key.contract.label.classes))),
                   *(f"l.{SLICE_OF}{place}" for place in range(len(self.logged.slices))),
                   *(f"{cell} AS {need}" for cell, need in zip(cells, needs)),
                   f"{has_event} AS {HAS_EVENT}", f"{has_label} AS {HAS_LABEL}"]
        return f"SELECT {', '.join(columns)} FROM {tables}"


def _added_up(spill: Spill, query: OutcomeQuery) -> Joined:
    """Add up all predictions, in as many passes as the memory asks for."""
    passes = query.passes(spill.memory_mb)
    while True:
        joined = Joined(SlicedSums.empty(len(query.key.contract.label.classes)))
        try:
            for index in range(passes):
                rows = spill.connection.sql(query.sql(passes, index))
                for batch in rows.to_arrow_reader(STREAMED_ROWS):
                    _add(joined, query.logged, query.key.contract, pa.Table.from_batches([batch]))
            return joined
        except MEMORY_FAULTS as error:
            if not is_out_of_memory(error) or passes >= MAX_PASSES:
                raise
            passes *= 4


def _add(joined: Joined, logged: LoggedPredictions, contract: Contract, rows: pa.Table) -> None:
    has_event, has_label = (rows[name].to_numpy() for name in (HAS_EVENT, HAS_LABEL))
    hashes = logged.hashes(rows[CODE].to_numpy(), rows[NUMBER_OF].to_numpy())
    joined.streamed += len(rows)
    joined.joined += int(has_event.sum())
    if not has_event.all():
        missing = np.flatnonzero(~has_event)
        joined.without_event.add(hashes[missing], lambda chosen: rows.select([CODE, NUMBER_OF]).take(
            missing[chosen]))
    is_labelled = has_event | has_label
    if not is_labelled.all():
        rows, hashes = rows.filter(pa.array(is_labelled)), hashes[is_labelled]
    if not len(rows):
        return
    needs = rows.select(need_names(contract)).rename_columns([*contract.label.needs]).to_pandas()
    labels = contract.labels_of(needs)
    probabilities = np.column_stack([rows[f"{PROBABILITY_OF}{index}"].to_numpy()
                                     for index in range(len(contract.label.classes))])
    joined.sums += SlicedSums.of(labels, probabilities, _slices(logged, contract, rows),
                                 contract.label.class_weights)
    sampled = np.flatnonzero(hashes <= logged.sample.limit)
    joined.labelled.append(rows.select([CODE, NUMBER_OF]).take(sampled).append_column(
        LABEL, pa.array(labels[sampled])))


def _slices(logged: LoggedPredictions, contract: Contract,
            rows: pa.Table) -> dict[str, np.ndarray | CodedValues]:
    """The values of the rows by slice's column; also by time, so that it is seen since when it is worse."""
    slices: dict[str, np.ndarray | CodedValues] = {
        BLOCKS: block_of(rows[TIME].to_numpy(), contract.drift.window)}
    for index, (name, names) in enumerate(logged.slices.items()):
        values = rows[f"{SLICE_OF}{index}"].to_numpy()
        is_text = contract.python_type(name) is str
        slices[name] = CodedValues(values.astype(np.int64), names.names) if is_text else values
    return slices
