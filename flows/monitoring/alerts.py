"""Raise an alert once per cause, end it when the cause is over, and send both as Prefect events."""

from collections.abc import Iterable
from uuid import NAMESPACE_URL, UUID, uuid5

from httpx import HTTPError
from msgspec import Struct
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource

from contracts.core.errors import Unavailable
from contracts.core.retraining import RefusalRule
from contracts.core.verdict import Action, Outcome, WindowVerdict, as_json
from registry.context import ModelContext
from registry.events import AlertOver, AlertRaised, AlertSent, AlertState
from registry.state import Alert, State

# What follows from a window that a person should hear of.
ALERTING = (Action.PAGE, Action.RETRAIN, Action.WAIT)
MAX_COLUMNS = 5  # columns whose drift scores an alert gives


class AlertMessage(Struct, frozen=True, kw_only=True):
    """What a person is told of a cause that was raised or is over: `what`, how `far` each column
    is in units of its threshold, `since` when, of which version, and what is being done."""

    model: str
    kind: str
    state: AlertState
    what: str
    far: dict[str, float]
    since: str
    window: str
    version: str
    doing: str

    @property
    def id(self) -> UUID:
        """The same, however often it is sent, so that Prefect and whoever is told can keep one of many."""
        return uuid5(NAMESPACE_URL,
                     f"perennial/{self.model}/alert/{key_of(self.kind, self.window)}/{self.state}")


def key_of(kind: str, window: str) -> str:
    return f"{kind} {window}"


def update_alerts(context: ModelContext, window: str, verdict: WindowVerdict, action: Action) -> None:
    """Raise and end what the window's verdict asks for, and send all that nobody has confirmed yet."""
    send(context, record_alerts(context, window, verdict, action))


def record_alerts(context: ModelContext, window: str, verdict: WindowVerdict,
                  action: Action) -> list[AlertMessage]:
    """Record what the window raises, and what is over; gives
    every alert that was not sent yet, whoever recorded it.

    Windows may be judged twice, late and in any order: a cause is raised once, and
    it ends with the first window from there on that answers and does not show it.
    """
    if action in ALERTING:
        context.ledger.decide(lambda state: new_alert(state, context.name, window, verdict, action))
    while context.ledger.decide(ended_alert):
        pass
    return unsent(context.name, context.ledger.state())


def new_alert(state: State, model: str, window: str, verdict: WindowVerdict,
              action: Action) -> AlertRaised | None:
    """The event that raises the window's alert; None where
    its cause is open, or had ended later than this window."""
    claim = state.claims.get(window)
    is_breaker = action is Action.PAGE and claim is not None and claim.rule is RefusalRule.CIRCUIT_BREAKER
    kind = str(RefusalRule.CIRCUIT_BREAKER if is_breaker else verdict.kind)
    of_kind = [alert for alert in state.alerts.values() if alert.kind == kind]
    if any(alert.over is None or alert.window == window or alert.over > window for alert in of_kind):
        return None
    scores, figures = verdict.figures.drift_scores, verdict.figures
    furthest = sorted(scores, key=lambda name: -scores[name])[:MAX_COLUMNS]
    return AlertRaised(key=key_of(kind, window), kind=kind, window=window, what="; ".join(verdict.reasons),
                       far={name: round(scores[name], 2) for name in furthest if scores[name] > 1},
                       since=figures.since or window, doing=_doing(action, claim.why if claim else "", model),
                       version=figures.version or state.champion or "")


def _doing(action: Action, why: str, model: str) -> str:
    if action is Action.RETRAIN:
        return "a retraining was started"
    if action is Action.WAIT:
        return f"no retraining starts yet: {why}"
    look = f"look at what is named, then at the window in the Prefect UI and at: perennial status {model}"
    return f"nothing retrains: {why or look}"


def ended_alert(state: State) -> AlertOver | None:
    """The event that ends one open alert whose cause is over; None where all go on."""
    for alert in state.open_alerts:
        over = _over(state, alert)
        if over:
            is_breaker = alert.kind == RefusalRule.CIRCUIT_BREAKER
            ended = ("a version was promoted" if is_breaker
                     else f"nothing more: the window {over} shows it no longer")
            return AlertOver(key=alert.key, over=over, ended=ended)
    return None


def _over(state: State, alert: Alert) -> str | None:
    """The window with which the alert's cause was over."""
    if alert.kind == RefusalRule.CIRCUIT_BREAKER:
        return None if state.refusals else max([alert.window, *state.windows])
    later = ((window, judged.verdict) for window, judged in sorted(state.windows.items())
             if window >= alert.window)
    return next((window for window, verdict in later if verdict.outcome is not Outcome.INSUFFICIENT
                 and alert.kind not in (verdict.kind, *verdict.figures.kinds)), None)


def unsent(model: str, state: State) -> list[AlertMessage]:
    """Alerts in the ledger that Prefect has not confirmed."""
    return [_message(model, alert, now) for alert in state.alerts.values()
            for now in AlertState if now not in alert.sent and now in (AlertState.RAISED, alert.state)]


def _message(model: str, alert: Alert, state: AlertState) -> AlertMessage:
    return AlertMessage(model=model, kind=alert.kind, state=state, what=alert.what, far=alert.far,
                        since=alert.since, window=alert.window, version=alert.version,
                        doing=alert.doing if state is AlertState.RAISED else alert.ended or "")


def send(context: ModelContext, alerts: Iterable[AlertMessage]) -> None:
    """Hand alerts to Prefect and record that it has them. Killed
    between the two, it sends them again, under the same id."""
    with get_client(sync_client=True) as client:
        for alert in alerts:  # not by `emit_event`: it returns before the server has the event
            try:
                client.request("POST", "/events", json=[event_of(alert).model_dump(mode="json")])
            except HTTPError as error:
                raise Unavailable(f"{alert.model}: Prefect did not take the alert of {alert.kind!r}: "
                                  f"{error}; it is in the ledger, and the next monitor or reconcile run "
                                  f"sends it; is PREFECT_API_URL right?") from error
            context.ledger.decide(lambda state, alert=alert: confirmation(state, alert))  # type: ignore[misc]  # the default


def event_of(alert: AlertMessage) -> Event:
    resource = {"prefect.resource.id": f"perennial.model.{alert.model}", "prefect.resource.name": alert.model}
    return Event(event=f"perennial.alert.{alert.state}", resource=Resource(resource), id=alert.id,
                 payload=as_json(alert) | {"id": str(alert.id)})


def confirmation(state: State, alert: AlertMessage) -> AlertSent | None:
    key = key_of(alert.kind, alert.window)
    return None if alert.state in state.alerts[key].sent else AlertSent(key=key, state=alert.state)
