"""The contract of a model: what a data scientist states, and what is derived from it."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandera.pandas as pa

from contracts.core.challenger_policy import ALL_ROWS, Challenger, challenger_settings
from contracts.core.classification import Label, is_output
from contracts.core.dependencies import helpers_of
from contracts.core.digests import JsonObject, digest_of, plain_json, source_of
from contracts.core.errors import ContractError
from contracts.core.features import Columns, Feature
from contracts.core.policies import Drift, Gate, Recalibration, Rollout, Schedule, TrainingLimits
from contracts.core.schema import FIELD_RULES
from contracts.core.sources import DeltaSource, ParquetFiles, SqlQuery
from contracts.core.windows import window_of

# Pandera imports dask for type annotations alone, which takes longer than everything else together.
if "dask" not in sys.modules:
    sys.modules["dask"] = None  # type: ignore[assignment]  # how Python marks a module that can't be imported
    import pandera.typing.dask  # noqa: F401

    del sys.modules["dask"]


@dataclass(frozen=True)
class Contract:
    """Everything Perennial knows of one model.

    The schema's rules for one value hold for ingested data and for requests alike, except `isin` of a text:
    a request with an unknown category is answered. Rules across columns or rows hold for ingested data.

    `key`: the columns that identify an event. A caller may send those of them that no feature reads, so that
    predictions can be joined with labels. `logged`: the share of the predictions that is kept with ids, to
    be scored once labels are in. `rounds`, `patience`, `stop_share`: trees at most; rounds without
    improvement after which training stops; the share of the newest rows by which it is decided.
    `bad_rows`: the share of a batch's rows that may be set aside before the whole batch is refused.
    `challengers`: what a training makes and the gate judges, the simplest first; the best takes part.
    `source`: what gives the labelled rows of [start, end), see `contracts.core.sources`: a function gives a
    data frame, or an iterator of frames or Arrow record batches.
    """

    name: str
    schema: type[pa.DataFrameModel]
    event_time: str
    label: Label
    features: tuple[Feature, ...]
    xgboost: Mapping[str, Any]
    gate: Gate
    drift: Drift = Drift()  # noqa: RUF009  frozen
    rollout: Rollout = Rollout()  # noqa: RUF009
    schedule: Schedule = Schedule()  # noqa: RUF009
    training: TrainingLimits = TrainingLimits()  # noqa: RUF009
    recalibration: Recalibration | None = None
    challengers: tuple[Challenger, ...] = (ALL_ROWS,)
    source: Callable[[datetime, datetime], Any] | ParquetFiles | SqlQuery | DeltaSource | None = None
    key: tuple[str, ...] = ()
    rounds: int = 300
    patience: int = 20
    stop_share: float = 0.15
    seed: int = 0
    bad_rows: float = 0.01
    logged: float = 1.0
    loaded_from: ClassVar[str] = ""  # the module; `load_contract` sets it

    def __post_init__(self) -> None:
        object.__setattr__(self, "xgboost", MappingProxyType(dict(self.xgboost)))
        for problem in self._problems():
            raise ContractError(f"contract {self.name}: {problem}")

    def _problems(self) -> Iterator[str]:
        needs = {name: feature.name for feature in self.features for name in feature.needs}
        uses = needs | dict.fromkeys(self.label.needs, "the label") | {self.event_time: "the event time"}
        uses |= dict.fromkeys((*self.gate.slices, *self.key), "a slice or the key")
        for name, user in uses.items():
            if name not in self.columns:
                yield (f"{user} needs column {name!r}, which the schema lacks; add it to "
                       f"{self.schema.__name__}")
        for name, user in needs.items():
            if self.columns[name].metadata["known"] == "after":
                yield (f"feature {user!r} reads {name!r}, known only after the event; callers can't send it: "
                       f"drop it")
        if len({feature.name for feature in self.features}) < len(self.features):
            yield "two features share one name; rename one"
        for name in [feature.name for feature in self.features if is_output(feature.name)]:
            yield f"feature {name!r} has the name of a model's output in profiles; rename it"
        for name in self.sent_columns:
            for rule in sorted({check.name for check in self.columns[name].checks} - FIELD_RULES):
                yield (f"column {name!r} has the rule {rule!r}, which the service can't hold one record to; "
                       f"use one of {', '.join(sorted(FIELD_RULES))}, or a dataframe_check")
        for what, value, is_valid, rule in self._settings():
            if not is_valid:
                yield f"{what} is {value!r}; it must be {rule}: change it"
        if isinstance(self.source, ParquetFiles | SqlQuery | DeltaSource):
            for problem in self.source.problems():
                yield f"the source {type(self.source).__name__}: {problem}"
        if self.schedule.lateness and not self.key:
            yield "schedule.lateness needs a key, to tell known rows from new ones: state one, or drop it"
        if self.drift.cooldown < self.gate.window:
            yield (f"a cooldown of {self.drift.cooldown} is shorter than the gate's window of "
                   f"{self.gate.window}: the next challenger would be judged on rows the champion was "
                   f"trained on; lengthen it")
        columns = {*(feature.name for feature in self.features), *self.label.output_names}
        judged = {f"{name}{check}" for name in columns for check in ("", ".values", ".missing", ".new")}
        for name in sorted({*self.drift.thresholds, *self.drift.severity, *self.drift.ignore} - judged):
            yield (f"drift names {name!r}, which is no feature, no output and no check of one; "
                   f"choose of: {', '.join(sorted(columns))}")
        unknown = set(self.gate.recall) - set(self.label.classes)
        if unknown:
            yield (f"the gate limits the recall of {sorted(unknown)}, not among the classes "
                   f"{self.label.classes}")

    def _settings(self) -> Iterator[tuple[str, Any, bool, str]]:
        """Each setting that can be invalid: its name, its value, whether it is valid, and the rule."""
        when, drift, gate = self.columns[self.event_time], self.drift, self.gate
        none, minute = timedelta(0), timedelta(minutes=1)
        kind, known = self.python_type(self.event_time).__name__, when.metadata["known"]
        yield "name", self.name, bool(re.fullmatch(r"\w[\w-]*", self.name,
                                                   re.ASCII)), "letters, digits, _ and -, as in a path"
        yield "the event time's type", kind, kind == "datetime", "datetime"
        yield "the event time's nullability", when.nullable, not when.nullable, "False"
        yield "the event time's known", known, known == "before", "'before', for callers send it"
        yield from self.label.settings()
        yield "gate.window", gate.window, gate.window > none, "more than nothing"
        yield ("gate.absolute", gate.absolute, gate.absolute in ("relative", "strict"),
               "'relative' or 'strict'")
        yield ("drift.window", drift.window, drift.window > none and not drift.window % minute,
               "one or more whole minutes")
        yield "drift.false_alarms", drift.false_alarms, 0 < drift.false_alarms < 1, "a share between 0 and 1"
        yield "drift.detect", drift.detect, 0 < drift.detect < 1, "a distance between 0 and 1"
        yield "drift.coverage", drift.coverage, 0 <= drift.coverage <= 1, "a share from 0 to 1"
        yield "drift.skew", drift.skew, 0 <= drift.skew <= 1, "a share from 0 to 1"
        yield "drift.refusals", drift.refusals, drift.refusals > 0, "one or more"
        yield "drift.severity", drift.severity, {
            *drift.severity.values()} <= {"page", "drift", "note"}, "of 'page', 'drift', 'note'"
        yield ("drift.persist", drift.persist,
               len(drift.persist) == 2 and 1 <= drift.persist[0] <= drift.persist[1],
               "(k, m): k of the last m windows")
        yield "drift.retrain_on", drift.retrain_on, {
            *drift.retrain_on} <= {*Drift.retrain_on}, f"out of {Drift.retrain_on}"
        yield "logged", self.logged, 0 <= self.logged <= 1, "a share from 0 to 1"
        yield "bad_rows", self.bad_rows, 0 <= self.bad_rows <= 1, "a share from 0 to 1"
        yield "stop_share", self.stop_share, 0 < self.stop_share < 1, "a share between 0 and 1"
        yield from self.schedule.settings()
        yield from self.training.settings()
        yield from self.recalibration.settings() if self.recalibration else ()
        yield from challenger_settings(self.challengers)

    @cached_property
    def columns(self) -> dict[str, pa.Column]:
        """The schema's columns by name, each with dtype, nullability, checks and metadata."""
        columns = self.schema.to_schema().columns
        bare = [name for name, spec in columns.items() if not spec.metadata]
        if bare:
            raise ContractError(f"contract {self.name}: declare {bare} with contracts.core.schema.column(…)")
        return columns

    @cached_property
    def request_columns(self) -> tuple[str, ...]:
        """What a caller sends: the event time and the columns that features read."""
        wanted = {self.event_time, *(name for feature in self.features for name in feature.needs)}
        return tuple(name for name in self.columns if name in wanted)

    @cached_property
    def identifying_columns(self) -> tuple[str, ...]:
        """What a caller may send to identify the event: columns of the key that no feature reads."""
        return tuple(name for name in self.key
                     if name not in self.request_columns and self.columns[name].metadata["known"] == "before")

    @cached_property
    def sent_columns(self) -> tuple[str, ...]:
        """All that a caller may send."""
        return (*self.request_columns, *self.identifying_columns)

    @cached_property
    def training_columns(self) -> tuple[str, ...]:
        """What training reads: the request's columns and those of the label."""
        return tuple(dict.fromkeys((*self.request_columns, *self.label.needs)))

    def is_optional(self, name: str) -> bool:
        """Whether a request may leave this column out."""
        return self.columns[name].nullable or name in self.identifying_columns

    @cached_property
    def closed_features(self) -> frozenset[str]:
        """The features that are a text column whose possible values the schema lists (`isin`)."""
        return frozenset(feature.name for feature in self.features if feature.compute is None
                         and feature.kind == "category"
                         and any(check.name == "isin" for check in self.columns[feature.needs[0]].checks))

    @property
    def module(self) -> str:
        """The dotted name of the module that holds the contract."""
        return self.loaded_from or self.schema.__module__

    def python_type(self, name: str) -> type:
        """The plain type of a column: float, int, bool, str or datetime."""
        return self._types[name]

    @cached_property
    def _types(self) -> dict[str, type]:
        kinds = {name: object if str(spec.dtype).startswith("str") else spec.dtype.type
                 for name, spec in self.columns.items()}
        plain = {"f": float, "i": int, "u": int, "b": bool, "M": datetime}
        return {name: plain.get(np.dtype(kind).kind, str) for name, kind in kinds.items()}

    def window_of(self, time: datetime) -> tuple[datetime, datetime]:
        """The half-open window [start, end) of event time that holds `time`."""
        return window_of(time, self.drift.window)

    def columns_of(self, frame: Any, names: tuple[str, ...] | None = None) -> Columns:
        """A data frame's columns as the arrays that serving builds from a request."""
        arrays = {}
        for name in names or self.request_columns:
            if self.python_type(name) is str:
                arrays[name] = frame[name].to_numpy(dtype=object, na_value=None)
            elif self.python_type(name) is datetime:
                arrays[name] = frame[name].to_numpy(dtype="datetime64[s]")
            else:
                arrays[name] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        return arrays

    def labels_of(self, frame: Any) -> np.ndarray:
        """The class index of every row, int64."""
        return np.asarray(self.label.of(*self.columns_of(frame, self.label.needs).values()), dtype=np.int64)

    def describe(self) -> JsonObject:
        """The whole contract as JSON values, functions as their source: what is digested and compared."""
        label = {"classes": list(self.label.classes), "needs": list(self.label.needs),
                 "of": source_of(self.label.of), "matures": str(self.label.matures),
                 "weights": self.label.class_weights.tolist(), **_described_helpers(self.label.of)}
        features = {feature.name: {"kind": feature.kind, "needs": list(feature.needs),
                                   "compute": source_of(feature.compute),
                                   **_described_helpers(feature.compute)}
                    for feature in self.features}
        declared = isinstance(self.source, ParquetFiles | SqlQuery | DeltaSource)
        settings = ("event_time", "key", "rounds", "patience", "stop_share", "seed", "bad_rows", "logged")
        facts: JsonObject = plain_json(
            {"name": self.name, "columns": {name: self._describe_column(name) for name in self.columns},
             "request": list(self.request_columns), "label": label, "features": features,
             "xgboost": dict(self.xgboost), "gate": asdict(self.gate), "drift": asdict(self.drift),
             "rollout": asdict(self.rollout), "schedule": asdict(self.schedule),
             "training": asdict(self.training), "checks": source_of(self.schema),
             **({"source": vars(self.source)} if declared else {}),
             **({"recalibration": asdict(self.recalibration)} if self.recalibration else {}),
             "challengers": [asdict(challenger) for challenger in self.challengers],
             **{name: getattr(self, name) for name in settings}})
        return facts

    def _describe_column(self, name: str) -> JsonObject:
        spec = self.columns[name]
        rules = {check.name: check.statistics for check in spec.checks}
        return {
            "type": self.python_type(name).__name__, "nullable": spec.nullable, "rules": rules,
            "description": spec.description, **spec.metadata,
        }

    @cached_property
    def digest(self) -> str:
        return digest_of(self.describe())

    @cached_property
    def serving_digest(self) -> str:
        """The digest of what turns a record into an answer. A saved model is held
        to it, so limits and policies may change while the model serves on."""
        return self._serving_digest(self.describe()["features"])

    @cached_property
    def serving_digest_format_1(self) -> str:
        """The same digest as models of format 1 hold it, without the functions that features call."""
        return self._serving_digest(
            {name: {fact: value for fact, value in feature.items() if fact != "helpers"}
             for name, feature in self.describe()["features"].items()})

    def _serving_digest(self, features: Mapping[str, Any]) -> str:
        whole = self.describe() | {"features": features}
        parts = {name: whole[name] for name in ("name", "request", "features", "event_time")}
        columns = {name: whole["columns"][name] for name in self.request_columns}
        return digest_of(parts
                         | {"columns": columns,
                            "label": {name: whole["label"][name] for name in ("classes", "weights")}})


def _described_helpers(function: Callable[..., Any] | None) -> JsonObject:
    """The source of the functions that a function calls; empty where it
    calls none, so that older digests, taken without it, stay the same."""
    helpers = helpers_of(function)
    return {"helpers": helpers} if helpers else {}
