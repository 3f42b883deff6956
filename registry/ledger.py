"""The ledger of a model: a chain of events, the state they add up to, and the decisions taken on it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any

from contracts.core.digests import canonical_json, digest_of
from contracts.core.errors import Conflict, Corrupt, NotAllowed, NotFound, PerennialError
from contracts.core.policies import Drift
from contracts.core.verdict import Verdict
from registry import layout, settings
from registry.store import Store

FORMAT = 1  # of a stored event: raise it with a change that an older reader can't follow, and keep reading the older
BROKEN = "the circuit breaker is open"  # begins the reason why no retraining starts until a person has looked
TRIES = 100  # a writer that loses this many races in a row gives up
STALE = timedelta(hours=6)  # after which an unfinished retraining counts as abandoned
DERIVED = ("champion", "previous")


@dataclass(frozen=True)
class Event:
    """Something that happened: `at` in UTC, `prev` the digest of the event before."""

    seq: int
    prev: str
    at: str
    by: str
    kind: str
    data: dict[str, Any]

    @property
    def digest(self) -> str:
        return digest_of(asdict(self))


@dataclass
class State:
    """What the events add up to."""

    versions: list[str] = field(default_factory=list)  # in order of registration: a version's number is its place
    champion: str | None = None
    stack: list[str] = field(default_factory=list)  # champions, the present one last; a rollback goes back along it
    aliases: dict[str, str] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    verdicts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    windows: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, dict[str, Any]] = field(default_factory=dict)
    promoted: dict[str, Event] = field(default_factory=dict)
    recorded: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    refusals: int = 0  # of retrained challengers, since the last promotion
    alerts: dict[str, dict[str, Any]] = field(default_factory=dict)  # in the order they were raised

    @property
    def previous(self) -> str | None:
        return self.stack[-2] if len(self.stack) > 1 else None

    @property
    def open_alerts(self) -> list[dict[str, Any]]:
        return [alert for alert in self.alerts.values() if alert["state"] == "raised"]


@dataclass(frozen=True)
class Claim:
    """Whether a retraining may run, and if not, why."""

    granted: bool
    reason: str


def fold(state: State, event: Event) -> State:
    """The state after one more event."""
    data, version = event.data, event.data.get("version", "")
    match event.kind:
        case "registered":
            state.versions.append(version)
        case "judged":
            state.verdicts.setdefault(version, []).append(data)
        case "promoted":
            state.champion, state.promoted[version], state.refusals = version, event, 0
            state.stack.append(version)
        case "rolled_back":
            state.champion = data["to"]
            if data["to"] in state.stack:  # else it was one that an earlier rollback had left: a step forward again
                del state.stack[state.stack.index(data["to"]) + 1:]
            else:
                state.stack.append(data["to"])
        case "aliased":
            state.aliases[data["name"]] = version
        case "tagged":
            state.tags.setdefault(version, {})[data["key"]] = data["value"]
        case "noted":
            state.notes.setdefault(version, []).append(data["text"])
        case "window_judged":
            state.windows[data["key"]] = data
        case "retrain_claimed":
            state.claims[data["key"]] = data | {"state": "claimed", "at": event.at}
        case "retrain_refused":
            state.claims[data["key"]] = data | {"state": "refused", "at": event.at}
        case "retrain_failed":
            state.claims[data["key"]] |= {"failures": data["failures"], "at": event.at}
        case "retrain_finished":
            state.claims[data["key"]] = state.claims.get(data["key"], {}) | data | {"state": "finished"}
            state.refusals += data["outcome"] in ("failed", "refused")  # by the gate, by the canary
        case "alert_raised":
            state.alerts[data["key"]] = data | {"state": "raised", "sent": []}
        case "alert_over":
            state.alerts[data["key"]] |= data | {"state": "over"}
        case "alert_sent":
            state.alerts[data["key"]]["sent"].append(data["state"])
        case _:
            state.recorded.setdefault(event.kind, []).append(data)
    return state


Decision = Callable[[State], tuple[str, dict[str, Any]] | None]


class Ledger:
    """The events of one model in a store; every writer may race every other."""

    def __init__(self, store: Store, model: str):
        self.store, self.model = store, model
        self._known: list[Event] = []

    def events(self) -> list[Event]:
        """All events, their chain verified; raises Corrupt."""
        keys = self.store.list(layout.events(self.model))
        for seq, key in enumerate(keys[len(self._known):], start=len(self._known)):
            if key != self._key(seq):
                raise Corrupt(f"{self.model}: {key} is where {self._key(seq)} should be in {self.store.address}; restore event {seq} "
                                  "from a backup, or remove what is no event")
            self._known.append(self._read(seq))
        return list(self._known)

    def _read(self, seq: int) -> Event:
        try:
            stored = json.loads(self.store.get(self._key(seq)))
            if stored.pop("format") != FORMAT:
                raise Corrupt(f"{self.model}: event {seq} has another format than {FORMAT}; upgrade perennial")
            digest, event = stored.pop("digest"), Event(**stored)
            appended = (event.seq, event.prev, event.digest) == (seq, self._head(seq), digest)
        except (ValueError, KeyError, TypeError, AttributeError):  # torn, or other JSON than an event's
            appended = False
        if not appended:
            raise Corrupt(f"{self.model}: event {seq} is not the one that was appended; restore {self._key(seq)} in "
                              f"{self.store.address} from a backup")
        return event

    def _head(self, seq: int) -> str:
        return self._known[seq - 1].digest if seq else ""

    def _key(self, seq: int) -> str:
        return layout.event(self.model, seq)

    def state(self, at: str | None = None) -> State:
        """What holds now, or held at a time (ISO-8601, UTC unless it says otherwise): after the last event until then."""
        events = self.events()
        if at is not None:
            until = _utc(at)  # clocks may go backwards: an event later than one that follows it had happened, too
            events = events[:max((n for n, event in enumerate(events, 1) if datetime.fromisoformat(event.at) <= until), default=0)]
        return reduce(fold, events, State())

    def decide(self, decision: Decision) -> Event | None:
        """Append what a pure decision makes of the state; asked again whenever another writer came first."""
        for _ in range(TRIES):
            wanted = decision(self.state())
            if wanted is None:
                return None
            seq = len(self._known)
            event = Event(seq, self._head(seq), datetime.now(UTC).isoformat(timespec="microseconds"), _who(), *_plain(wanted))
            try:
                self.store.create(self._key(seq), canonical_json({"format": FORMAT, "digest": event.digest, **asdict(event)}))
            except Conflict:
                continue
            return event
        raise Conflict(f"{self.model}: {TRIES} other writers came first; try again")

    def record(self, kind: str, data: dict[str, Any], once: tuple[str, ...] = ()) -> Event | None:
        """Append an event; where `once` names fields, not a second one with equal values in them."""
        def decision(state: State):
            same = (all(old.get(name) == data.get(name) for name in once) for old in state.recorded.get(kind, ()))
            return None if once and any(same) else (kind, data)
        return self.decide(decision)

    def registered(self, version: str, data: dict[str, Any]) -> Event | None:
        return self.decide(lambda state: None if version in state.versions else ("registered", {"version": version, **data}))

    def judged(self, version: str, verdict: Verdict, against: str | None, data: dict[str, Any]) -> Event | None:
        """Keep a gate's Verdict; not twice the same outcome against the same champion."""
        def decision(state: State):
            last = (state.verdicts.get(version) or [None])[-1]
            if last and (last["against"], last["verdict"]["outcome"]) == (against, verdict.outcome):
                return None
            return "judged", {"version": version, "against": against, "verdict": verdict.as_json(), **data}
        return self.decide(decision)

    def promote(self, version: str, *, expect: str | None) -> Event | None:
        """Make a version champion in place of `expect`; raises NotAllowed or Conflict."""
        def decision(state: State):
            if state.champion == version:
                return None
            if state.champion is None and expect:
                raise Conflict(f"{self.model}: {version[:12]} was not promoted in place of {expect[:12]}: there is no champion; "
                                    f"run: perennial train {self.model}")
            if state.champion != expect:
                winner = state.promoted[state.champion]
                raise Conflict(
                    f"{self.model}: {version[:12]} was not promoted: {state.champion[:12]} was, by {winner.by} at "
                    f"{winner.at}; judge it against that one: perennial train {self.model}")
            self._must_allow(state, version, expect)
            return "promoted", {"version": version, "before": expect}
        return self.decide(decision)

    def must_allow(self, version: str) -> None:
        """Raise NotAllowed unless the version is champion or may take the champion's place."""
        state = self.state()
        if version != state.champion:
            self._must_allow(state, version, state.champion)

    def _must_allow(self, state: State, version: str, champion: str | None) -> None:
        last = (state.verdicts.get(version) or [{"verdict": {"outcome": "missing"}, "against": champion}])[-1]
        if last["verdict"]["outcome"] != "passed" or last["against"] != champion:
            raise NotAllowed(f"{self.model}: the gate's verdict on {version[:12]} against {(champion or 'no champion')[:12]} "
                             f"is {last['verdict']['outcome']}; run: perennial train {self.model}")

    def roll_back(self, reason: str, to: str | None = None) -> Event | None:
        """Make an earlier champion champion again; a second rollback goes further back."""
        def decision(state: State):
            target = to or state.previous
            if target is None or (target not in state.promoted):
                raise NotFound(f"{self.model}: {(to or 'no version')[:12]} was never champion before; "
                                          f"see: perennial history {self.model}")
            if target == state.champion:
                return None
            return "rolled_back", {"from": state.champion, "to": target, "reason": reason}
        return self.decide(decision)

    def alias(self, name: str, version: str) -> Event | None:
        if name in DERIVED:
            raise PerennialError(f"alias {name!r} follows from promotions; choose another name")
        return self._of(version, lambda state: None if state.aliases.get(name) == version
                        else ("aliased", {"name": name, "version": version}))

    def tag(self, version: str, key: str, value: str) -> Event | None:
        return self._of(version, lambda state: None if state.tags.get(version, {}).get(key) == value
                        else ("tagged", {"version": version, "key": key, "value": value}))

    def note(self, version: str, text: str) -> Event | None:
        return self._of(version, lambda state: ("noted", {"version": version, "text": text}))

    def _of(self, version: str, decision: Decision) -> Event | None:
        if version not in self.state().versions:
            raise PerennialError(f"{self.model}: no version {version!r} is registered; see: perennial history {self.model}")
        return self.decide(decision)

    def window_judged(self, key: str, verdict: Verdict, data: dict[str, Any], again: Callable[[Verdict], bool]) -> Verdict:
        """Keep a window's Verdict and give the one that is kept: the first, but another answer replaces one to ask for `again`."""
        def decision(state: State):
            held = Verdict.from_json(state.windows[key]["verdict"]) if key in state.windows else None
            if held and (not again(held) or held.as_json() == verdict.as_json()):
                return None
            return "window_judged", {"key": key, "verdict": verdict.as_json(), **data}
        self.decide(decision)
        return Verdict.from_json(self.state().windows[key]["verdict"])

    def claim_retraining(self, key: str, *, now: datetime, reason: str, drift: Drift, fresh: int) -> Claim:
        """Ask for a retraining of one cause; `now` is event time, so that a replayed year decides as it would have. `fresh`: the
        labelled rows that the champion was not trained on.

        Asked again: the same answer while it runs, "already done" once it has.
        """
        def decision(state: State):
            if key in state.claims:
                return None
            why = self._against(state, now, drift, fresh)
            facts = {"key": key, "now": now.isoformat(), "reason": reason}
            return ("retrain_refused", facts | {"why": why}) if why else ("retrain_claimed", facts)
        self.decide(decision)
        claim = self.state().claims[key]
        said = {"claimed": "granted", "finished": "already done"}.get(claim["state"]) or claim["why"]
        return Claim(claim["state"] == "claimed", said)

    def _against(self, state: State, now: datetime, drift: Drift, fresh: int) -> str:
        """Why no retraining may start now; empty if it may."""
        if state.refusals >= drift.refusals:
            return (f"{BROKEN}: {state.refusals} challengers in a row were refused; look at their verdicts: perennial history "
                    f"{self.model}; a promotion closes it: perennial train {self.model}")
        if fresh < drift.new_rows:
            return f"{fresh} labelled rows are new since the champion was trained, {drift.new_rows} are needed"
        granted = [claim for claim in state.claims.values() if claim["state"] != "refused"]
        for claim in granted:
            fresh = datetime.now(UTC) - datetime.fromisoformat(claim["at"]) < STALE
            if claim["state"] == "claimed" and fresh:
                return f"the retraining of {claim['key']} is in flight"
        times = [datetime.fromisoformat(claim["now"]) for claim in granted]
        if times and now < max(times) + drift.cooldown:
            return f"cooldown until {max(times) + drift.cooldown}"
        if sum(now - timedelta(days=7) < time <= now for time in times) >= drift.weekly_budget:
            return f"the weekly budget of {drift.weekly_budget} is spent"
        return ""

    def retrain_finished(self, key: str, outcome: str, data: dict[str, Any]) -> Event | None:
        return self.decide(lambda state: None if state.claims.get(key, {}).get("state") == "finished"
                           else ("retrain_finished", {"key": key, "outcome": outcome, **data}))

    def retrain_failed(self, key: str, why: str, tries: int = 3) -> Event | None:
        """A run of a granted retraining failed: it may run again, but after `tries` of them it is over."""
        def decision(state: State):
            claim = state.claims.get(key, {})
            if claim.get("state") != "claimed":
                return None
            failures = claim.get("failures", 0) + 1
            over = {"outcome": "failed", "why": f"{failures} runs failed, the last: {why}"}
            return ("retrain_finished", {"key": key} | over) if failures >= tries else (
                "retrain_failed", {"key": key, "why": why, "failures": failures})
        return self.decide(decision)


def _plain(wanted: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    kind, data = wanted
    return kind, json.loads(canonical_json(data))


def _who() -> str:
    return settings.user()


def _utc(at: str) -> datetime:
    try:
        time = datetime.fromisoformat(at)
    except ValueError:
        raise PerennialError(f"{at!r} is no time; write it as 2013-07-01T12:00") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
