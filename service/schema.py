"""The request schema of a contract: its JSON decoder, its errors by field, and its OpenAPI."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import repeat
from operator import eq, ge, gt, le, lt, ne
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
import pydantic
from msgspec.structs import astuple

from contracts.core.contract import Contract
from contracts.core.features import Columns
from service.limits import MAX_RECORDS
from service.prediction_log import EXACT

# Headers of a release's own check: its requests are answered, but not counted as traffic.
SAMPLE_HEADERS = {"perennial-sample": "1"}
BAD_BODY = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # a ValidationError is a DecodeError
EPOCH, NO_TIME = datetime(1970, 1, 1), np.iinfo(np.int64).min
SECOND, MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)

Rules = dict[str, Any]  # the rules of a column: short name → bound

BOUNDS = {"greater_than_or_equal_to": "ge", "greater_than": "gt", "less_than_or_equal_to": "le",
          "less_than": "lt", "equal_to": "eq", "not_equal_to": "ne", "notin": "notin",
          "str_contains": "contains", "str_startswith": "startswith", "str_endswith": "endswith"}
PREDICATES: dict[str, Callable[[Any, Any], Any]] = {
    "ge": ge, "gt": gt, "le": le, "lt": lt, "eq": eq, "ne": ne,
    "isin": lambda value, allowed: value in allowed,
    "notin": lambda value, forbidden: value not in forbidden,
    "contains": lambda text, pattern: re.search(pattern, text),
    "matches": lambda text, pattern: re.match(pattern, text),
    "startswith": str.startswith, "endswith": str.endswith}
SIZE_RULES, TEXT_RULES = {"ge", "gt", "le", "lt"}, {"pattern", "min_length", "max_length"}
# The rules that msgspec checks, by type; the others are checked by PREDICATES.
MSGSPEC_RULES = {float: SIZE_RULES, int: SIZE_RULES, str: TEXT_RULES}


def constraints(contract: Contract, name: str) -> Rules:
    """A column's rules by short names; those in MSGSPEC_RULES are the names of msgspec and pydantic."""
    rules: Rules = {}
    for check in contract.columns[name].checks:
        facts = check.statistics
        if check.name in BOUNDS:
            rules[BOUNDS[check.name]] = next(iter(facts.values()))
        elif check.name == "in_range":
            rules["ge" if facts["include_min"] else "gt"] = facts["min_value"]
            rules["le" if facts["include_max"] else "lt"] = facts["max_value"]
        elif check.name == "isin" and contract.python_type(name) is not str:
            # Text is left out: a record with an unknown category is answered.
            rules["isin"] = facts["allowed_values"]
        elif check.name == "str_matches":
            rules["pattern" if _is_anchored(facts["pattern"]) else "matches"] = facts["pattern"]
        elif check.name == "str_length":
            ends = {f"{end}_length": facts.get("exact_value") or facts.get(f"{end}_value")
                    for end in ("min", "max")}
            rules |= {end: length for end, length in ends.items() if length}
    return rules


def _is_anchored(pattern: Any) -> bool:
    """Whether `search` (msgspec's) and `match` (Pandera's, from the start of a text) agree on it."""
    return isinstance(pattern, str) and pattern.startswith("^") and "|" not in pattern


class Fault(TypedDict):
    """What is wrong with a request: the record's index, the field, the rule, and the value that breaks it."""

    record: int | None
    field: str | None
    rule: str
    value: Any


