"""What a caller may send: types for parsing and for the documentation, both derived from the contract."""

from collections.abc import Iterable
from datetime import datetime
from operator import ge, gt, le, lt
from typing import Annotated, Any

import msgspec
import numpy as np
import pydantic

from contracts.contract import Columns, Contract

MOST_RECORDS = 10_000
SAMPLE = {"perennial-sample": "1"}  # headers of a release's own check: answered as any request, but not counted as traffic
BAD_BODY = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # a ValidationError is a DecodeError

BOUNDS = {"greater_than_or_equal_to": "ge", "greater_than": "gt", "less_than_or_equal_to": "le", "less_than": "lt"}
HOLDS = {"ge": ge, "gt": gt, "le": le, "lt": lt}
# A category that training never saw is a prediction, so `isin` binds the training data alone.


def constraints(contract: Contract, name: str) -> dict[str, Any]:
    """A column's rules under the names that msgspec and pydantic share: ge, gt, le, lt, pattern, lengths."""
    found: dict[str, Any] = {}
    for check in contract.columns[name].checks:
        facts = check.statistics
        if check.name in BOUNDS:
            found[BOUNDS[check.name]] = next(iter(facts.values()))
        elif check.name == "in_range":
            found["ge" if facts["include_min"] else "gt"] = facts["min_value"]
            found["le" if facts["include_max"] else "lt"] = facts["max_value"]
        elif check.name == "str_matches":
            found["pattern"] = getattr(facts["pattern"], "pattern", facts["pattern"])
        elif check.name == "str_length":
            found |= {f"{end}_length": facts[f"{end}_value"] for end in ("min", "max") if facts[f"{end}_value"]}
    return found


class Requests:
    """Parses the bodies of POST /predict into columns, or says what is wrong with every record."""

    def __init__(self, contract: Contract):
        self.contract = contract
        self.types = {name: self._type(name) for name in contract.request_columns}
        required = [(name, kind) for name, kind in self.types.items() if not contract.columns[name].nullable]
        optional = [(name, kind, None) for name, kind in self.types.items() if contract.columns[name].nullable]
        record = msgspec.defstruct("Record", required + optional, gc=False)
        many = Annotated[list[record], msgspec.Meta(min_length=1, max_length=MOST_RECORDS)]
        self.decoder = msgspec.json.Decoder(msgspec.defstruct("Request", [("records", many)]))
        arrays = {str: object, datetime: "datetime64[s]"}
        self.arrays = {name: arrays.get(contract.python_type(name), np.float64) for name in self.types}
        self.spans = {
            name: rules for name in self.types
            if contract.python_type(name) is datetime and (rules := constraints(contract, name))
        }

    def _type(self, name: str) -> Any:
        kind, rules = self.contract.python_type(name), constraints(self.contract, name)
        if kind is datetime:
            rules = {"tz": False}  # msgspec has no bounds for times: `out_of_span` holds them
        elif kind is float:
            rules = {rule: float(bound) for rule, bound in rules.items()}
        bound = Annotated[kind, msgspec.Meta(**rules)] if rules else kind
        return bound | None if self.contract.columns[name].nullable else bound

    def parse(self, body: bytes) -> list[Any]:
        """The records of a body; raises one of BAD_BODY, then ask `faults`."""
        records = self.decoder.decode(body).records
        for name in self.spans:
            for record in records:
                if rule := self._out_of_span(name, getattr(record, name)):
                    raise msgspec.ValidationError(rule)
        return records

    def columns(self, records: Iterable[Any]) -> Columns:
        return {
            name: np.array([getattr(record, name) for record in records], kind) for name, kind in self.arrays.items()
        }

    def _out_of_span(self, name: str, time: datetime | None) -> str | None:
        for rule, bound in self.spans[name].items():
            if time is not None and not HOLDS[rule](time, bound):
                return f"Expected `datetime` {rule} {bound}"
        return None

    def faults(self, body: bytes) -> list[dict[str, Any]]:
        """Every fault of a body that `parse` refused: record's index, field, rule and value."""
        try:
            request = msgspec.json.decode(body)
            records = request["records"]
        except BAD_BODY as error:
            return [_fault(None, None, f"the body is not JSON: {error}")]
        except (TypeError, KeyError):
            return [_fault(None, "records", 'the body must be {"records": [...]}')]
        if not isinstance(records, list) or not 1 <= len(records) <= MOST_RECORDS:
            found = len(records) if isinstance(records, list) else type(records).__name__
            return [_fault(None, "records", f"expected a list of 1 to {MOST_RECORDS} records, got {found}")]
        return [fault for index, record in enumerate(records) for fault in self._record_faults(index, record)]

    def _record_faults(self, index: int, record: Any) -> Iterable[dict[str, Any]]:
        if not isinstance(record, dict):
            yield _fault(index, None, f"expected an object, got {type(record).__name__}")
            return
        for name, kind in self.types.items():
            if name not in record:
                if not self.contract.columns[name].nullable:
                    yield _fault(index, name, "required field is missing")
                continue
            try:
                value = msgspec.convert(record[name], kind)
                rule = self._out_of_span(name, value) if name in self.spans else None
            except msgspec.ValidationError as error:
                rule = str(error)
            if rule:
                yield _fault(index, name, rule, record[name])

    def documented(self) -> type[pydantic.BaseModel]:
        """The same record as a pydantic model, for BentoML's OpenAPI."""
        return pydantic.create_model("Record", **{name: self._documented_field(name) for name in self.types})

    def _documented_field(self, name: str) -> tuple[Any, Any]:
        spec, kind = self.contract.columns[name], self.contract.python_type(name)
        unit = spec.metadata["unit"]
        description = f"{spec.description} [{unit}]" if unit else spec.description
        known = [check.statistics["allowed_values"] for check in spec.checks if check.name == "isin"]
        extra = {"unit": unit, "source": spec.metadata["source"], "known_values": sorted(known[0]) if known else None}
        rules = constraints(self.contract, name)
        if kind is datetime:
            extra |= {"minimum": str(rules.get("ge", rules.get("gt", ""))), "maximum": str(rules.get("le", rules.get("lt", "")))}
            rules = {}
        extra = {fact: value for fact, value in extra.items() if value}
        field = {"description": description, "json_schema_extra": extra, **rules}
        if spec.nullable:
            return kind | None, pydantic.Field(default=None, **field)
        return kind, pydantic.Field(**field)


def _fault(record: int | None, field: str | None, rule: str, value: Any = None) -> dict[str, Any]:
    return {"record": record, "field": field, "rule": rule, "value": value}
