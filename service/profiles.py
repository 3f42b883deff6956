"""whylogs profiles of the traffic, by event-time window."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock, Thread
from uuid import uuid4

import numpy as np
import pandas as pd

from contracts.contract import PREDICTION, PROBABILITY, Columns, Contract, PerennialError, is_output
from contracts.drift import Compared

os.environ.setdefault("WHYLOGS_NO_ANALYTICS", "True")  # read once, when whylogs is imported

from whylogs.core import ColumnProfileView, DatasetProfileView
from whylogs.core.column_profile import ColumnProfile
from whylogs.core.datatypes import DataType, Fractional, String, TypeMapper
from whylogs.core.metrics import Metric, StandardMetric
from whylogs.core.resolvers import Resolver
from whylogs.core.schema import ColumnSchema

ROWS, BAD, ELSEWHERE = "perennial.rows", "perennial.bad", "perennial.elsewhere"  # metadata that merging adds up
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # every profile's time for whylogs, which can't write an earlier one
START_FORMAT = "%Y-%m-%dT%H%M"  # of a window's folder
DECILES = np.arange(1, 10) / 10
COMMON = 0.01  # the least share in the training data for a category to be a bin of its own
OTHER, MISSING = "(other)", "(missing)"
BACKLOG = 40  # batches of `rows` that may wait while a disk hangs; later rows are served and not profiled
REACH = 32  # windows around the clock, and around what the traffic is about, that are profiled
RECENT = 31  # batches whose median says what the traffic is about; few, so that a replay's year is followed
EARLIEST, LATEST = np.datetime64("1700-01-01"), np.datetime64("2200-01-01")  # event times that can be anybody's

log = logging.getLogger("perennial.profiles")
Shares = Callable[[ColumnProfileView], np.ndarray]  # of a column's present values, a share for each bin


class Types(TypeMapper):
    """Floats are numbers, the rest is text; whylogs' own mapper asks for np.unicode_, which numpy 2 dropped."""

    def __call__(self, dtype: np.dtype) -> DataType:
        return Fractional() if dtype.kind == "f" else String()


class Metrics(Resolver):
    """Only what a drift verdict reads."""

    def resolve(self, name: str, why_type: DataType, column_schema: ColumnSchema) -> dict[str, Metric]:
        shape = StandardMetric.distribution if isinstance(why_type, Fractional) else StandardMetric.frequent_items
        kept = (StandardMetric.counts, StandardMetric.types, shape)
        return {metric.name: metric.zero(column_schema.cfg) for metric in kept}


def profile(
    contract: Contract, columns: Columns, probabilities: np.ndarray | None, classes: np.ndarray | None
) -> DatasetProfileView:
    """The profile of one or more rows: raw features, the named classes and every class's probability.

    Sketches of more than about a thousand rows hold random choices, so equal rows give equal counts, not equal bytes.
    """
    seen = {feature.name: _column(feature.name, feature.kind, feature.values(columns)) for feature in contract.features}
    if classes is not None:
        seen[PREDICTION] = _column(PREDICTION, "category", np.asarray(contract.label.classes, object)[classes])
    if probabilities is not None:
        for name, values in zip(contract.label.classes, probabilities.T):
            seen[PROBABILITY + name] = _column(PROBABILITY + name, "number", values)
    return _view(seen, rows=len(columns[contract.event_time]))


def _view(columns: dict[str, ColumnProfileView], rows: int = 0, bad: int = 0, elsewhere: int = 0) -> DatasetProfileView:
    counts = {ROWS: str(rows), BAD: str(bad), ELSEWHERE: str(elsewhere)}
    return DatasetProfileView(columns=columns, dataset_timestamp=EPOCH, creation_timestamp=EPOCH, metadata=counts)


def _column(name: str, kind: str, values: np.ndarray) -> ColumnProfileView:
    column = _empty(name, kind)
    if kind == "category":
        column.track_column(pd.Series(values, dtype="str"))
        return column.view()
    values = np.asarray(values, np.float64)
    present = values[np.isfinite(values)]
    column.track_column(present)  # an array: whylogs walks a pandas column of numbers value by value
    if len(present) < len(values):
        column.track_column([None] * (len(values) - len(present)))
    return column.view()


def _empty(name: str, kind: str) -> ColumnProfile:
    dtype = np.dtype(float if kind == "number" else object)
    return ColumnProfile(name, ColumnSchema(dtype, type_mapper=Types(), resolver=Metrics()), cache_size=0)


def to_bytes(view: DatasetProfileView) -> bytes:
    return view.serialize()


def from_bytes(content: bytes) -> DatasetProfileView:
    return DatasetProfileView.deserialize(content)


def rows(view: DatasetProfileView) -> int:
    return int(view.metadata[ROWS])


def bad_inputs(view: DatasetProfileView) -> int:
    """Records that were refused, and so are in no column of the profile."""
    return int(view.metadata[BAD])


def elsewhere(view: DatasetProfileView) -> int:
    """Records that were answered and are in no profile: their event time is far from all the others'."""
    return int(view.metadata.get(ELSEWHERE, 0))


