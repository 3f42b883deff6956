"""Labels sent for the ids of predictions, kept by replica and number, so that those of a window are found
without reading the others: a window's predictions are of few replicas, and their numbers count on."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.core.errors import Conflict
from registry import layout
from registry.context import ModelContext
from registry.events import LabelsStored
from registry.predictions import NUMBER, PORTION_ROWS, REPLICA, fetched, id_columns, parquet

ORDER = "order"  # which of several labels for a prediction came first: that holds
OTHERS = "~others"  # the folder of replicas that have none of their own
MAX_FOLDERS = 256  # made for the replicas of labels that are sent at once; those of more go to OTHERS
PART_ROWS = 1_000_000  # of a file
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][\w-]{0,63}", re.ASCII)

NumberRanges = Mapping[str, tuple[int, int]]
"""By replica, the numbers of its first and its last prediction."""


def put_labels(context: ModelContext, ids: Sequence[str], columns: Mapping[str, pa.Array],
               digest: str) -> None:
    """Store labels that were sent at once, `columns` by name, under the digest of them all; of an id that
    comes twice the first. They hold once a LabelsStored with this digest is in the ledger."""
    table = pa.table(id_columns(ids) | dict(columns))
    codes, numbers = table[REPLICA].combine_chunks().indices.to_numpy(), table[NUMBER].to_numpy()
    replicas = table[REPLICA].combine_chunks().dictionary.to_pylist()
    order = np.lexsort((numbers, codes))  # stable: the first of an id stays the first
    codes, numbers = codes[order], numbers[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (codes[1:] != codes[:-1]) | (numbers[1:] != numbers[:-1])
    rows = table.take(order[is_first])
    codes = codes[is_first]
    ends = np.flatnonzero(np.diff(codes, append=-1)) + 1
    own = _with_folder([replicas[code] for code in codes[ends - 1]])
    others = []
    for start, end in zip([0, *ends[:-1]], ends):
        part, replica = rows.slice(start, end - start), replicas[codes[start]]
        if replica in own:
            _put_parts(context, replica, part, digest)
        else:
            others.append(part)
    if others:
        _put_parts(context, OTHERS, pa.concat_tables(others).sort_by(NUMBER), digest)


def _with_folder(replicas: Sequence[str]) -> set[str]:
    """The replicas that have a folder of their own: none if they are so many that the ids may be anything."""
    named = {replica for replica in replicas if FOLDER_NAME.fullmatch(replica)}
    return named if len(named) <= MAX_FOLDERS else set()


def _put_parts(context: ModelContext, folder: str, rows: pa.Table, digest: str) -> None:
    for start in range(0, len(rows), PART_ROWS):
        part = rows.slice(start, PART_ROWS)
        limits = pc.min_max(part[NUMBER]).as_py()
        key = layout.labels(context.name, folder, layout.LabelsKey(
            limits["min"], limits["max"], digest, start // PART_ROWS))
        with suppress(Conflict):
            context.store.create(key, parquet(part.unify_dictionaries()))


def read_labels(context: ModelContext, ranges: NumberRanges) -> Iterator[pa.Table]:
    """The labels sent for predictions in these ranges, and some others: REPLICA, NUMBER, ORDER, and the
    columns that the label is made from. Files of other replicas and numbers are not read."""
    stored = context.ledger.state().of_kind(LabelsStored)
    order = {labels.labels: index for index, labels in enumerate(stored)}
    if not order:
        return
    found = {key: order[part.digest] for key, part in _files(context, ranges) if part.digest in order}
    found |= {layout.undivided_labels(context.name, labels.labels): order[labels.labels]
              for labels in stored if not labels.by_replica}
    keys, wanted = [*found], pa.array([*ranges], pa.string())
    for key, content in zip(keys, fetched(context, keys)):
        row = 0
        for batch in pq.ParquetFile(pa.BufferReader(content)).iter_batches(PORTION_ROWS):
            table, place = _by_prediction(pa.Table.from_batches([batch])), row
            row += len(table)
            # Labels for one prediction are in order within older files, too, where it may come twice.
            places = pa.array((np.int64(found[key]) << 40) + np.arange(place, row))
            table = table.append_column(ORDER, places)
            yield table.filter(pc.is_in(table[REPLICA].cast(pa.string()), value_set=wanted))


def _files(context: ModelContext, ranges: NumberRanges) -> Iterator[tuple[str, layout.LabelsKey]]:
    """The files of these replicas that may hold labels of these numbers."""
    for folder in (*(replica for replica in ranges if FOLDER_NAME.fullmatch(replica)), OTHERS):
        numbers = [ranges[folder]] if folder in ranges else [*ranges.values()]
        for key in context.store.list(layout.labels_of(context.name, folder)):
            part = layout.parse_labels(key)
            if part and any(part.first <= last and first <= part.last for first, last in numbers):
                yield key, part


def _by_prediction(table: pa.Table) -> pa.Table:
    if "id" not in table.column_names:
        return table
    columns = {name: table[name] for name in table.column_names if name != "id"}
    return pa.table(id_columns(table["id"].to_pylist()) | columns)