class RequestSchema:
    """Parses bodies of POST /predict into columns, or lists what is wrong with each record."""

    def __init__(self, contract: Contract):
        self.contract = contract
        self.types = {name: self._type(name) for name in contract.sent_columns}
        fields: list[Any] = [(name, kind) for name, kind in self.types.items()
                             if not contract.is_optional(name)]
        fields += [(name, kind, None) for name, kind in self.types.items() if contract.is_optional(name)]
        self.record = msgspec.defstruct("Record", fields, gc=False)
        record_list = Annotated[list[self.record], msgspec.Meta(min_length=1, max_length=MAX_RECORDS)]  # type: ignore[name-defined]
        request = msgspec.defstruct("Request", [("records", record_list)])
        self.decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(request)
        self.others = {name: rules for name in self.types if (rules := self._other_rules(name))}
        arrays = {str: _texts, datetime: _seconds}
        self.arrays = {name: arrays.get(contract.python_type(name), _numbers) for name in self.types}
        # What identifies an event is logged as it was sent: features take floats, and times in seconds.
        exact = {int: _integers, datetime: _microseconds}
        keys = {name: exact[kind] for name in contract.key if name in self.types
                and (kind := contract.python_type(name)) in exact}
        self.arrays |= {name: array for name, array in keys.items() if name in contract.identifying_columns}
        self.exact = {name: array for name, array in keys.items() if name in contract.request_columns}

    def _type(self, name: str) -> Any:
        kind, rules = self.contract.python_type(name), self._msgspec_rules(name)
        if kind is datetime:
            rules = {"tz": False}
        elif kind is float:
            rules = {rule: float(bound) for rule, bound in rules.items()}
        elif kind is int:
            rules = _within_type(np.iinfo(self.contract.columns[name].dtype.type), rules)
        bound = Annotated[kind, msgspec.Meta(**rules)] if rules else kind
        return bound | None if self.contract.is_optional(name) else bound

    def _msgspec_rules(self, name: str) -> Rules:
        known = MSGSPEC_RULES.get(self.contract.python_type(name), ())
        return {rule: bound for rule, bound in constraints(self.contract, name).items() if rule in known}

    def _other_rules(self, name: str) -> Rules:
        known = self._msgspec_rules(name)
        return {rule: bound for rule, bound in constraints(self.contract, name).items() if rule not in known}

    def parse(self, body: bytes) -> list[Any]:
        """The records of a body; raises one of BAD_BODY, which `faults` explains."""
        records: list[Any] = self.decoder.decode(body).records
        for name, rules in self.others.items():
            values = [value for record in records if (value := getattr(record, name)) is not None]
            for rule, bound in rules.items():
                if not all(map(PREDICATES[rule], values, repeat(bound))):
                    raise msgspec.ValidationError(f"{name}: expected {rule} {bound}")
        return records

    def columns(self, records: Sequence[Any]) -> Columns:
        """The records, one or more, as arrays; what identifies an event and is read by features is there
        twice, the second time exactly, as NAME.exact."""
        values = dict(zip(self.record.__struct_fields__, zip(*map(astuple, records))))
        columns = {f"{name}{EXACT}": array(values[name]) for name, array in self.exact.items()}
        for name, array in self.arrays.items():
            times = columns.get(f"{name}{EXACT}") if array is _seconds else None
            columns[name] = array(values[name]) if times is None else times.astype("datetime64[s]")
        return columns

    def _broken_rule(self, name: str, value: Any) -> str | None:
        for rule, bound in self.others.get(name, {}).items():
            if value is not None and not PREDICATES[rule](value, bound):
                return f"expected {rule} {bound}"
        return None

    def event_times(self, body: bytes, records: Iterable[int | None]) -> np.ndarray:
        """The event times of refused records, any time zone dropped; NaT where they can't be read."""
        wanted = set(records)
        sent = msgspec.json.decode(body)["records"] if wanted - {None} else []
        return np.array([self._event_time(sent, index) for index in wanted], "datetime64[s]")

    def _event_time(self, sent: list[Any], index: int | None) -> datetime | None:
        try:
            time = msgspec.convert(sent[index][self.contract.event_time], datetime)  # type: ignore[index]  # None: a TypeError
        except (msgspec.ValidationError, TypeError, KeyError, IndexError):
            return None
        return time.replace(tzinfo=None)

    def faults(self, body: bytes, refusal: Exception) -> list[Fault]:
        """Every fault of a body that `parse` refused with the error `refusal`."""
        try:
            request = msgspec.json.decode(body)
            records = request["records"]
        except BAD_BODY as error:
            return [_fault(None, None, f"the body is not JSON: {error}")]
        except (TypeError, KeyError):
            return [_fault(None, "records", 'the body must be {"records": [...]}')]
        if not isinstance(records, list) or not 1 <= len(records) <= MAX_RECORDS:
            got = len(records) if isinstance(records, list) else type(records).__name__
            return [_fault(None, "records", f"expected a list of 1 to {MAX_RECORDS} records, got {got}")]
        faults = [fault for index, record in enumerate(records)
                  for fault in self._record_faults(index, record)]
        # None found: a key was there twice, of which plain JSON keeps the last and `parse` refuses either.
        return faults or [_fault_from_error(refusal)]

    def _record_faults(self, index: int, record: Any) -> Iterable[Fault]:
        if not isinstance(record, dict):
            yield _fault(index, None, f"expected an object, got {type(record).__name__}")
            return
        for name, kind in self.types.items():
            if name not in record:
                if not self.contract.is_optional(name):
                    yield _fault(index, name, "required field is missing")
                continue
            try:
                value = msgspec.convert(record[name], kind)
                rule = self._broken_rule(name, value)
            except msgspec.ValidationError as error:
                rule = str(error)
            if rule:
                yield _fault(index, name, rule, record[name])

    def documented(self) -> type[pydantic.BaseModel]:
        """The same record as a pydantic model, for BentoML's OpenAPI."""
        fields: dict[str, Any] = {name: self._documented_field(name) for name in self.types}
        return pydantic.create_model("Record", **fields)

    def _documented_field(self, name: str) -> tuple[Any, Any]:
        spec, kind = self.contract.columns[name], self.contract.python_type(name)
        unit = spec.metadata["unit"]
        description = f"{spec.description} [{unit}]" if unit else spec.description
        known = [check.statistics["allowed_values"] for check in spec.checks if check.name == "isin"]
        extra = {"unit": unit, "source": spec.metadata["source"],
                 "known_values": sorted(known[0]) if known else None}
        extra["rules"] = [f"{rule} {bound}" for rule, bound in self._other_rules(name).items()]
        extra = {fact: value for fact, value in extra.items() if value}
        field = {"description": description, "json_schema_extra": extra, **self._msgspec_rules(name)}
        if self.contract.is_optional(name):
            return kind | None, pydantic.Field(default=None, **field)
        return kind, pydantic.Field(**field)