def merge(parts: list[bytes]) -> DatasetProfileView:
    """One profile of the rows of all parts, one or more."""
    return reduce(_add, map(from_bytes, parts))


def _add(left: DatasetProfileView, right: DatasetProfileView) -> DatasetProfileView:
    sums = {key: str(int(left.metadata.get(key, 0)) + int(right.metadata.get(key, 0))) for key in (ROWS, BAD, ELSEWHERE)}
    both = left.merge(right)
    both.metadata.update(sums)
    return both


def compare(contract: Contract, reference: DatasetProfileView, current: DatasetProfileView) -> dict[str, Compared]:
    """Each feature and, where both profiles have it, each output: by deciles or categories of the reference."""
    there = set(reference.get_columns()) & set(current.get_columns())
    kinds = {feature.name: feature.kind for feature in contract.features}
    kinds |= {name: "category" if name == PREDICTION else "number" for name in sorted(filter(is_output, there))}
    if lacking := [name for name in kinds if reference.get_column(name) is None]:
        raise PerennialError(f"the training data's profile lacks {lacking}; run: perennial train {contract.name}")
    return {
        name: _compared(kind, reference.get_column(name), current.get_column(name) or _empty(name, kind).view())
        for name, kind in kinds.items()
    }


def _compared(kind: str, reference: ColumnProfileView, current: ColumnProfileView) -> Compared:
    bins, shares = _deciles(reference) if kind == "number" else _categories(reference)
    before, now = _nulls(reference), _nulls(current)
    return Compared(
        bins=(*bins, MISSING), reference=np.append(shares(reference) * (1 - before), before),
        current=np.append(shares(current) * (1 - now), now), reference_nulls=before, current_nulls=now,
        n=current.get_metric("counts").n.value)


def _nulls(column: ColumnProfileView) -> float:
    counts = column.get_metric("counts")
    return counts.null.value / counts.n.value if counts.n.value else 1.0


def _deciles(reference: ColumnProfileView) -> tuple[list[str], Shares]:
    """Bins of equal shares; a value that several deciles fall on is a bin of its own."""
    sketch = reference.get_metric("distribution").kll.value
    found = [] if sketch.is_empty() else sketch.get_quantiles(DECILES.tolist())  # empty, it would crash the process
    cuts = [(value, upto) for value in sorted(set(found)) for upto in (False, True)[:found.count(value)]]
    ends = pairwise([(-np.inf, True), *cuts, (np.inf, False)])
    bins = [f"{'(' if after else '['}{low:g}, {high:g}{']' if upto else ')'}" for (low, after), (high, upto) in ends]

    def shares(column: ColumnProfileView) -> np.ndarray:
        kll = column.get_metric("distribution").kll.value
        return np.diff([0, *(0 if kll.is_empty() else kll.get_rank(value, upto) for value, upto in cuts), 1])

    return bins, shares


def _categories(reference: ColumnProfileView) -> tuple[list[str], Shares]:
    items = reference.get_metric("frequent_items").strings
    whole = sum(item.est for item in items)
    names = sorted(item.value for item in items if item.est >= COMMON * whole)

    def shares(column: ColumnProfileView) -> np.ndarray:
        sketch = column.get_metric("frequent_items").frequent_strings.value
        named = np.array([sketch.get_estimate(name) for name in names]) / max(sketch.get_total_weight(), 1)
        return np.append(named, max(0.0, 1 - named.sum()))

    return [*names, OTHER], shares


