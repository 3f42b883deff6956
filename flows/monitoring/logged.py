"""One pass over a window's logged predictions: each once, what their probabilities promise, a sample of whole
rows, and the columns that a join with their labels needs, on disk."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from datetime import datetime

import numpy as np
import pyarrow as pa

from contracts.core.contract import Contract
from contracts.core.outcome_sums import MISSING, OTHERS, PromisedSums
from flows.monitoring.event_keys import EventKey
from flows.monitoring.sample import Sample, prediction_hashes, replica_seed
from flows.monitoring.spill import Spill
from registry.predictions import NUMBER, REPLICA

# Columns on disk besides the key: a replica's place among `replicas.names`, a prediction's number and event
# time; probabilities and slices have their place behind the name.
CODE, NUMBER_OF, TIME, PROBABILITY_OF, SLICE_OF = "r", "n", "t", "p", "s"
SENT = "."  # before the name of a column of the log, in the sample
MAX_NAMES = 10_000  # of a slice's column; the rows of later values are summed together


class Names:
    """Texts by the order in which they first came."""

    def __init__(self, names: Iterable[str] = (), most: int | None = None):
        self.names = list(names)
        self._places, self._most = {name: place for place, name in enumerate(self.names)}, most

    def places(self, texts: pa.ChunkedArray) -> np.ndarray:
        """The place of each text, int32 (n,): 0 for a missing one, 1 for one that finds no room."""
        coded = texts.combine_chunks()
        coded = coded if pa.types.is_dictionary(coded.type) else coded.dictionary_encode()
        places = np.array([*map(self._place, coded.dictionary.to_pylist()), 0], np.int32)
        return np.asarray(places[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)])

    def _place(self, text: str) -> int:
        place = self._places.get(text)
        if place is None:
            if self._most and len(self.names) >= self._most:
                return 1
            place = self._places[text] = len(self.names)
            self.names.append(text)
        return place


class OnceEach:
    """Which predictions come for the first time, by code of the replica and number.

    A replica's numbers count on, so the spans of two portions overlap where one was packed twice, and hardly
    elsewhere: only then are the `known` numbers of a span, which are on disk, looked through.
    """

    def __init__(self, known: Callable[[int, int, int], np.ndarray]):
        self._known, self._spans = known, dict[int, Spans]()

    def is_new(self, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Of each prediction, bool (n,)."""
        is_new = np.ones(len(numbers), bool)
        for code in np.unique(codes).tolist():
            rows = np.flatnonzero(codes == code)
            own = numbers[rows]
            if not (np.diff(own) > 0).all():
                is_repeated = np.ones(len(own), bool)
                is_repeated[np.unique(own, return_index=True)[1]] = False
                is_new[rows[is_repeated]] = False
            first, last = int(own.min()), int(own.max())
            if self._spans.setdefault(code, Spans()).add(first, last):
                is_new[rows] &= ~np.isin(own, self._known(code, first, last))
        return is_new

    def ends(self) -> dict[int, tuple[int, int]]:
        """By code, the least and the greatest number."""
        return {code: spans.ends for code, spans in self._spans.items()}


class Spans:
    """Spans of whole numbers, apart from one another and in order."""

    def __init__(self) -> None:
        self._firsts, self._lasts = list[int](), list[int]()

    @property
    def ends(self) -> tuple[int, int]:
        return self._firsts[0], self._lasts[-1]

    def add(self, first: int, last: int) -> bool:
        """Add a span, ends included; whether it overlaps others, with which it becomes one."""
        start, end = bisect_right(self._lasts, first - 1), bisect_right(self._firsts, last)
        if start < end:
            first, last = min(first, self._firsts[start]), max(last, self._lasts[end - 1])
        self._firsts[start:end], self._lasts[start:end] = [first], [last]
        return start < end


