"""The state that follows from a ledger's events: champion, versions, windows, retrainings and alerts."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TypeVar, cast

import msgspec
from msgspec.structs import replace

from contracts.core.retraining import GAVE_UP, Claim
from contracts.core.verdict import Outcome
from registry import claims, events
from registry.alerts import Alert
from registry.event_log.entries import Encoded, Entries, Snapshots, View, encoded
from registry.events import AlertState, Event, Recorded

Kind = TypeVar("Kind", bound=Recorded)
Value = TypeVar("Value")


CURRENT = "current"
# The keys of CURRENT, which every snapshot holds; `height`: of the stack of champions.
SCALARS = ("champion", "refusals", "height", "unjudged")
# What is put under keys, by collection. Events in order ("judged", "recorded/…") have their numbers as keys.
TYPES: Mapping[str, object] = {
    CURRENT: str | int | dict[str, str] | None, "registered": events.Registered, "stack": str,
    "aliases": str, "tags": str, "noted": events.Noted, "judged": events.Judged, "last_judged": str,
    "layers": events.Layer, "windows": events.WindowJudged,
    "claims": Claim, "promoted": Event, "alerts": Alert,
    **{f"recorded/{name}": kind for name, kind in events.KINDS.items()}}

# The files of the code that makes the state of stored events.
FOLDING = (__file__, *(str(module.__file__) for module in (events, claims)))


@cache
def fold_version() -> str:
    """A name for this code's fold. A change of FOLDING, or of what it stores, is another fold, which does not
    use the snapshots of the one before."""
    digest = sha256(msgspec.json.encode(msgspec.json.schema_components([*TYPES.values()])))
    for file in FOLDING:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:12]


class State:
    """A model's state after `length` of its events; it can't be changed, and more events make another one."""

    def __init__(self, entries: Entries | None = None, length: int | None = None):
        """`length`: fewer events than `entries` has folded, and no fewer than its snapshots are of."""
        self._entries = Entries(TYPES) if entries is None else entries
        self.length = self._entries.length if length is None else length

    def _view(self, collection: str, _: type[Value]) -> View[Value]:
        return View(self._entries, collection, self.length)

    def _current(self, name: str) -> object:
        return self._entries.get(CURRENT, name, self.length)

    @property
    def champion(self) -> str | None:
        return cast("str | None", self._current("champion"))

    @property
    def refusals(self) -> int:
        """Of retrained challengers, since the last promotion."""
        return cast(int, self._current("refusals") or 0)

    @property
    def height(self) -> int:
        """Of the stack of champions."""
        return cast(int, self._current("height") or 0)

    @property
    def stack(self) -> list[str]:
        """Champions, the present one last; a rollback goes back along it."""
        known = self._view("stack", str)
        return [known[str(place)] for place in range(self.height)]

    @property
    def previous(self) -> str | None:
        return self._view("stack", str)[str(self.height - 2)] if self.height > 1 else None

    @property
    def registered(self) -> Mapping[str, events.Registered]:
        """By version, in order of registration."""
        return self._view("registered", events.Registered)

    @property
    def versions(self) -> list[str]:
        """In order of registration: a version's number is its place."""
        return list(self.registered)

    @property
    def layers(self) -> Mapping[str, events.Layer]:
        """Of the recalibrated versions, in order of registration."""
        return self._view("layers", events.Layer)

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._view("aliases", str)

    @property
    def tags(self) -> dict[str, dict[str, str]]:
        """By version and key."""
        tags: dict[str, dict[str, str]] = {}
        for both, value in self._view("tags", str).items():
            version, key = both.split("\n", 1)
            tags.setdefault(version, {})[key] = value
        return tags

    def tag(self, version: str, key: str) -> str | None:
        return self._view("tags", str).get(f"{version}\n{key}")

    @property
    def notes(self) -> dict[str, list[str]]:
        """By version, oldest first."""
        notes: dict[str, list[str]] = {}
        for noted in self._view("noted", events.Noted).values():
            notes.setdefault(noted.version, []).append(noted.text)
        return notes

    @property
    def verdicts(self) -> dict[str, list[events.Judged]]:
        """All verdicts of the gate by version, oldest first; the last one alone is `last_judged`."""
        verdicts: dict[str, list[events.Judged]] = {}
        for judged in self._view("judged", events.Judged).values():
            verdicts.setdefault(judged.version, []).append(judged)
        return verdicts

    @property
    def judged(self) -> Mapping[str, events.Judged]:
        """All verdicts of the gate by the numbers of their events, oldest first."""
        return self._view("judged", events.Judged)

    @property
    def unjudged(self) -> dict[str, str]:
        """By gate's window, the version for which it had too little to judge by, since it last could."""
        return dict(cast("dict[str, str]", self._current("unjudged") or {}))

    @property
    def windows(self) -> Mapping[str, events.WindowJudged]:
        """The last verdict on each window, by its start."""
        return self._view("windows", events.WindowJudged)

    @property
    def claims(self) -> Mapping[str, Claim]:
        """Retrainings by the window that asked for them."""
        return self._view("claims", Claim)

    @property
    def promoted(self) -> Mapping[str, Event]:
        """The last promotion of each version that was ever champion by one."""
        return self._view("promoted", Event)

    @property
    def alerts(self) -> Mapping[str, Alert]:
        """In the order they were raised."""
        return self._view("alerts", Alert)

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
        last = self._view("last_judged", str).get(version)
        return self._view("judged", events.Judged)[last] if last else None

    def of_kind(self, kind: type[Kind]) -> list[Kind]:
        """The events of a kind that change nothing above, oldest first."""
        return list(self._view(_recorded(kind), kind).values())

    def numbered(self, kind: type[Kind]) -> Mapping[str, Kind]:
        """As `of_kind`, by the numbers of the events."""
        return self._view(_recorded(kind), kind)

    @property
    def recorded(self) -> list[Recorded]:
        """The events of all kinds that change nothing above, oldest first."""
        of_all = [(int(number), data) for kind in events.KINDS.values()
                  for number, data in self.numbered(kind).items()]
        return [data for _, data in sorted(of_all, key=lambda one: one[0])]


