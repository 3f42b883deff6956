"""What one file per model states, and what is derived from it."""

import hashlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal

import numpy as np
import pandera.pandas as pa

if "dask" not in sys.modules:  # Pandera wants its data frames for annotations alone, and they take longer to import than all the rest
    sys.modules["dask"] = None
    import pandera.typing.dask  # noqa: F401

    del sys.modules["dask"]

Columns = Mapping[str, np.ndarray]
"""Columns of one length: float64 for numbers (missing: NaN), datetime64, object for text (missing: None)."""

PREDICTION = "prediction"  # the named class, in a profile
PROBABILITY = "probability."  # a class's probability, in a profile: this and the class's name
FIELD_RULES = {  # Pandera's checks of one value, which the service holds callers to as well
    "equal_to", "not_equal_to", "greater_than_or_equal_to", "greater_than", "less_than_or_equal_to", "less_than", "in_range",
    "isin", "notin", "str_matches", "str_contains", "str_startswith", "str_endswith", "str_length"}
ROOM = {"__init__", "contract", "bins", "reference", "quality", "rules", "drift", "skew", "trace", "canary"}  # what is no contract in contracts/
WEEK_ZERO = datetime(1970, 1, 5)  # a Monday: windows of a week start on Mondays


class PerennialError(Exception):
    """Something a person can mend; the message says how. `exit_code`: 2 for their mistake, 1 for a failure."""

    exit_code = 2


class ContractError(PerennialError):
    """The contract itself is wrong."""


class Refused(PerennialError):
    """A check said no; `verdict` holds all the reasons."""

    exit_code = 1

    def __init__(self, verdict: "Verdict", remedy: str):
        super().__init__(f"{verdict.question}: {'; '.join(verdict.reasons)}; {remedy}")
        self.verdict = verdict


@dataclass(frozen=True)
class Verdict:
    """The answer to one "may this pass?", with every reason and the figures behind it."""

    question: str
    outcome: Literal["passed", "failed", "insufficient"]
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"reasons": list(self.reasons), "figures": dict(self.figures)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Verdict":
        return cls(**(dict(stored) | {"reasons": tuple(stored["reasons"])}))


def column(
    *, description: str, known: Literal["before", "after"] = "before", unit: str | None = None,
    source: str | None = None, **checks: Any,
) -> Any:
    """A Pandera field that also says its unit, its source and when its value is known.

    `known="before"`: a caller can send it. `known="after"`: it exists only once the event is over, so it may
    build the label and never a feature.
    """
    facts = {"known": known, "unit": unit, "source": source}
    return pa.Field(description=description, metadata=facts, **checks)


@dataclass(frozen=True)
class Feature:
    """One column of the matrix: a number or a category, read from `needs` through `compute`."""

    name: str
    kind: Literal["number", "category"]
    needs: tuple[str, ...]
    compute: Callable[..., np.ndarray] | None = None

    def values(self, columns: Columns) -> np.ndarray:
        if self.compute is None:
            return columns[self.needs[0]]
        return self.compute(*(columns[name] for name in self.needs))


def number(name: str, *needs: str, compute: Callable[..., np.ndarray] | None = None) -> Feature:
    """A numeric feature: the column itself, or `compute` of the columns it needs."""
    return Feature(name, "number", needs or (name,), compute)


def category(name: str, *needs: str, compute: Callable[..., np.ndarray] | None = None) -> Feature:
    """A categorical feature; values unseen in training become the explicit category "unknown"."""
    return Feature(name, "category", needs or (name,), compute)


def is_output(name: str) -> bool:
    """Whether a profile's column is what the model answered, not what it was asked."""
    return name == PREDICTION or name.startswith(PROBABILITY)


@dataclass(frozen=True)
class Label:
    """What is predicted: `of` turns the columns it `needs` into indices of `classes`.

    `matures`: how long after the event the label is known. `weights`: a class is named when its probability
    times its weight is the largest, so that a rare class can be named at all.
    """

    classes: tuple[str, ...]
    needs: tuple[str, ...]
    of: Callable[..., np.ndarray]
    matures: timedelta
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Gate:
    """The limits a challenger must keep; against the champion on the newest `window` of labelled events."""

    window: timedelta
    log_loss: float
    auc: float
    calibration_error: float
    recall: Mapping[str, float]
    slices: tuple[str, ...] = ()
    slice_margin: float = 0.05
    slice_rows: int = 200
    margin: float = 0.0
    confidence: float = 0.95
    min_rows: int = 500
    latency_ms: float = 50.0
    size_mb: float = 50.0
    refit_shift: float = 0.1


