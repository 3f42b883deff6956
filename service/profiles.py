"""whylogs profiles of the traffic, by event-time window."""

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from io import BytesIO
from pathlib import Path
from threading import Event, Lock, Thread
from time import sleep, thread_time
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import numpy as np

from contracts.bins import LONGEST, REFERENCE, Bins, Watched, counted, watched
from contracts.contract import Columns, Contract
from service.predictions import PredictionLog, write_whole

os.environ.setdefault("WHYLOGS_NO_ANALYTICS", "True")  # read once, when whylogs is imported

from whylogs.core import ColumnProfileView, DatasetProfileView
from whylogs.core.configs import SummaryConfig
from whylogs.core.errors import DeserializationError
from whylogs.core.metrics.aggregators import aggregator
from whylogs.core.metrics.column_metrics import ColumnCountsMetric, TypeCountersMetric
from whylogs.core.metrics.deserializers import deserializer
from whylogs.core.metrics.metric_components import CustomComponent, IntegralComponent
from whylogs.core.metrics.metrics import DistributionMetric, FrequentItemsMetric, Metric, MetricConfig, OperationResult, custom_metric
from whylogs.core.metrics.serializers import serializer
from whylogs.core.preprocessing import PreprocessedColumn
from whylogs.core.proto import ChunkHeader, ChunkMessage, DatasetProfileHeader, DatasetSegmentHeader, HllSketchMessage, MetricComponentMessage
from whylogs.core.utils import read_delimited_protobuf
from whylogs.core.view.dataset_profile_view import WHYLOGS_MAGIC_HEADER_BYTES

ROWS, BAD, ELSEWHERE = "perennial.rows", "perennial.bad", "perennial.elsewhere"  # metadata that merging adds up
AT_FAULT = "perennial.bad:"  # and the name of a field: how many of its values were refused
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # every profile's time for whylogs, which can't write an earlier one
START_FORMAT = "%Y-%m-%dT%H%M"  # of a window's folder
SMALL = MetricConfig(kll_k=128, large_kll_k=False, fi_lg_max_k=7, max_frequent_item_size=LONGEST)  # the sketches are for people to look at
BINS_PATH = "bins/counts"
RESTS = 15  # times as long as each step of a background profile takes, so that it is spread over the time that it has
BUSY = 1_000  # rows at a time from which on the profile is made with rests
BIN_COUNTS = 100  # whylogs' number for our component; it leaves those from 100 on to its users
BACKLOG = 12  # batches of `rows` that may wait while a disk hangs; later rows are served and not profiled
REACH = 32  # windows around the clock, and around what the traffic is about, that are profiled
RECENT = 31  # batches whose median says what the traffic is about; few, so that a replay's year is followed
EARLIEST, LATEST = np.datetime64("1700-01-01"), np.datetime64("2200-01-01")  # event times that can be anybody's

log = logging.getLogger("perennial.profiles")
Steps = Callable[[Iterable[str]], Iterator[str]]  # how the columns are gone through


@serializer(type_id=BIN_COUNTS)
def _to_message(value: np.ndarray) -> MetricComponentMessage:
    """In the field of another sketch's bytes, for whylogs' message has none of its own for bytes."""
    return MetricComponentMessage(hll=HllSketchMessage(sketch=value.astype("<i8").tobytes()))


@deserializer(type_id=BIN_COUNTS)
def _of_message(msg: MetricComponentMessage) -> np.ndarray:
    return np.frombuffer(msg.hll.sketch, "<i8")


