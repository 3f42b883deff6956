"""Raise an alert once per cause, end it when the cause is over, and send both as Prefect events."""

from collections.abc import Iterable
from datetime import datetime
from uuid import NAMESPACE_URL, UUID, uuid5

from httpx import HTTPError
from msgspec import Struct
from prefect.events import Event, Resource

from contracts.core.errors import Unavailable
from contracts.core.retraining import RefusalRule
from contracts.core.verdict import Action, Outcome, WindowKind, WindowVerdict, as_json
from flows.monitoring.claims import record_claim_alerts
from flows.monitoring.decision import record_and_decide
from flows.monitoring.gate_alerts import record_gate_alerts
from flows.monitoring.missing_labels import record_missing_labels
from flows.monitoring.staleness import record_stale_alert
from flows.orchestration.events import post_event
from registry.alerts import Alert
from registry.context import ModelContext
from registry.events import ALERT_KEYS, AlertOver, AlertRaised, AlertSent, AlertState
from registry.ledger import Ledger
from registry.state import State

# The actions that raise an alert.
ALERTING = (Action.PAGE, Action.RETRAIN, Action.WAIT)
MAX_COLUMNS = 5  # columns whose drift scores an alert gives


class AlertMessage(Struct, frozen=True, kw_only=True, rename=ALERT_KEYS):
    """An alert that was raised or has ended, as it is sent to Prefect.

    `drift_scores`: each drifted column's largest effect, in units of its threshold.
    `response`: what is being done about it, or why it ended.
    """

    model: str
    kind: str
    state: AlertState
    message: str
    drift_scores: dict[str, float]
    since: str
    window: str
    version: str
    response: str

    @property
    def id(self) -> UUID:
        """The same however often it is sent, so that Prefect and other receivers can drop repetitions."""
        return uuid5(NAMESPACE_URL,
                     f"perennial/{self.model}/alert/{key_of(self.kind, self.window)}/{self.state}")


def key_of(kind: str, window: str) -> str:
    return f"{kind} {window}"


def update_alerts(context: ModelContext, window: str, verdict: WindowVerdict, action: Action) -> None:
    """Raise and end alerts as the window's verdict asks for, and send those that Prefect doesn't have yet."""
    send(context.ledger, record_alerts(context, window, verdict, action))


def update_window_alerts(context: ModelContext) -> None:
    """Update the alerts of the newest judged window again: the run that judged it may have been killed."""
    windows = context.ledger.state().windows
    if windows:
        newest = max(windows)
        judged = windows[newest]
        update_alerts(context, newest, judged.verdict, record_and_decide(
            context, datetime.fromisoformat(newest), judged.verdict, judged.labels))


def update_claim_alerts(context: ModelContext) -> None:
    """Raise and end the alerts about granted retrainings, and send what Prefect doesn't have yet."""
    _record_ends(context)
    record_claim_alerts(context)
    record_gate_alerts(context)
    send(context.ledger, unsent(context.name, context.ledger.state()))


def update_stale_alert(context: ModelContext) -> str | None:
    """Raise or end the alert about data that does not come; the reason while it is so."""
    found = record_stale_alert(context)
    send(context.ledger, unsent(context.name, context.ledger.state()))
    return found.reason if found else None


def record_alerts(context: ModelContext, window: str, verdict: WindowVerdict,
                  action: Action) -> list[AlertMessage]:
    """Record the alert that the window raises and those that have ended; returns all that are unsent.

    Windows may be judged twice, late and in any order: a cause raises one alert, which ends with the
    first later window that has a verdict without this cause.
    """
    if action in ALERTING:
        context.ledger.decide(lambda state: new_alert(state, context.name, window, verdict, action))
    _record_ends(context)
    record_claim_alerts(context)
    record_missing_labels(context)
    record_gate_alerts(context)
    return unsent(context.name, context.ledger.state())


def _record_ends(context: ModelContext) -> None:
    while context.ledger.decide(ended_alert):
        pass


