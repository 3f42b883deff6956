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
from contracts.core.digests import JsonObject
from contracts.core.features import Columns

os.environ.setdefault("WHYLOGS_NO_ANALYTICS", "True")  # read once, when whylogs is imported

# Keys of a profile's metadata whose values are added up when profiles are merged.
ROWS, BAD, UNPROFILED = "perennial.rows", "perennial.bad", "perennial.elsewhere"
AT_FAULT = "perennial.bad:"  # followed by a field's name: how many of its values were refused
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # the time of every profile, as whylogs can't write an earlier one
# Small ones: whylogs' sketches are for people to look at, drift is judged by the bin counts.
SKETCH_SIZES = MetricConfig(kll_k=128, large_kll_k=False, fi_lg_max_k=7,
                            max_frequent_item_size=MAX_TEXT_LENGTH)
BINS_PATH = "bins/counts"
BIN_COUNTS = 100  # the id of our component for whylogs, which leaves those from 100 on to its users
Steps = Callable[[Iterable[str]], Iterator[str]]  # goes through columns, and may pause between them


@serializer(type_id=BIN_COUNTS)
def _to_message(value: np.ndarray) -> MetricComponentMessage:
    """Counts as a message, in the field of a sketch's bytes: whylogs has no field for plain bytes."""
    return MetricComponentMessage(hll=HllSketchMessage(sketch=value.astype("<i8").tobytes()))


@deserializer(type_id=BIN_COUNTS)
def _from_message(msg: MetricComponentMessage) -> np.ndarray:
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
    """Exact counts in the bins that were fixed at training, by which drift is judged."""

    counts: BinCountComponent = field(default_factory=lambda: BinCountComponent(np.zeros(0, np.int64)))

    @property
    def namespace(self) -> str:
        return "bins"

    def columnar_update(self, data: PreprocessedColumn) -> OperationResult:
        raise NotImplementedError("bins are counted as whole columns; see contracts.core.binning")

    def to_summary_dict(self, cfg: SummaryConfig | None = None) -> JsonObject:
        return {"counts": self.counts.value.tolist()}

    @classmethod
    def zero(cls, config: MetricConfig | None = None) -> "BinCounts":
        return cls()


def profile_rows(contract: Contract, bins: Mapping[str, Bins], columns: Columns, probabilities: np.ndarray,
                 classes: np.ndarray, steps: Steps = iter) -> DatasetProfileView:
    """The profile of one or more rows: features, predicted classes and every class's probability.

    Equal rows give equal counts. Above about a thousand rows whylogs' sketches
    are random, so that equal rows don't give equal bytes.
    """
    return profile_columns(monitored_columns(contract, columns, probabilities, classes), bins, steps)


def profile_columns(columns: Mapping[str, MonitoredColumn], bins: Mapping[str, Bins],
                    steps: Steps = iter) -> DatasetProfileView:
    """The profile of one or more rows of any columns."""
    rows = len(next(iter(columns.values())).values)
    return build_view({name: _column(*columns[name], bins[name]) for name in steps(columns)}, rows=rows)


def build_view(columns: dict[str, ColumnProfileView], rows: int = 0, bad: int = 0, unprofiled: int = 0,
               at_fault: Mapping[str, int] = MappingProxyType({})) -> DatasetProfileView:
    counts = {ROWS: str(rows), BAD: str(bad), UNPROFILED: str(unprofiled),
              **{f"{AT_FAULT}{name}": str(n) for name, n in at_fault.items()}}
    return DatasetProfileView(columns=columns, dataset_timestamp=EPOCH, creation_timestamp=EPOCH,
                              metadata=counts)


def _column(kind: str, values: np.ndarray, bins: Bins) -> ColumnProfileView:
    """One column's profile, of whylogs' metrics. They are filled with
    whole columns, as whylogs itself would go through the values one by one."""
    metrics = (_number_metrics(np.asarray(values, np.float64), bins) if kind == "number"
               else _text_metrics(values, bins))
    present = metrics["types"].fractional.value + metrics["types"].string.value
    counts = ColumnCountsMetric(n=IntegralComponent(len(values)),
                                null=IntegralComponent(len(values) - present))
    return ColumnProfileView(metrics | {"counts": counts}, success_count=len(values))


def _number_metrics(values: np.ndarray, bins: Bins) -> dict[str, Metric]:
    present = values[np.isfinite(values)]
    shape = DistributionMetric.zero(SKETCH_SIZES)
    if len(present):
        shape.kll.value.update(present)
        shape.mean.set(float(present.mean()))
        shape.m2.set(float(present.var() * len(present)))
    return {"types": _type_counts(fractional=len(present)), "distribution": shape,
            "bins": BinCounts(BinCountComponent(bins.count(values)))}