def _recorded(kind: type[Recorded]) -> str:
    return f"recorded/{kind.__struct_config__.tag}"


def earlier(state: State, length: int) -> State:
    """The state after the first `length` events, none of which may be in a snapshot."""
    return State(state._entries, length)


def forget_changes(state: State, end: int) -> None:
    """Of no event before `end` it will be asked what it `changed`."""
    state._entries.forget_changes(end)


def changed(state: State, first: int) -> Encoded:
    """What the events from `first` on have put, as JSON. The values that are there once are among them in any
    case, so that a reader finds them in the newest snapshot."""
    values = state._entries.changed(first, state.length)
    return values | {CURRENT: {name: encoded(state._current(name)) for name in SCALARS}}


def after(snapshots: Snapshots, length: int) -> State:
    """The state that snapshots of the first `length` events amount to."""
    return State(Entries(TYPES, snapshots, length))


def fold(state: State, event: Event) -> State:
    """The state after one more event; raises ValueError for a state that has been folded further already."""
    entries, data = state._entries, event.data
    if state.length != entries.length:
        raise ValueError(f"the state after {state.length} events was folded up to {entries.length}: fold "
                         f"the newest one")
    put = entries.put
    match data:
        case events.Registered():
            put("registered", data.version, data)
            if data.layer:
                put("layers", data.version, data.layer)
        case events.Judged():
            put("judged", str(event.seq), data)
            put("last_judged", data.version, str(event.seq))
            if data.verdict.outcome is Outcome.INSUFFICIENT or state.unjudged:
                put(CURRENT, "unjudged", _unjudged(state.unjudged, data))
        case events.Promoted():
            put("promoted", data.version, event)
            put(CURRENT, "champion", data.version)
            if data.version not in state.layers:  # a recalibration says nothing of trainings
                put(CURRENT, "refusals", 0)
            _push(state, data.version)
        case events.RolledBack():
            put(CURRENT, "champion", data.to)
            _roll_back(state, data.to)
        case events.Aliased():
            put("aliases", data.name, data.version)
        case events.Tagged():
            put("tags", f"{data.version}\n{data.key}", data.value)
        case events.Noted():
            put("noted", str(event.seq), data)
        case events.WindowJudged():
            put("windows", data.key, data)
        case (events.RetrainClaimed() | events.RetrainRefused() | events.RetrainStarted()
              | events.RetrainFailed() | events.RetrainFinished()):
            put("claims", data.key, claims.claim_after(state.claims, data, datetime.fromisoformat(event.at)))
            if (isinstance(data, events.RetrainFinished)
                    # By the gate, by the canary, or because every run of it failed.
                    and data.outcome in (Outcome.FAILED, "refused", GAVE_UP)):
                put(CURRENT, "refusals", state.refusals + 1)
        case events.AlertRaised():
            put("alerts", data.key, Alert(**{name: getattr(data, name) for name in data.__struct_fields__}))
        case events.AlertOver():
            put("alerts", data.key, replace(state.alerts[data.key], state=AlertState.OVER,
                                            ended_by=data.ended_by, ended=data.ended))
        case events.AlertSent():
            alert = state.alerts[data.key]
            put("alerts", data.key, replace(alert, sent=(*alert.sent, data.state)))
        case _:
            put(_recorded(type(data)), str(event.seq), data)
    entries.length += 1
    return State(entries)


def _unjudged(before: Mapping[str, str], data: events.Judged) -> dict[str, str]:
    """Several challengers of one window are one; a verdict of older releases names no window."""
    if data.verdict.outcome is not Outcome.INSUFFICIENT:
        return {}
    return {**before, data.verdict.figures.since or data.version: data.version}


def _push(state: State, version: str) -> None:
    state._entries.put("stack", str(state.height), version)
    state._entries.put(CURRENT, "height", state.height + 1)


def _roll_back(state: State, to: str) -> None:
    """Down to a champion on the stack; one that an earlier rollback had left comes on top."""
    if to in (stack := state.stack):
        state._entries.put(CURRENT, "height", stack.index(to) + 1)
    else:
        _push(state, to)
