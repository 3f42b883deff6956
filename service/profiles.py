"""Profiles of traffic as whylogs views with a bin-count metric, and the counts read back from them."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from whylogs.core import ColumnProfileView, DatasetProfileView
from whylogs.core.configs import SummaryConfig
from whylogs.core.errors import DeserializationError
from whylogs.core.metrics.aggregators import aggregator
from whylogs.core.metrics.column_metrics import ColumnCountsMetric, TypeCountersMetric
from whylogs.core.metrics.deserializers import deserializer
from whylogs.core.metrics.metric_components import CustomComponent, IntegralComponent
from whylogs.core.metrics.metrics import (
    DistributionMetric,
    FrequentItemsMetric,
    Metric,
    MetricConfig,
    OperationResult,
    custom_metric,
)
from whylogs.core.metrics.serializers import serializer
from whylogs.core.preprocessing import PreprocessedColumn
from whylogs.core.proto import (
    ChunkHeader,
    ChunkMessage,
    DatasetProfileHeader,
    DatasetSegmentHeader,
    HllSketchMessage,
    MetricComponentMessage,
)
from whylogs.core.utils import read_delimited_protobuf
from whylogs.core.view.dataset_profile_view import WHYLOGS_MAGIC_HEADER_BYTES

from contracts.core.binning import (
    MAX_TEXT_LENGTH,
    REFERENCE_FILE,
    Bins,
    MonitoredColumn,
    monitored_columns,
    text_counts,
)
from contracts.core.contract import Contract
from contracts.core.features import Columns

os.environ.setdefault("WHYLOGS_NO_ANALYTICS", "True")  # read once, when whylogs is imported

# Metadata that merging adds up.
ROWS, BAD, ELSEWHERE = "perennial.rows", "perennial.bad", "perennial.elsewhere"
AT_FAULT = "perennial.bad:"  # and the name of a field: how many of its values were refused
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # every profile's time for whylogs, which can't write an earlier one
# The sketches are for people to look at.
SMALL = MetricConfig(kll_k=128, large_kll_k=False, fi_lg_max_k=7, max_frequent_item_size=MAX_TEXT_LENGTH)
BINS_PATH = "bins/counts"
BIN_COUNTS = 100  # whylogs' number for our component; it leaves those from 100 on to its users
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
    return np.asarray(lhs + rhs)


class BinCountComponent(CustomComponent[np.ndarray]):
    """Rows in each bin, int64 (bins,)."""

    type_id = BIN_COUNTS


@custom_metric
@dataclass(frozen=True)
class BinCounts(Metric):
    """Exact counts in the bins that were fixed at training: what
    drift is judged by, whatever is merged in which order."""

    counts: BinCountComponent = field(default_factory=lambda: BinCountComponent(np.zeros(0, np.int64)))

    @property
    def namespace(self) -> str:
        return "bins"

    def columnar_update(self, data: PreprocessedColumn) -> OperationResult:
        raise NotImplementedError("bins are counted as whole columns; see contracts.core.binning")

    def to_summary_dict(self, cfg: SummaryConfig | None = None) -> dict[str, Any]:
        return {"counts": self.counts.value.tolist()}

    @classmethod
    def zero(cls, config: MetricConfig | None = None) -> "BinCounts":
        return cls()


def profile_rows(contract: Contract, bins: Mapping[str, Bins], columns: Columns, probabilities: np.ndarray,
                 classes: np.ndarray, steps: Steps = iter) -> DatasetProfileView:
    """The profile of one or more rows: raw features, the named classes and every class's probability.

    Equal rows give equal counts. The sketches beside them are
    random beyond about a thousand rows: no two are equal bytes.
    """
    return profile_columns(monitored_columns(contract, columns, probabilities, classes), bins, steps)


def profile_columns(seen: Mapping[str, MonitoredColumn], bins: Mapping[str, Bins],
                    steps: Steps = iter) -> DatasetProfileView:
    """The profile of one or more rows of any columns."""
    rows = len(next(iter(seen.values())).values)
    return build_view({name: _column(*seen[name], bins[name]) for name in steps(seen)}, rows=rows)


def build_view(columns: dict[str, ColumnProfileView], rows: int = 0, bad: int = 0, elsewhere: int = 0,
          at_fault: Mapping[str, int] = MappingProxyType({})) -> DatasetProfileView:
    counts = {ROWS: str(rows), BAD: str(bad),
              ELSEWHERE: str(elsewhere)} | {f"{AT_FAULT}{name}": str(n) for name, n in at_fault.items()}
    return DatasetProfileView(columns=columns, dataset_timestamp=EPOCH, creation_timestamp=EPOCH,
                              metadata=counts)


def _column(kind: str, values: np.ndarray, bins: Bins) -> ColumnProfileView:
    """One column's profile, made of whylogs' metrics as whole
    columns; its own way there looks at the values one by one."""
    metrics = (_of_numbers(np.asarray(values, np.float64), bins) if kind == "number"
               else _of_texts(values, bins))
    present = metrics["types"].fractional.value + metrics["types"].string.value
    counts = ColumnCountsMetric(n=IntegralComponent(len(values)),
                                null=IntegralComponent(len(values) - present))
    return ColumnProfileView(metrics | {"counts": counts}, success_count=len(values))


def _of_numbers(values: np.ndarray, bins: Bins) -> dict[str, Metric]:
    present = values[np.isfinite(values)]
    shape = DistributionMetric.zero(SMALL)
    if len(present):
        shape.kll.value.update(present)
        shape.mean.set(float(present.mean()))
        shape.m2.set(float(present.var() * len(present)))
    return {"types": _types(fractional=len(present)), "distribution": shape,
            "bins": BinCounts(BinCountComponent(bins.count(values)))}


def _of_texts(values: np.ndarray, bins: Bins) -> dict[str, Metric]:
    texts, times = text_counts(values)
    frequent = FrequentItemsMetric.zero(SMALL)
    for text, count in zip(texts, times.tolist()):
        frequent.frequent_strings.value.update(text, count)
    return {"types": _types(string=int(times[:-1].sum())), "frequent_items": frequent,
            "bins": BinCounts(BinCountComponent(bins.count_texts(texts, times)))}


def _types(fractional: int = 0, string: int = 0) -> TypeCountersMetric:
    found = TypeCountersMetric.zero()
    found.fractional.set(fractional)
    found.string.set(string)
    return found


def to_bytes(view: DatasetProfileView) -> bytes:
    return bytes(view.serialize())


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
    counted = {ROWS, BAD,
               ELSEWHERE} | {key for key in (*left.metadata, *right.metadata) if key.startswith(AT_FAULT)}
    sums = {key: str(int(left.metadata.get(key, 0)) + int(right.metadata.get(key, 0))) for key in counted}
    mine, theirs = left.get_columns(), right.get_columns()
    both = {name: mine[name].merge(theirs[name]) if name in mine and name in theirs else (mine | theirs)[name]
            for name in steps(dict.fromkeys((*mine, *theirs)))}
    return DatasetProfileView(columns=both, dataset_timestamp=EPOCH, creation_timestamp=EPOCH,
                              metadata={**left.metadata, **right.metadata, **sums})


@dataclass(frozen=True)
class WindowCounts:
    """What a drift verdict reads of profiles: each column's rows by bin, int64 (bins,),
    the numbers of records, and for each field how many of its values were refused."""

    counts: Mapping[str, np.ndarray]
    rows: int
    bad: int
    elsewhere: int
    at_fault: Mapping[str, int] = field(default_factory=Counter)

    def __add__(self, other: "WindowCounts") -> "WindowCounts":
        new = {name: found for name, found in other.counts.items() if name not in self.counts}
        both = {name: _sum(found, other.counts[name]) if name in other.counts else found
                for name, found in self.counts.items()}
        return WindowCounts(both | new, self.rows + other.rows, self.bad + other.bad,
                            self.elsewhere + other.elsewhere,
                            Counter(self.at_fault) + Counter(other.at_fault))


NO_TRAFFIC = WindowCounts({}, 0, 0, 0)


def read_counts(content: bytes) -> WindowCounts:
    """The tally of a profile's bytes; its sketches are left unread,
    for reading and merging them takes ten times as long."""
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
    at_fault = {key.removeprefix(AT_FAULT): int(count) for key, count in facts.items()
                if key.startswith(AT_FAULT)}
    rows, bad, elsewhere = (int(facts.get(key, 0)) for key in (ROWS, BAD, ELSEWHERE))
    return WindowCounts(counts, rows, bad, elsewhere, at_fault)


def bins_in(folder: Path) -> dict[str, Bins]:
    """What the traffic of the version whose files lie in `folder` is counted in."""
    return {name: Bins.from_json(one["bins"])
            for name, one in json.loads((folder / REFERENCE_FILE).read_bytes()).items()}