def _text_metrics(values: np.ndarray, bins: Bins) -> dict[str, Metric]:
    texts, times = text_counts(values)
    frequent = FrequentItemsMetric.zero(SKETCH_SIZES)
    for text, count in zip(texts, times.tolist()):
        frequent.frequent_strings.value.update(text, count)
    return {"types": _type_counts(string=int(times[:-1].sum())), "frequent_items": frequent,
            "bins": BinCounts(BinCountComponent(bins.count_texts(texts, times)))}


def _type_counts(fractional: int = 0, string: int = 0) -> TypeCountersMetric:
    column = TypeCountersMetric.zero()
    column.fractional.set(fractional)
    column.string.set(string)
    return column


def to_bytes(view: DatasetProfileView) -> bytes:
    return bytes(view.serialize())


def from_bytes(content: bytes) -> DatasetProfileView:
    return DatasetProfileView.deserialize(content)


def rows(view: DatasetProfileView) -> int:
    return int(view.metadata[ROWS])


def bad_inputs(view: DatasetProfileView) -> int:
    """The number of refused records; they are in no column of the profile."""
    return int(view.metadata[BAD])


def unprofiled(view: DatasetProfileView) -> int:
    """The number of records that were answered and not profiled, for their event time is too far away."""
    return int(view.metadata.get(UNPROFILED, 0))


def merge(parts: list[bytes]) -> DatasetProfileView:
    """One profile of the rows of all parts, one or more."""
    return reduce(add, map(from_bytes, parts))


def add(left: DatasetProfileView, right: DatasetProfileView, steps: Steps = iter) -> DatasetProfileView:
    """One profile of the rows of both."""
    summed = {ROWS, BAD, UNPROFILED,
              *(key for key in (*left.metadata, *right.metadata) if key.startswith(AT_FAULT))}
    sums = {key: str(int(left.metadata.get(key, 0)) + int(right.metadata.get(key, 0))) for key in summed}
    merged, others = left.get_columns(), right.get_columns()
    for name in steps(others):
        merged[name] = merged[name].merge(others[name]) if name in merged else others[name]
    return DatasetProfileView(columns=merged, dataset_timestamp=EPOCH, creation_timestamp=EPOCH,
                              metadata={**left.metadata, **right.metadata, **sums})


@dataclass(frozen=True)
class WindowCounts:
    """The counts in a window's profiles: each column's rows by bin, int64 (bins,); records
    answered, refused (`bad`) and not profiled; and the refused values of each field."""

    counts: Mapping[str, np.ndarray]
    rows: int
    bad: int
    unprofiled: int
    at_fault: Mapping[str, int] = field(default_factory=Counter)

    def __add__(self, other: "WindowCounts") -> "WindowCounts":
        new = {name: column for name, column in other.counts.items() if name not in self.counts}
        merged = {name: _sum(column, other.counts[name]) if name in other.counts else column
                for name, column in self.counts.items()}
        return WindowCounts(merged | new, self.rows + other.rows, self.bad + other.bad,
                            self.unprofiled + other.unprofiled,
                            Counter(self.at_fault) + Counter(other.at_fault))


NO_TRAFFIC = WindowCounts({}, 0, 0, 0)


def read_counts(content: bytes) -> WindowCounts:
    """The counts in a profile's bytes, without its sketches: reading those takes ten times as long."""
    file = BytesIO(content)
    if file.read(len(WHYLOGS_MAGIC_HEADER_BYTES)) != WHYLOGS_MAGIC_HEADER_BYTES:
        raise DeserializationError("not a whylogs profile: the first bytes differ")
    read_delimited_protobuf(file, DatasetSegmentHeader)
    header = read_delimited_protobuf(file, DatasetProfileHeader)
    start, facts = file.tell(), header.properties.metadata
    paths = {path: index for index, path in header.indexed_metric_paths.items()}
    bins_index = paths.get(BINS_PATH)
    counts = {}
    for name, chunks in header.column_offsets.items():
        for offset in chunks.offsets:
            length = read_delimited_protobuf(file, ChunkHeader, offset=start + offset).length
            column = ChunkMessage.FromString(file.read(length)).metric_components
            if bins_index in column:
                counts[name] = _from_message(msg=column[bins_index])
    at_fault = {key.removeprefix(AT_FAULT): int(count) for key, count in facts.items()
                if key.startswith(AT_FAULT)}
    rows, bad, unprofiled = (int(facts.get(key, 0)) for key in (ROWS, BAD, UNPROFILED))
    return WindowCounts(counts, rows, bad, unprofiled, at_fault)


def bins_in(folder: Path) -> dict[str, Bins]:
    """The bins in which the traffic of a version, whose files lie in `folder`, is counted."""
    return {name: Bins.from_json(column["bins"])
            for name, column in json.loads((folder / REFERENCE_FILE).read_bytes()).items()}
