"""Declare a column of a contract's schema, with its unit, its source and when its value is known."""

from typing import Any, Literal

import pandera.pandas as pa

FIELD_RULES = {  # Pandera's checks of one value, which the service holds callers to as well
    "equal_to", "not_equal_to", "greater_than_or_equal_to", "greater_than", "less_than_or_equal_to",
    "less_than", "in_range", "isin", "notin", "str_matches", "str_contains", "str_startswith", "str_endswith",
    "str_length"}


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