class Profiler:
    """Profiles one replica's traffic in the background: a file for each event-time window, replaced as it grows.

    A kill -9 loses at most the last `seconds` of traffic, or `rows` rows where those come sooner, and what arrives
    while these are being written. While writing fails, the newest `windows` wait in memory; every loss is logged.
    A window is profiled when it lies within REACH windows of the clock or of the recent traffic's median, which
    holds in a replay too. So a caller's wrong clock can't fill the disk: its rows are counted, not profiled.
    Refused records count in the window of their event time. Where that is unreadable or far, they count in the
    window that grew last, or the clock's.
    """

    def __init__(
        self, contract: Contract, version: str, folder: Path, seconds: float = 5.0, rows: int = 5_000, windows: int = 8
    ):
        self._contract, self._version, self._folder = contract, version, folder / contract.name / version
        self._seconds, self._rows, self._windows = seconds, rows, windows
        self._replica = uuid4().hex
        self._batches: list[tuple[np.ndarray, tuple | None]] = []  # event times; what was answered, None if refused
        self._waiting = self._skipped = 0
        self._recent: deque[np.datetime64] = deque(maxlen=RECENT)
        self._parts: dict[datetime, Part] = {}  # by window; the one that grew last is last
        self._lock, self._wake, self._closing = Lock(), Event(), False
        self._thread = Thread(target=self._run, name="profiler", daemon=True)
        self._thread.start()

    def add(self, columns: Columns, probabilities: np.ndarray, classes: np.ndarray) -> None:
        """Take note of predictions; the arrays are read later, so they must not change."""
        self._note(columns[self._contract.event_time], (columns, probabilities, classes))

    def bad(self, times: np.ndarray) -> None:
        """Take note of records that were refused: their event times, NaT where that can't be read."""
        self._note(times, None)

    def _note(self, times: np.ndarray, answered: tuple | None) -> None:
        with self._lock:
            if self._waiting >= BACKLOG * self._rows:
                self._skipped += len(times)
                return
            self._batches.append((times, answered))
            self._waiting += len(times)
        if self._waiting >= self._rows:
            self._wake.set()

    def close(self) -> None:
        """Write what is left and stop."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(self._seconds)
            self._wake.clear()
            closing = self._closing  # read first: what came before `close` is in this round
            try:
                self._absorb()
            except Exception:
                log.exception("%s: traffic was not profiled", self._folder)
            for part in self._parts.values():
                self._save(part)

    def _absorb(self) -> None:
        with self._lock:
            batches, skipped = self._batches, self._skipped
            self._batches, self._waiting, self._skipped = [], 0, 0
        if skipped:
            log.error("%s: %d rows were not profiled: writing can't keep up", self._folder, skipped)
        answered = [answer for _, answer in batches if answer is not None]
        refused = [times for times, answer in batches if answer is None]
        if answered:
            self._profile(*zip(*answered))
        if refused:
            self._count_refused(np.concatenate(refused))

    def _profile(self, columns: tuple[Columns, ...], probabilities: tuple, classes: tuple) -> None:
        name = self._contract.event_time
        some = (batch[name] for batch in columns[::len(columns) // RECENT + 1])
        self._recent.extend(_middle(times[_sane(times)]) for times in some if _sane(times).any())
        near = self._near(np.concatenate([batch[name] for batch in columns]))
        whole = {name: np.concatenate([batch[name] for batch in columns])[near] for name in columns[0]}
        probabilities, classes = np.concatenate(probabilities)[near], np.concatenate(classes)[near]
        for start, _, here in by_window(self._contract, whole[name]):
            inside = {name: values[here] for name, values in whole.items()}
            self._grow(start, profile(self._contract, inside, probabilities[here], classes[here]))
        if far := int((~near).sum()):
            log.error("%s: %d rows were counted, not profiled: their event times are far from all others", self._folder, far)
            self._grow(self._latest(), _view({}, elsewhere=far))

    def _count_refused(self, times: np.ndarray) -> None:
        near = self._near(times)
        for start, _, here in by_window(self._contract, times[near]):
            self._grow(start, _view({}, bad=int(here.sum())))
        if far := int((~near).sum()):
            self._grow(self._latest(), _view({}, bad=far))

    def _near(self, times: np.ndarray) -> np.ndarray:
        """A mask of the event times that lie in windows to profile."""
        sane = _sane(times)
        usual = np.array(self._recent) if self._recent else times[sane]
        centres = [np.datetime64("now"), *([_middle(usual)] if len(usual) else [])]
        reach = REACH * np.timedelta64(self._contract.drift.window)
        return sane & np.any([abs(times - centre) <= reach for centre in centres], axis=0)

    def _latest(self) -> datetime:
        return next(reversed(self._parts), None) or self._contract.window_of(np.datetime64("now").item())[0]

    def _grow(self, start: datetime, view: DatasetProfileView) -> None:
        path = self._folder / start.strftime(START_FORMAT) / f"{self._replica}.bin"
        if part := self._parts.pop(start, None):
            view = _add(part.view, view)
        elif path.exists():
            view = _add(from_bytes(path.read_bytes()), view)
        end = start + self._contract.drift.window
        view.metadata.update(
            model=self._contract.name, version=self._version, start=start.isoformat(), end=end.isoformat())
        self._parts[start] = Part(path, view)
        if len(self._parts) > self._windows:
            evicted = self._parts.pop(next(iter(self._parts)))
            if not self._save(evicted):
                log.error("%s: %d rows are lost to the profile", evicted.path, rows(evicted.view))

    def _save(self, part: "Part") -> bool:
        if not part.saved:
            try:
                write_whole(part.path, to_bytes(part.view))
                part.saved = True
            except Exception as error:  # whatever it is, the thread goes on
                log.error("%s: not written, kept for the next try: %s", part.path, error)
        return part.saved


@dataclass
class Part:
    """What one replica saw of one window, and the file that says so."""

    path: Path
    view: DatasetProfileView
    saved: bool = False


def _sane(times: np.ndarray) -> np.ndarray:
    return (times >= EARLIEST) & (times < LATEST)  # NaT is neither


def _middle(times: np.ndarray) -> np.datetime64:
    return np.sort(times)[len(times) // 2]


def by_window(contract: Contract, times: np.ndarray) -> Iterator[tuple[datetime, datetime, np.ndarray]]:
    """Each window that holds some of the event times, oldest first: its start, its end and a mask of its rows."""
    left = np.ones(len(times), bool)
    while left.any():
        start, end = contract.window_of(times[left].min().item())
        here = left & (times < np.datetime64(end))
        yield start, end, here
        left &= ~here


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in place so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
