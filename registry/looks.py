"""Until when data was looked for: a look that finds nothing new leaves no other trace."""

import json
from datetime import datetime

from contracts.core.errors import NotFound
from registry import layout
from registry.store import Store, put


def looked_until(store: Store, model: str) -> datetime | None:
    """The event time that the looks have reached; None before the first of them."""
    try:
        return datetime.fromisoformat(json.loads(store.get(layout.look(model)))["until"])
    except NotFound:
        return None


def record_look(store: Store, model: str, until: datetime) -> None:
    """Record that all rows up to `until` that the source had were asked for."""
    before = looked_until(store, model)
    if before is None or before < until:
        put(store, layout.look(model), json.dumps({"until": until.isoformat()}).encode())
