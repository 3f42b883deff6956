"""The answer to a question "may this pass?"."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


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