@dataclass(frozen=True)
class Drift:
    """When a window of traffic asks for a retraining, and how often it may.

    `false_alarms`: share of windows of unchanged traffic that any check may fail. `detect`: the Jensen-Shannon distance
    (0.1: a normal column moved by a quarter of its deviation) that a window must be able to find, from which follow the
    rows it needs; `min_rows` sets these by hand. `ordinary`: the least distance, and `share` the least part of the
    records missing or never seen, that matter at all, however sure they are. Floors above these are learnt at training.
    `floors` and `severity` set a floor, or what follows ("page", "drift", "note"), by hand: for a column ("temp") or for
    one of its checks ("temp.missing", "dest.new", "temp.values"). Columns to `ignore` are not judged.

    `persist`: of how many of the last windows drift must be told, the newest among them, before it starts a retraining.
    `bad_inputs`: share of records that were refused, as a broken caller sends them, if they are more than `bad_rows`.
    `label_gap`: divergence, in nats, of the class shares that came true, on `min_labels` labels or more and for `coverage`
    of the logged predictions, from those that the model expected (calibration in the large). `skew`: share of the events
    that may have been sent otherwise than they were ingested. `new_rows`: labelled since the champion was trained, that a
    retraining needs. After `refusals` of challengers in a row retraining stops, until one is promoted, and a person is paged.
    """

    window: timedelta = timedelta(days=7)
    false_alarms: float = 0.005
    detect: float = 0.1
    min_rows: int | None = None
    ordinary: float = 0.02
    share: float = 0.005
    floors: Mapping[str, float] = field(default_factory=dict)
    severity: Mapping[str, Literal["page", "drift", "note"]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    persist: tuple[int, int] = (2, 3)
    label_gap: float = 0.02
    min_labels: int = 500
    coverage: float = 0.8
    skew: float = 0.01
    new_rows: int = 500
    refusals: int = 5
    retrain_on: tuple[str, ...] = ("input drift", "prediction drift", "worse on labels")
    bad_inputs: float = 0.05
    bad_rows: int = 20
    cooldown: timedelta = timedelta(days=14)
    weekly_budget: int = 1

    def floor(self, column: str, check: str) -> float | None:
        """What the contract says of the check's floor, if anything."""
        return self.floors.get(f"{column}.{check}", self.floors.get(column))

    def severity_of(self, column: str, check: str) -> Literal["page", "drift", "note"] | None:
        """What the contract says should follow from the check, if anything."""
        return self.severity.get(f"{column}.{check}", self.severity.get(column))

    def least(self, check: str) -> float:
        """The least effect of a check that matters at all."""
        return self.ordinary if check == "values" else self.share


@dataclass(frozen=True)
class Rollout:
    """How a version takes over the traffic, and what it must keep while it has a `share` of it.

    `requests`: that it must answer before it takes over, waited for at most `minutes`; `alone`: what to do when too few
    came. `errors`: share of its requests that it may fail though the champion does not. `slower`: times the champion's
    99th percentile, where that is more than the gate's `latency_ms`. `shift`: total variation distance of the class
    shares from the champion's, beyond what the gate saw and chance gives. `memory_mb`: growth of a replica.
    """

    share: float = 0.1
    requests: int = 100
    minutes: float = 10.0
    errors: float = 0.0
    slower: float = 3.0
    shift: float = 0.2
    memory_mb: float = 100.0
    alone: Literal["go on", "stop"] = "go on"


@dataclass(frozen=True)
class Contract:
    """Everything Perennial knows of one model.

    The schema's rules of one value bind the data and the callers alike, but `isin` of a text binds the data alone: an
    unknown category is a prediction. Rules across columns or rows bind the data alone.

    `key`: the columns that tell one event from all others. A caller may send those that no feature reads: with them a
    prediction meets its label. `logged`: the share of the predictions that is kept with ids, to be scored once labels come.
    """

    name: str
    schema: type[pa.DataFrameModel]
    event_time: str
    label: Label
    features: tuple[Feature, ...]
    xgboost: Mapping[str, Any]
    gate: Gate
    drift: Drift = Drift()
    rollout: Rollout = Rollout()
    source: Callable[[datetime, datetime], Any] | None = None
    key: tuple[str, ...] = ()
    rounds: int = 300
    patience: int = 20
    stop_share: float = 0.15
    seed: int = 0
    bad_rows: float = 0.01
    logged: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "xgboost", MappingProxyType(dict(self.xgboost)))
        for problem in self._problems():
            raise ContractError(f"contract {self.name}: {problem}")

    def _problems(self):
        needs = {name: feature.name for feature in self.features for name in feature.needs}
        uses = needs | dict.fromkeys(self.label.needs, "the label") | {self.event_time: "the event time"}
        uses |= dict.fromkeys((*self.gate.slices, *self.key), "a slice or the key")
        for name, user in uses.items():
            if name not in self.columns:
                yield f"{user} needs column {name!r}, which the schema lacks; add it to {self.schema.__name__}"
        for name, user in needs.items():
            if self.columns[name].metadata["known"] == "after":
                yield f"feature {user!r} reads {name!r}, known only after the event; callers can't send it: drop it"
        if len({feature.name for feature in self.features}) < len(self.features):
            yield "two features share one name; rename one"
        for name in [each.name for each in self.features if is_output(each.name)]:
            yield f"feature {name!r} has the name of a model's answer in profiles; rename it"
        for name in self.sent_columns:
            for rule in sorted({check.name for check in self.columns[name].checks} - FIELD_RULES):
                yield (f"column {name!r} has the rule {rule!r}, which the service can't hold one record to; "
                       f"use one of {', '.join(sorted(FIELD_RULES))}, or a dataframe_check")
        for what, value, sound, rule in self._settings():
            if not sound:
                yield f"{what} is {value!r}; it must be {rule}: change it"
        if self.drift.cooldown < self.gate.window:
            yield (f"a cooldown of {self.drift.cooldown} is shorter than the gate's window of {self.gate.window}: "
                   "the next challenger would be judged on rows the champion was trained on; lengthen it")
        columns = {*(feature.name for feature in self.features), PREDICTION, *(PROBABILITY + name for name in self.label.classes)}
        judged = {f"{name}{check}" for name in columns for check in ("", ".values", ".missing", ".new")}
        for name in sorted({*self.drift.floors, *self.drift.severity, *self.drift.ignore} - judged):
            yield f"drift speaks of {name!r}, which is no feature, no answer and no check of one; the columns: {', '.join(sorted(columns))}"
        unknown = set(self.gate.recall) - set(self.label.classes)
        if unknown:
            yield f"the gate limits the recall of {sorted(unknown)}, not among the classes {self.label.classes}"

    def _settings(self):
        """Each setting that can be nonsense: its name, value, whether it is sound, and the rule."""
        when, label, drift, gate = self.columns[self.event_time], self.label, self.drift, self.gate
        none, minute = timedelta(0), timedelta(minutes=1)
        kind, known = self.python_type(self.event_time).__name__, when.metadata["known"]
        yield "name", self.name, re.fullmatch(r"\w[\w-]*", self.name, re.ASCII), "letters, digits, _ and -, as in a path"
        yield "the event time's type", kind, kind == "datetime", "datetime"
        yield "the event time's nullability", when.nullable, not when.nullable, "False"
        yield "the event time's known", known, known == "before", "'before', for callers send it"
        yield "label.classes", label.classes, len({*label.classes}) == len(label.classes) >= 2, "two names or more, all different"
        yield ("label.weights", label.weights, len(label.weights) in (0, len(label.classes)) and all(w > 0 for w in label.weights),
               "one positive number for each class")
        yield "label.matures", label.matures, label.matures >= none, "no less than nothing"
        yield "gate.window", gate.window, gate.window > none, "more than nothing"
        yield "drift.window", drift.window, drift.window > none and not drift.window % minute, "one or more whole minutes"
        yield "drift.false_alarms", drift.false_alarms, 0 < drift.false_alarms < 1, "a share between 0 and 1"
        yield "drift.detect", drift.detect, 0 < drift.detect < 1, "a distance between 0 and 1"
        yield "drift.coverage", drift.coverage, 0 <= drift.coverage <= 1, "a share from 0 to 1"
        yield "drift.skew", drift.skew, 0 <= drift.skew <= 1, "a share from 0 to 1"
        yield "drift.refusals", drift.refusals, drift.refusals > 0, "one or more"
        yield "drift.severity", drift.severity, {*drift.severity.values()} <= {"page", "drift", "note"}, "of 'page', 'drift', 'note'"
        yield ("drift.persist", drift.persist, len(drift.persist) == 2 and 1 <= drift.persist[0] <= drift.persist[1],
               "(k, m): k of the last m windows")
        yield "drift.retrain_on", drift.retrain_on, {*drift.retrain_on} <= {*Drift.retrain_on}, f"out of {Drift.retrain_on}"
        yield "logged", self.logged, 0 <= self.logged <= 1, "a share from 0 to 1"
        yield "bad_rows", self.bad_rows, 0 <= self.bad_rows <= 1, "a share from 0 to 1"
        yield "stop_share", self.stop_share, 0 < self.stop_share < 1, "a share between 0 and 1"

    @cached_property
    def columns(self) -> dict[str, Any]:
        """The schema's columns by name, each with dtype, nullability, checks and metadata."""
        columns = self.schema.to_schema().columns
        bare = [name for name, spec in columns.items() if not spec.metadata]
        if bare:
            raise ContractError(f"contract {self.name}: declare {bare} with contracts.contract.column(…)")
        return columns

    @cached_property
    def request_columns(self) -> tuple[str, ...]:
        """What a caller sends: the event time and the columns that features read."""
        wanted = {self.event_time, *(name for feature in self.features for name in feature.needs)}
        return tuple(name for name in self.columns if name in wanted)

    @cached_property
    def telling_columns(self) -> tuple[str, ...]:
        """What a caller may send besides, to say which event it is: columns of the key that no feature reads."""
        return tuple(name for name in self.key
                     if name not in self.request_columns and self.columns[name].metadata["known"] == "before")

    @cached_property
    def sent_columns(self) -> tuple[str, ...]:
        """All that a caller may send."""
        return (*self.request_columns, *self.telling_columns)

    @cached_property
    def training_columns(self) -> tuple[str, ...]:
        """What a training reads of labelled events."""
        return tuple(dict.fromkeys((*self.request_columns, *self.label.needs)))

    def may_lack(self, name: str) -> bool:
        """Whether a request is good without a value for this column."""
        return self.columns[name].nullable or name in self.telling_columns

    @cached_property
    def closed(self) -> frozenset[str]:
        """The features that are a text column whose vocabulary the schema states."""
        return frozenset(
            feature.name for feature in self.features if feature.compute is None and feature.kind == "category"
            and any(check.name == "isin" for check in self.columns[feature.needs[0]].checks))

    @cached_property
    def source_file(self) -> Path:
        return Path(sys.modules[self.schema.__module__].__file__)

    @cached_property
    def weights(self) -> np.ndarray:
        return np.asarray(self.label.weights or (1.0,) * len(self.label.classes))

    def python_type(self, name: str) -> type:
        """The plain type of a column: float, int, bool, str or datetime."""
        return self._types[name]

    @cached_property
    def _types(self) -> dict[str, type]:
        kinds = {name: object if str(spec.dtype).startswith("str") else spec.dtype.type for name, spec in self.columns.items()}
        plain = {"f": float, "i": int, "u": int, "b": bool, "M": datetime}
        return {name: plain.get(np.dtype(kind).kind, str) for name, kind in kinds.items()}

    def window_of(self, time: datetime) -> tuple[datetime, datetime]:
        """The half-open window [start, end) of event time that holds `time`."""
        start = WEEK_ZERO + (time - WEEK_ZERO) // self.drift.window * self.drift.window
        return start, start + self.drift.window

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

    def describe(self) -> dict[str, Any]:
        """The whole contract as JSON, code as its text: what the digest is of and what a diff compares."""
        label = {
            "classes": list(self.label.classes), "needs": list(self.label.needs), "of": _code(self.label.of),
            "matures": str(self.label.matures), "weights": self.weights.tolist(),
        }
        features = {
            feature.name: {"kind": feature.kind, "needs": list(feature.needs), "compute": _code(feature.compute)}
            for feature in self.features
        }
        settings = ("event_time", "key", "rounds", "patience", "stop_share", "seed", "bad_rows", "logged")
        return _plain({
            "name": self.name, "columns": {name: self._describe_column(name) for name in self.columns},
            "request": list(self.request_columns), "label": label, "features": features,
            "xgboost": dict(self.xgboost), "gate": asdict(self.gate), "drift": asdict(self.drift),
            "rollout": asdict(self.rollout), "checks": _code(self.schema), **{name: getattr(self, name) for name in settings},
        })

    def _describe_column(self, name: str) -> dict[str, Any]:
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
    def serving(self) -> str:
        """The digest of what turns a record into an answer: a model serves on while limits and policies change."""
        whole = self.describe()
        parts = {name: whole[name] for name in ("name", "request", "features", "event_time")}
        columns = {name: whole["columns"][name] for name in self.request_columns}
        return digest_of(parts | {"columns": columns, "label": {name: whole["label"][name] for name in ("classes", "weights")}})


