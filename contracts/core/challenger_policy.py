"""What a contract says of the challengers that a training makes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any


@dataclass(frozen=True)
class Challenger:
    """A model that a training makes: of all rows, or of those of the `newest` time before the last one; where
    there is a `half_life`, a row that is older by it counts half."""

    name: str
    half_life: timedelta | None = None
    newest: timedelta | None = None


ALL_ROWS = Challenger("all rows")


def challenger_settings(challengers: Sequence[Challenger]) -> Iterator[tuple[str, Any, bool, str]]:
    """Each setting that can be invalid: its name, its value, whether it is valid, and the rule."""
    names = [challenger.name for challenger in challengers]
    yield "challengers", names, len({*names}) == len(names) > 0, "one or more, with different names"
    for challenger in challengers:
        for name in ("half_life", "newest"):
            value = getattr(challenger, name)
            yield (f"challengers: {name} of {challenger.name!r}", value,
                   value is None or value > timedelta(0), "more than 0, or None")
