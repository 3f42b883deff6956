"""Raise an alert once per cause, end it when the cause is over, and send both as Prefect events."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.events import Event

from contracts.core.drift import drift_scores
from contracts.core.errors import Unavailable
from registry.context import ModelContext
from registry.ledger import BROKEN, State

ASKING = ("page", "retrain", "wait")  # what follows from a window that a person should hear of
BREAKER = "circuit breaker"
MOST = 5  # columns that an alert gives figures of


@dataclass(frozen=True)
class Alert:
    """What a person is told of a cause that was `raised` or is `over`: `what`, how `far` each column is in units of its floor,
    `since` when, of which version, and what is being done."""

    model: str
    kind: str
    state: str
    what: str
    far: Mapping[str, float]
    since: str
    window: str
    version: str
    doing: str

    @property
    def id(self) -> UUID:
        """The same, however often it is sent, so that Prefect and whoever is told can keep one of many."""
        return uuid5(NAMESPACE_URL, f"perennial/{self.model}/alert/{key_of(self.kind, self.window)}/{self.state}")


def key_of(kind: str, window: str) -> str:
    return f"{kind} {window}"


def update_alerts(memory: ModelContext, window: str, verdict: Mapping[str, Any], action: str) -> None:
    """Raise and end what the window's verdict asks for, and send all that nobody has confirmed yet."""
    send(memory, record_alerts(memory, window, verdict, action))


def record_alerts(memory: ModelContext, window: str, verdict: Mapping[str, Any], action: str) -> list[Alert]:
    """Write down what the window raises, and what is over; gives every alert that was not sent yet, whoever wrote it down.

    Windows may be told of twice, late and in any order: a cause is raised once, and it ends with the first window from there
    on that answers and does not show it.
    """
    if action in ASKING:
        memory.ledger.decide(lambda state: raised(state, memory.name, window, verdict, action))
    while memory.ledger.decide(ended):
        pass
    return unsent(memory.name, memory.ledger.state())


def raised(state: State, model: str, window: str, verdict: Mapping[str, Any], action: str) -> tuple[str, dict[str, Any]] | None:
    """The event that raises the window's alert; None where its cause is told of, or had ended later than this window."""
    why = state.claims.get(window, {}).get("why", "")
    kind = BREAKER if action == "page" and why.startswith(BROKEN) else verdict["kind"]
    of_kind = [alert for alert in state.alerts.values() if alert["kind"] == kind]
    if any(alert["state"] == "raised" or alert["window"] == window or alert["over"] > window for alert in of_kind):
        return None
    far = drift_scores(verdict["figures"])
    return "alert_raised", {
        "key": key_of(kind, window), "kind": kind, "window": window, "what": "; ".join(verdict["reasons"]),
        "far": {name: round(far[name], 2) for name in sorted(far, key=far.get, reverse=True)[:MOST] if far[name] > 1},
        "since": verdict["figures"].get("since", window), "doing": _doing(action, why, model),
        "version": verdict["figures"].get("version") or state.champion or ""}


def _doing(action: str, why: str, model: str) -> str:
    if action == "retrain":
        return "a retraining was started"
    if action == "wait":
        return f"no retraining starts yet: {why}"
    return f"nothing retrains: {why or f'look at what is named, then at the window in the Prefect UI and at: perennial status {model}'}"


def ended(state: State) -> tuple[str, dict[str, Any]] | None:
    """The event that ends one open alert whose cause is over; None where all go on."""
    for alert in state.open_alerts:
        over = _over(state, alert)
        if over:
            doing = "a version was promoted" if alert["kind"] == BREAKER else f"nothing more: the window {over} shows it no longer"
            return "alert_over", {"key": alert["key"], "over": over, "ended": doing}
    return None


def _over(state: State, alert: Mapping[str, Any]) -> str | None:
    """The window with which the alert's cause was over."""
    if alert["kind"] == BREAKER:
        return None if state.refusals else max([alert["window"], *state.windows])
    later = ((window, held["verdict"]) for window, held in sorted(state.windows.items()) if window >= alert["window"])
    return next((window for window, verdict in later
                 if verdict["outcome"] != "insufficient" and alert["kind"] not in kinds_of(verdict)), None)


def kinds_of(verdict: Mapping[str, Any]) -> set[str]:
    """All that the verdict found; its own kind is the gravest."""
    return {verdict["kind"], *verdict["figures"].get("kinds", ())}


def unsent(model: str, state: State) -> list[Alert]:
    """Alerts in the ledger that Prefect has not confirmed."""
    return [_alert(model, alert, now) for alert in state.alerts.values()
            for now in ("raised", "over") if now not in alert["sent"] and (now == "raised" or alert["state"] == "over")]


def _alert(model: str, alert: Mapping[str, Any], state: str) -> Alert:
    same = {name: alert[name] for name in ("kind", "what", "far", "since", "window", "version")}
    return Alert(model=model, state=state, doing=alert["doing" if state == "raised" else "ended"], **same)


def send(memory: ModelContext, alerts: Iterable[Alert]) -> None:
    """Hand alerts to Prefect and write down that it has them. Killed between the two, it sends them again, under the same id."""
    with get_client(sync_client=True) as client:
        for alert in alerts:  # not by `emit_event`: it returns before the server has the event
            try:
                client.request("POST", "/events", json=[event_of(alert).model_dump(mode="json")])
            except HTTPError as error:
                raise Unavailable(f"{alert.model}: Prefect did not take the alert of {alert.kind!r}: {error}; it is in the ledger, and "
                                  "the next monitor or reconcile run sends it; is PREFECT_API_URL right?") from error
            memory.ledger.decide(lambda state, alert=alert: sent(state, alert))


def event_of(alert: Alert) -> Event:
    resource = {"prefect.resource.id": f"perennial.model.{alert.model}", "prefect.resource.name": alert.model}
    return Event(event=f"perennial.alert.{alert.state}", resource=resource, id=alert.id, payload=asdict(alert) | {"id": str(alert.id)})


def sent(state: State, alert: Alert) -> tuple[str, dict[str, Any]] | None:
    key = key_of(alert.kind, alert.window)
    return None if alert.state in state.alerts[key]["sent"] else ("alert_sent", {"key": key, "state": alert.state})