class LoggedPredictions:
    """What a pass leaves: `sums` over all predictions; a `sample`; how many name their event (`with_key`);
    `in_seconds`: whether some replica's log knows times in seconds alone. With `sums_only` the sums alone."""

    def __init__(self, contract: Contract, spill: Spill, sums_only: bool = False):
        self._contract, self._spill, self._sums_only = contract, spill, sums_only
        self._key, self._once, self._seeds = EventKey(contract), OnceEach(self._known), np.zeros(0, np.uint64)
        self.on_disk, self.sample, self.replicas = spill.table("logged"), Sample(), Names()
        self.sums, self.with_key, self.in_seconds = PromisedSums(), 0, False
        self.slices = {name: Names((MISSING, OTHERS), MAX_NAMES) for name in contract.gate.slices
                       if name in contract.sent_columns}

    @property
    def numbers(self) -> dict[str, tuple[int, int]]:
        """By replica, the least and the greatest number of its predictions."""
        return {self.replicas.names[code]: ends for code, ends in self._once.ends().items()}

    def hashes(self, codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The hashes of predictions, uint64 (n,)."""
        return prediction_hashes(self._seeds[codes], numbers)

    def add(self, table: pa.Table) -> None:
        """Take predictions as `read_predictions` gives them; those that were taken before are dropped."""
        codes, numbers = self._codes(table), table[NUMBER].to_numpy()
        is_new = self._once.is_new(codes, numbers)
        if not is_new.all():
            table, codes, numbers = table.filter(pa.array(is_new)), codes[is_new], numbers[is_new]
        if not len(table):
            return
        probabilities = [table[name].to_numpy() for name in self._contract.label.probability_names]
        self.sums += PromisedSums.of(np.column_stack(probabilities))
        ids = {CODE: pa.array(codes), NUMBER_OF: pa.array(numbers)}
        if self._sums_only:
            self.on_disk.add(pa.table(ids))
            return
        keys = self._keys(table)
        self.on_disk.add(pa.table({
            **ids, TIME: table[self._contract.event_time].cast(pa.timestamp("us")), **keys,
            **{f"{PROBABILITY_OF}{index}": values for index, values in enumerate(probabilities)},
            **{f"{SLICE_OF}{index}": self._slice(name, table) for index, name in enumerate(self.slices)}}))
        sent = {f"{SENT}{name}": table[name] for name in table.column_names if name not in (REPLICA, NUMBER)}

        def rows(chosen: np.ndarray) -> pa.Table:
            taken = {name: values.take(pa.array(chosen)) for name, values in (ids | keys | sent).items()}
            return pa.table({name: _as_feature(values) if name in sent else values
                             for name, values in taken.items()})
        self.sample.add(self.hashes(codes, numbers), rows)

    def _keys(self, table: pa.Table) -> dict[str, pa.Array]:
        """The key's columns; those of predictions that lack a part of it are joined with no event."""
        contract = self._contract
        if not contract.key or not {*contract.key} <= {*contract.sent_columns}:
            return {}
        times = [table[name].type for name in contract.key if contract.python_type(name) is datetime]
        # Logs of older releases hold them in seconds, which Parquet makes milliseconds.
        self.in_seconds |= any(kind.unit != "us" for kind in times)
        keys = self._key.columns(table)
        self.with_key += len(table) - int(np.logical_or.reduce(
            [values.is_null().to_numpy(zero_copy_only=False) for values in keys.values()]).sum())
        return keys

    def _codes(self, table: pa.Table) -> np.ndarray:
        codes = self.replicas.places(table[REPLICA])
        seeds = [replica_seed(name) for name in self.replicas.names[len(self._seeds):]]
        self._seeds = np.append(self._seeds, np.array(seeds, np.uint64))
        return codes

    def _slice(self, name: str, table: pa.Table) -> np.ndarray:
        """A slice's values: texts by their place in its names, others as features take them."""
        kind = self._contract.python_type(name)
        if kind is str:
            return self.slices[name].places(table[name].cast(pa.string()))
        return np.asarray(table[name].to_numpy(), "datetime64[s]" if kind is datetime else np.float64)

    def _known(self, code: int, first: int, last: int) -> np.ndarray:
        found = self._spill.connection.execute(
            f"SELECT {NUMBER_OF} FROM {self.on_disk.sql} WHERE {CODE} = ? AND {NUMBER_OF} BETWEEN ? AND ?",
            [code, first, last])
        return np.asarray(found.fetchnumpy()[NUMBER_OF])


def _as_feature(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of the sample, of the same type whichever release's replica logged it."""
    if pa.types.is_integer(values.type):
        return values.cast(pa.float64(), safe=False)
    return values.cast(pa.timestamp("us")) if pa.types.is_timestamp(values.type) else values