def _texts(values: tuple[Any, ...]) -> np.ndarray:
    return np.array(values, object)


def _numbers(values: tuple[Any, ...]) -> np.ndarray:
    return np.fromiter(values, np.float64, len(values))


def _seconds(values: tuple[Any, ...]) -> np.ndarray:
    # numpy's own conversion of datetimes takes five times as long.
    seconds = (NO_TIME if value is None else (value - EPOCH) // SECOND for value in values)
    return np.fromiter(seconds, np.int64, len(values)).view("datetime64[s]")


def _microseconds(values: tuple[Any, ...]) -> np.ndarray:
    times = (NO_TIME if value is None else (value - EPOCH) // MICROSECOND for value in values)
    return np.fromiter(times, np.int64, len(values)).view("datetime64[us]")


def _integers(values: tuple[Any, ...]) -> np.ndarray:
    """int64, or Python's own where one is missing or larger: a float64 has 53 bits."""
    try:
        return np.fromiter(values, np.int64, len(values))
    except (TypeError, OverflowError):
        return np.array(values, object)


def _within_type(largest: np.iinfo, rules: Rules) -> Rules:
    """The rules, with the limits of the column's type at an end that has no rule."""
    low = {} if {"ge", "gt"} & rules.keys() else {"ge": int(largest.min)}
    high = {} if {"le", "lt"} & rules.keys() else {"le": int(largest.max)}
    return rules | low | high


def _fault_from_error(refusal: Exception) -> Fault:
    index = re.search(r"\$\.records\[(\d+)\]", str(refusal))
    return _fault(int(index[1]) if index else None, None, str(refusal))


def _fault(record: int | None, field: str | None, rule: str, value: Any = None) -> Fault:
    return {"record": record, "field": field, "rule": rule, "value": value}