def new_alert(state: State, model: str, window: str, verdict: WindowVerdict,
              action: Action) -> AlertRaised | None:
    """The event that raises the window's alert; None if an alert
    of its kind is open, or one has ended with a later window."""
    claim = state.claims.get(window)
    is_breaker = action is Action.PAGE and claim is not None and claim.rule is RefusalRule.CIRCUIT_BREAKER
    kind = str(RefusalRule.CIRCUIT_BREAKER if is_breaker else verdict.kind)
    of_kind = [alert for alert in state.alerts.values() if alert.kind == kind]
    if any(alert.ended_by is None or alert.window == window or alert.ended_by > window for alert in of_kind):
        return None
    scores, figures = verdict.figures.drift_scores, verdict.figures
    response = _response(action, claim.why if claim else "", model)
    furthest = sorted(scores, key=lambda name: -scores[name])[:MAX_COLUMNS]
    return AlertRaised(key=key_of(kind, window), kind=kind, window=window, message="; ".join(verdict.reasons),
                       drift_scores={name: round(scores[name], 2) for name in furthest if scores[name] > 1},
                       since=figures.since or window, response=response,
                       version=figures.version or state.champion or "")


def _response(action: Action, why: str, model: str) -> str:
    if action is Action.RETRAIN:
        return "a retraining was started"
    if action is Action.WAIT:
        return f"no retraining starts yet: {why}"
    look = f"look at what is named, then at the window in the Prefect UI and at: perennial status {model}"
    return f"nothing retrains: {why or look}"


def ended_alert(state: State) -> AlertOver | None:
    """The event that ends the first open alert whose cause is over; None if there is none."""
    for alert in state.open_alerts:
        ended_by = _ended_by(state, alert)
        if ended_by:
            is_breaker = alert.kind == RefusalRule.CIRCUIT_BREAKER
            ended = ("a version was promoted" if is_breaker
                     else f"nothing more: the window {ended_by} shows it no longer")
            return AlertOver(key=alert.key, ended_by=ended_by, ended=ended)
    return None


def _ended_by(state: State, alert: Alert) -> str | None:
    """The first window without the alert's cause; None if it is not over."""
    if alert.kind not in (RefusalRule.CIRCUIT_BREAKER, *WindowKind):  # ended where it was raised
        return None
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
    return AlertMessage(model=model, kind=alert.kind, state=state, message=alert.message,
                        drift_scores=alert.drift_scores, since=alert.since, window=alert.window,
                        version=alert.version,
                        response=alert.response if state is AlertState.RAISED else alert.ended or "")


def send(ledger: Ledger, alerts: Iterable[AlertMessage]) -> None:
    """Send alerts to Prefect and record that it has them. If killed between
    the two, the next run sends them again under the same id."""
    for alert in alerts:
        send_event(alert)
        ledger.decide(lambda state, alert=alert: confirmation(state, alert))  # type: ignore[misc]  # the default


def send_event(alert: AlertMessage) -> None:
    """Send one alert to Prefect; raises Unavailable."""
    try:
        post_event(event_of(alert))
    except HTTPError as error:
        raise Unavailable(f"{alert.model}: Prefect did not take the alert of {alert.kind!r}: {error}; it is "
                          f"in the ledger, and the next monitor or reconcile run sends it; is "
                          f"PREFECT_API_URL right?") from error


def event_of(alert: AlertMessage) -> Event:
    resource = {"prefect.resource.id": f"perennial.model.{alert.model}", "prefect.resource.name": alert.model}
    return Event(event=f"perennial.alert.{alert.state}", resource=Resource(resource), id=alert.id,
                 payload=as_json(alert) | {"id": str(alert.id)})


def confirmation(state: State, alert: AlertMessage) -> AlertSent | None:
    key = key_of(alert.kind, alert.window)
    return None if alert.state in state.alerts[key].sent else AlertSent(key=key, state=alert.state)
