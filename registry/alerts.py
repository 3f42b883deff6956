"""An alert as the ledger's events about it amount to."""

from msgspec import Struct

from registry import events
from registry.events import AlertState


class Alert(Struct, frozen=True, kw_only=True, rename=events.ALERT_KEYS | {"ended_by": "over"}):
    """An alert, with the fields of `AlertRaised` and `AlertOver`. `sent`: its states that Prefect has."""

    key: str
    kind: str
    window: str
    message: str
    drift_scores: dict[str, float]
    since: str
    response: str
    version: str
    state: AlertState = AlertState.RAISED
    sent: tuple[AlertState, ...] = ()
    ended_by: str | None = None
    ended: str | None = None
