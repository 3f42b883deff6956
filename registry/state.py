"""The state that follows from a ledger's events: champion, versions, windows, retrainings and alerts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from contracts.core.retraining import GAVE_UP, Claim, ClaimState
from contracts.core.verdict import Outcome
from registry import events
from registry.events import AlertState, Event, Recorded

Kind = TypeVar("Kind", bound=Recorded)


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


@dataclass
class State:
    """A model's state after some of its events."""

    # In order of registration: a version's number is its place.
    versions: list[str] = field(default_factory=list)
    layers: dict[str, events.Layer] = field(default_factory=dict)  # of the recalibrated ones, in that order
    champion: str | None = None
    # Champions, the present one last; a rollback goes back along it.
    stack: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    verdicts: dict[str, list[events.Judged]] = field(default_factory=dict)
    windows: dict[str, events.WindowJudged] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    promoted: dict[str, Event] = field(default_factory=dict)
    refusals: int = 0  # of retrained challengers, since the last promotion
    alerts: dict[str, Alert] = field(default_factory=dict)  # in the order they were raised
    recorded: list[Recorded] = field(default_factory=list)  # events that change nothing above

    @property
    def previous(self) -> str | None:
        return self.stack[-2] if len(self.stack) > 1 else None

    @property
    def open_alerts(self) -> list[Alert]:
        return [alert for alert in self.alerts.values() if alert.state is AlertState.RAISED]

    def number(self, version: str) -> int:
        """A version's number, from 1 on."""
        return self.versions.index(version) + 1

    def base_of(self, version: str) -> str:
        """The version that was trained: of a recalibrated one that whose booster it has, else itself."""
        return self.layers[version].base if version in self.layers else version

    def last_judged(self, version: str) -> events.Judged | None:
        """The gate's last verdict on a version."""
        judged = self.verdicts.get(version)
        return judged[-1] if judged else None

    def of_kind(self, kind: type[Kind]) -> list[Kind]:
        """The recorded events of a kind, oldest first."""
        return [data for data in self.recorded if isinstance(data, kind)]


def fold(state: State, event: Event) -> State:
    """The state after one more event."""
    data = event.data
    match data:
        case events.Registered():
            state.versions.append(data.version)
            if data.layer:
                state.layers[data.version] = data.layer
        case events.Judged():
            state.verdicts.setdefault(data.version, []).append(data)
        case events.Promoted():
            state.champion, state.promoted[data.version] = data.version, event
            state.stack.append(data.version)
            if data.version not in state.layers:  # a recalibration says nothing of trainings
                state.refusals = 0
        case events.RolledBack():
            state.champion, state.stack = data.to, _stack_after_rollback(state.stack, data.to)
        case events.Aliased():
            state.aliases[data.name] = data.version
        case events.Tagged():
            state.tags.setdefault(data.version, {})[data.key] = data.value
        case events.Noted():
            state.notes.setdefault(data.version, []).append(data.text)
        case events.WindowJudged():
            state.windows[data.key] = data
        case (events.RetrainClaimed() | events.RetrainRefused() | events.RetrainStarted()
              | events.RetrainFailed() | events.RetrainFinished()):
            state.claims[data.key] = _claim(state.claims.get(data.key), data,
                                            datetime.fromisoformat(event.at))
            if isinstance(data, events.RetrainFinished):
                # By the gate, by the canary, or because every run of it failed.
                state.refusals += data.outcome in (Outcome.FAILED, "refused", GAVE_UP)
        case events.AlertRaised():
            state.alerts[data.key] = Alert(**{name: getattr(data, name) for name in data.__struct_fields__})
        case events.AlertOver():
            state.alerts[data.key] = replace(
                state.alerts[data.key], state=AlertState.OVER, ended_by=data.ended_by, ended=data.ended)
        case events.AlertSent():
            alert = state.alerts[data.key]
            state.alerts[data.key] = replace(alert, sent=(*alert.sent, data.state))
        case _:
            state.recorded.append(data)
    return state


def _stack_after_rollback(stack: Sequence[str], to: str) -> list[str]:
    if to in stack:
        return [*stack[:stack.index(to) + 1]]
    return [*stack, to]  # a champion that an earlier rollback had left


def _claim(claim: Claim | None,
           data: events.RetrainClaimed | events.RetrainRefused | events.RetrainStarted
           | events.RetrainFailed | events.RetrainFinished, at: datetime) -> Claim:
    """A retraining after one more event about it."""
    match data:
        case events.RetrainClaimed():
            return Claim(key=data.key, state=ClaimState.CLAIMED, now=data.now, reason=data.reason, at=at)
        case events.RetrainRefused():
            return Claim(key=data.key, state=ClaimState.REFUSED, now=data.now, reason=data.reason, at=at,
                         why=data.why, rule=data.rule)
    known = claim or Claim(key=data.key, state=ClaimState.CLAIMED)
    if isinstance(data, events.RetrainStarted):
        return replace(known, run=data.run, at=at)
    if isinstance(data, events.RetrainFailed):
        return replace(known, failures=data.failures, run=None, why=data.why, at=at)
    return replace(known, run=None, state=ClaimState.FINISHED, outcome=data.outcome, version=data.version,
                   why=data.why or known.why)