@aggregator(type_id=BIN_COUNTS)
def _sum(lhs: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    if len(lhs) != len(rhs):
        raise ValueError(f"{len(lhs)} and {len(rhs)} bins can't be added: they are of two versions")
    return lhs + rhs


class Counted(CustomComponent[np.ndarray]):
    """Rows in each bin, int64 (bins,)."""

    type_id = BIN_COUNTS


@custom_metric
@dataclass(frozen=True)
class BinCounts(Metric):
    """Exact counts in the bins that were fixed at training: what drift is judged by, whatever is merged in which order."""

    counts: Counted = field(default_factory=lambda: Counted(np.zeros(0, np.int64)))

    @property
    def namespace(self) -> str:
        return "bins"

    def columnar_update(self, data: PreprocessedColumn) -> OperationResult:
        raise NotImplementedError("bins are counted as whole columns; see contracts.bins")

    def to_summary_dict(self, cfg: SummaryConfig | None = None) -> dict[str, Any]:
        return {"counts": self.counts.value.tolist()}

    @classmethod
    def zero(cls, config: MetricConfig | None = None) -> "BinCounts":
        return cls()


def profile(
    contract: Contract, bins: Mapping[str, Bins], columns: Columns, probabilities: np.ndarray, classes: np.ndarray, steps: Steps = iter
) -> DatasetProfileView:
    """The profile of one or more rows: raw features, the named classes and every class's probability.

    Equal rows give equal counts. The sketches beside them are random beyond about a thousand rows: no two are equal bytes.
    """
    return of_columns(watched(contract, columns, probabilities, classes), bins, steps)


def of_columns(seen: Mapping[str, Watched], bins: Mapping[str, Bins], steps: Steps = iter) -> DatasetProfileView:
    """The profile of one or more rows of any columns."""
    rows = len(next(iter(seen.values())).values)
    return _view({name: _column(*seen[name], bins[name]) for name in steps(seen)}, rows=rows)


def _view(columns: dict[str, ColumnProfileView], rows: int = 0, bad: int = 0, elsewhere: int = 0,
          at_fault: Mapping[str, int] = MappingProxyType({})) -> DatasetProfileView:
    counts = {ROWS: str(rows), BAD: str(bad), ELSEWHERE: str(elsewhere)} | {f"{AT_FAULT}{name}": str(n) for name, n in at_fault.items()}
    return DatasetProfileView(columns=columns, dataset_timestamp=EPOCH, creation_timestamp=EPOCH, metadata=counts)


def _column(kind: str, values: np.ndarray, bins: Bins) -> ColumnProfileView:
    """One column's profile, made of whylogs' metrics as whole columns; its own way there looks at the values one by one."""
    metrics = _of_numbers(np.asarray(values, np.float64), bins) if kind == "number" else _of_texts(values, bins)
    present = metrics["types"].fractional.value + metrics["types"].string.value
    counts = ColumnCountsMetric(n=IntegralComponent(len(values)), null=IntegralComponent(len(values) - present))
    return ColumnProfileView(metrics | {"counts": counts}, success_count=len(values))


def _of_numbers(values: np.ndarray, bins: Bins) -> dict[str, Metric]:
    present = values[np.isfinite(values)]
    shape = DistributionMetric.zero(SMALL)
    if len(present):
        shape.kll.value.update(present)
        shape.mean.set(float(present.mean()))
        shape.m2.set(float(present.var() * len(present)))
    return {"types": _types(fractional=len(present)), "distribution": shape, "bins": BinCounts(Counted(bins.count(values)))}


def _of_texts(values: np.ndarray, bins: Bins) -> dict[str, Metric]:
    texts, times = counted(values)
    frequent = FrequentItemsMetric.zero(SMALL)
    for text, count in zip(texts, times.tolist()):
        frequent.frequent_strings.value.update(text, count)
    return {"types": _types(string=int(times[:-1].sum())), "frequent_items": frequent,
            "bins": BinCounts(Counted(bins.count_texts(texts, times)))}


def _types(fractional: int = 0, string: int = 0) -> TypeCountersMetric:
    found = TypeCountersMetric.zero()
    found.fractional.set(fractional)
    found.string.set(string)
    return found


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
    return reduce(add, map(from_bytes, parts))


def add(left: DatasetProfileView, right: DatasetProfileView, steps: Steps = iter) -> DatasetProfileView:
    """One profile of the rows of both."""
    counted = {ROWS, BAD, ELSEWHERE} | {key for key in (*left.metadata, *right.metadata) if key.startswith(AT_FAULT)}
    sums = {key: str(int(left.metadata.get(key, 0)) + int(right.metadata.get(key, 0))) for key in counted}
    mine, theirs = left.get_columns(), right.get_columns()
    both = {name: mine[name].merge(theirs[name]) if name in mine and name in theirs else (mine | theirs)[name]
            for name in steps(dict.fromkeys((*mine, *theirs)))}
    return DatasetProfileView(
        columns=both, dataset_timestamp=EPOCH, creation_timestamp=EPOCH, metadata={**left.metadata, **right.metadata, **sums})


@dataclass(frozen=True)
class Tally:
    """What a drift verdict reads of profiles: each column's rows by bin, int64 (bins,), the numbers of records, and for each field
    how many of its values were refused."""

    counts: Mapping[str, np.ndarray]
    rows: int
    bad: int
    elsewhere: int
    at_fault: Mapping[str, int] = field(default_factory=Counter)

    def __add__(self, other: "Tally") -> "Tally":
        new = {name: found for name, found in other.counts.items() if name not in self.counts}
        both = {name: _sum(found, other.counts[name]) if name in other.counts else found for name, found in self.counts.items()}
        return Tally(both | new, self.rows + other.rows, self.bad + other.bad, self.elsewhere + other.elsewhere,
                     Counter(self.at_fault) + Counter(other.at_fault))


NOTHING = Tally({}, 0, 0, 0)


def tally(content: bytes) -> Tally:
    """The tally of a profile's bytes; its sketches are left unread, for reading and merging them takes ten times as long."""
    file = BytesIO(content)
    if file.read(len(WHYLOGS_MAGIC_HEADER_BYTES)) != WHYLOGS_MAGIC_HEADER_BYTES:
        raise DeserializationError("a profile begins otherwise")
    read_delimited_protobuf(file, DatasetSegmentHeader)
    header = read_delimited_protobuf(file, DatasetProfileHeader)
    start, facts = file.tell(), header.properties.metadata
    [ours] = [index for index, path in header.indexed_metric_paths.items() if path == BINS_PATH] or [None]
    counts = {}
    for name, chunks in header.column_offsets.items():
        for offset in chunks.offsets:
            length = read_delimited_protobuf(file, ChunkHeader, offset=start + offset).length
            found = ChunkMessage.FromString(file.read(length)).metric_components
            if ours in found:
                counts[name] = _of_message(msg=found[ours])
    at_fault = {key.removeprefix(AT_FAULT): int(count) for key, count in facts.items() if key.startswith(AT_FAULT)}
    return Tally(counts, *(int(facts.get(key, 0)) for key in (ROWS, BAD, ELSEWHERE)), at_fault)


def bins_of(folder: Path) -> dict[str, Bins]:
    """What the traffic of the version whose files lie in `folder` is counted in."""
    return {name: Bins.from_json(one["bins"]) for name, one in json.loads((folder / REFERENCE).read_bytes()).items()}


class Profiler:
    """Profiles one replica's traffic in the background: a file for each event-time window, replaced as it grows; and logs its
    predictions beside it.

    A kill -9 loses at most the last `seconds` of traffic, or `rows` rows where those come sooner, and what arrives
    while these are being written: some 60,000 rows in all, where a core answers as many as it can. While writing fails, the
    newest `windows` wait in memory; every loss is logged.
    A window is profiled when it lies within REACH windows of the clock or of the recent traffic's median, which
    holds in a replay too. So a caller's wrong clock can't fill the disk: its rows are counted, not profiled.
    Refused records count in the window of their event time. Where that is unreadable or far, they count in the
    window that grew last, or the clock's.
    """

    def __init__(
        self, contract: Contract, bins: Mapping[str, Bins], version: str, folder: Path, seconds: float = 5.0, rows: int = 25_000,
        windows: int = 8, replica: str | None = None
    ):
        self._contract, self._bins, self._version, self._folder = contract, bins, version, folder / contract.name / version
        self._seconds, self._rows, self._windows = seconds, rows, windows
        self._replica = replica or uuid4().hex
        self._log = PredictionLog(contract, self._folder, self._replica)
        self._batches: list[tuple[np.ndarray, tuple | Counter]] = []  # event times; what was answered, or the fields refused
        self._waiting = self._skipped = 0
        self._busy = False
        self._recent: deque[np.datetime64] = deque(maxlen=RECENT)
        self._parts: dict[datetime, Part] = {}  # by window; the one that grew last is last
        self._lock, self._wake, self._closing = Lock(), Event(), False
        self._thread = Thread(target=self._run, name="profiler", daemon=True)
        self._thread.start()

    def add(self, columns: Columns, probabilities: np.ndarray, classes: np.ndarray, first: int = 0) -> None:
        """Take note of predictions, whose ids count on from `first`; the arrays are read later, so they must not change."""
        numbers = np.arange(first, first + len(classes))
        self._note(columns[self._contract.event_time], (columns, probabilities, classes, numbers))

    def bad(self, times: np.ndarray, fields: Iterable[str] = ()) -> None:
        """Take note of records that were refused: their event times, NaT where that can't be read, and the fields at fault."""
        self._note(times, Counter(fields))

    def _note(self, times: np.ndarray, answered: tuple | Counter) -> None:
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
            self._wake.wait(self._seconds / 2)  # the other half is for making and writing the profile
            self._wake.clear()
            closing = self._closing  # read first: what came before `close` is in this round
            try:
                self._absorb()
            except Exception:
                log.exception("%s: traffic was not profiled", self._folder)
            self._log.save()
            for part in self._parts.values():
                self._save(part)

    def _absorb(self) -> None:
        with self._lock:
            upto = np.cumsum([len(times) for times, _ in self._batches])
            end = len(upto) if self._closing else int(np.searchsorted(upto, self._rows)) + 1  # no more: large arrays hold requests up
            batches, skipped = self._batches[:end], self._skipped
            self._batches, self._skipped = self._batches[end:], 0
            self._waiting -= sum(len(times) for times, _ in batches)
        if self._waiting >= self._rows:
            self._wake.set()
        self._busy = sum(len(times) for times, _ in batches) >= BUSY
        if skipped:
            log.error("%s: %d rows were not profiled: writing can't keep up", self._folder, skipped)
        answered = [answer for _, answer in batches if isinstance(answer, tuple)]
        refused = [(times, fields) for times, fields in batches if isinstance(fields, Counter)]
        if answered:
            self._profile(*zip(*answered))
        if refused:
            self._count_refused(np.concatenate([times for times, _ in refused]), sum((fields for _, fields in refused), Counter()))

    def _profile(self, columns: tuple[Columns, ...], *answers: tuple[np.ndarray, ...]) -> None:
        name = self._contract.event_time
        some = (batch[name] for batch in columns[::len(columns) // RECENT + 1])
        self._recent.extend(_middle(times[_sane(times)]) for times in some if _sane(times).any())
        near = self._near(np.concatenate([batch[name] for batch in columns]))
        kept = _chosen(near)
        whole = {name: np.concatenate([batch[name] for batch in columns])[kept] for name in self._rested(columns[0])}
        probabilities, classes, numbers = (np.concatenate(parts)[kept] for parts in answers)
        for start, _, mask in by_window(self._contract, whole[name]):
            here = _chosen(mask)
            inside = {name: whole[name][here] for name in self._rested(whole)}
            self._log.add(start.strftime(START_FORMAT), numbers[here], inside, probabilities[here], self._rested)
            self._grow(start, profile(self._contract, self._bins, inside, probabilities[here], classes[here], self._rested))
        if far := int((~near).sum()):
            log.error("%s: %d rows were counted, not profiled: their event times are far from all others", self._folder, far)
            self._grow(self._latest(), _view({}, elsewhere=far))

    def _rested(self, columns: Iterable[str]) -> Iterator[str]:
        """The columns one after another, with a rest after the work on each, in which the requests have Python to themselves."""
        for name in columns:
            begun = thread_time()
            yield name
            if self._busy and not self._closing and self._waiting < self._rows:  # while the next profile waits, there is no rest
                sleep(RESTS * (thread_time() - begun))

    def _count_refused(self, times: np.ndarray, at_fault: Counter) -> None:
        near = self._near(times)
        for start, _, here in by_window(self._contract, times[near]):
            self._grow(start, _view({}, bad=int(here.sum())))
        self._grow(self._latest(), _view({}, bad=int((~near).sum()), at_fault=at_fault))  # the fields of all, in one window

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
            view = add(part.view, view, self._rested)
        elif path.exists():
            view = add(from_bytes(path.read_bytes()), view, self._rested)
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


def _chosen(mask: np.ndarray) -> np.ndarray | slice:
    """What indexes the same rows, without a copy where it is all of them."""
    return slice(None) if mask.all() else mask


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