def digest_of(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def _code(thing: Any) -> str | None:
    return inspect.getsource(thing).strip() if thing is not None else None


def load(model: str) -> Contract:
    """The contract of a model: `contracts/<model>.py`, or any dotted module with a `contract` in it."""
    module = model if "." in model else f"contracts.{model}"
    if not _is_module(module):
        raise ContractError(f"no contract {model!r}: {module} does not exist; known: {', '.join(known_models())}")
    return contract_of(module, lambda: importlib.import_module(module))


def known_models() -> list[str]:
    """Every contract in contracts/."""
    return sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - ROOM)


def _is_module(name: str) -> bool:
    try:
        return all(part.isidentifier() for part in name.split(".")) and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def contract_of(name: str, run: Callable[[], ModuleType]) -> Contract:
    """The `contract` of the module that `run` gives; ContractError, whatever is wrong with it."""
    try:
        found = getattr(run(), "contract", None)
    except PerennialError:
        raise
    except Exception as error:  # the file is its author's: it may raise anything
        raise ContractError(f"{name} can't be read: {type(error).__name__}: {error}; mend it") from error
    if not isinstance(found, Contract):
        raise ContractError(f"{name} has no `contract = Contract(…)`; add it")
    return found


@dataclass(frozen=True)
class Change:
    """One difference between two contracts, and whether it breaks callers."""

    path: str
    old: Any
    new: Any
    breaks: str | None


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """What changed between two `Contract.describe()`s, breaking changes first."""
    changes = [
        Change(path, before, after, _breaks(path, before, after, old, new))
        for path, before, after in _differences(old, new, "")
    ]
    return sorted(changes, key=lambda change: (change.breaks is None, change.path))


def _differences(old: Any, new: Any, path: str):
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def _breaks(path: str, before: Any, after: Any, old: Mapping, new: Mapping) -> str | None:
    """Why a caller who did nothing would notice this change, if they would."""
    if path == "label.classes":
        return "answers name other classes"
    if path == "request":
        added = [name for name in after if name not in before and not new["columns"][name]["nullable"]]
        return f"callers must now send {', '.join(added)}" if added else None
    head, _, rest = path.partition(".")
    name, _, fact = rest.partition(".")
    if head != "columns" or name not in new["request"] or name not in old["request"]:
        return None
    if fact in ("type", "unit"):
        return f"callers send {name} as {before}, not {after}"
    if fact == "nullable" and not after:
        return f"callers may no longer leave {name} out"
    if fact.startswith("rules") and _narrower(fact, before, after):
        return f"values of {name} that passed are refused"
    return None


def _narrower(fact: str, before: Any, after: Any) -> bool:
    if after is None:
        return False
    if before is None:
        return True
    bound = fact.rpartition(".")[2]
    if bound.startswith("min"):
        return after > before
    if bound.startswith("max"):
        return after < before
    if bound == "allowed_values":
        return not set(before) <= set(after)
    return True
