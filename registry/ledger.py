"""The ledger of a model: a chain of events in the store, each with the digest of the one before."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import reduce

from msgspec import ValidationError

from contracts.core import retraining
from contracts.core.digests import JsonObject, canonical_json, digest_of
from contracts.core.errors import Conflict, Corrupt, PerennialError
from contracts.core.policies import Drift
from contracts.core.retraining import GAVE_UP, Claim, ClaimState
from contracts.core.verdict import GateVerdict, WindowVerdict
from registry import layout, promotion, settings
from registry.clock import machine_time
from registry.events import (
    FORMAT,
    Aliased,
    Data,
    Event,
    Noted,
    Recorded,
    Registered,
    RetrainClaimed,
    RetrainFailed,
    RetrainFinished,
    RetrainRefused,
    RetrainStarted,
    Tagged,
    WindowJudged,
    decode_data,
    encode_data,
    kind_of,
)
from registry.state import State, fold
from registry.store import Store

MAX_ATTEMPTS = 100  # after which a writer that other writers are always ahead of gives up
DERIVED_ALIASES = ("champion", "previous")

Decision = Callable[[State], Data | None]


class Ledger:
    """The events of one model in a store; every writer may race every other."""

    def __init__(self, store: Store, model: str):
        self.store, self.model = store, model
        self._verified: list[Event] = []

    def events(self) -> list[Event]:
        """All events, their chain verified; raises Corrupt."""
        keys = [key for key in self.store.list(layout.events(self.model)) if layout.is_event(key)]
        for seq, key in enumerate(keys[len(self._verified):], start=len(self._verified)):
            if key != self._key(seq):
                raise Corrupt(f"{self.model}: {key} is where {self._key(seq)} should be in "
                              f"{self.store.address}; restore event {seq} from a backup")
            self._verified.append(self._read(seq))
        return list(self._verified)

    def _read(self, seq: int) -> Event:
        try:
            stored = json.loads(self.store.get(self._key(seq)))
            stored_format, digest = stored.pop("format"), stored.pop("digest")
            is_linked = (stored["seq"], stored["prev"], digest_of(stored)) == (seq, self._head(seq), digest)
        except (ValueError, KeyError, TypeError, AttributeError):  # cut off, or not an event's JSON
            is_linked = False
        if not is_linked:
            raise Corrupt(f"{self.model}: event {seq} is not the one that was appended; restore "
                          f"{self._key(seq)} in {self.store.address} from a backup")
        try:
            data = decode_data(stored["kind"], stored["data"], stored_format)
        except (ValidationError, LookupError, TypeError) as error:
            raise Corrupt(f"{self.model}: event {seq} is of format {stored_format} and kind "
                          f"{stored['kind']!r}, which this release can't read ({error}); it reads up to "
                          f"format {FORMAT}: upgrade perennial") from error
        return Event(seq=seq, prev=stored["prev"], at=stored["at"], by=stored["by"], digest=digest, data=data)

    def _head(self, seq: int) -> str:
        return self._verified[seq - 1].digest if seq else ""

    def _key(self, seq: int) -> str:
        return layout.event(self.model, seq)

    def state(self, at: str | None = None) -> State:
        """The state after the last event, or after the last one until
        the time `at` (ISO-8601, UTC where it has no zone)."""
        events = self.events()
        if at is not None:
            # Clocks may go backwards: what precedes an event in the chain had happened by its time.
            until = _utc(at)
            happened = (n for n, event in enumerate(events, 1) if datetime.fromisoformat(event.at) <= until)
            events = events[:max(happened, default=0)]
        return reduce(fold, events, State())

    def decide(self, decision: Decision) -> Event | None:
        """Append the event that `decision` returns for the state, if
        it returns one; it is called again when another writer was first."""
        for _ in range(MAX_ATTEMPTS):
            data = decision(self.state())
            if data is None:
                return None
            event = self._link(data)
            try:
                self.store.create(self._key(event.seq), canonical_json(
                    {"format": FORMAT, "digest": event.digest, **_hashed(event, encode_data(data))}))
            except Conflict:
                continue
            return event
        raise Conflict(f"{self.model}: {MAX_ATTEMPTS} other writers came first; try again")

    def _link(self, data: Data) -> Event:
        seq, at = len(self._verified), machine_time().isoformat(timespec="microseconds")
        event = Event(seq=seq, prev=self._head(seq), at=at, by=settings.user(), digest="", data=data)
        return Event(seq=seq, prev=event.prev, at=at, by=event.by, data=data,
                     digest=digest_of(_hashed(event, encode_data(data))))

    def record(self, data: Data, once: tuple[str, ...] = ()) -> Event | None:
        """Append an event; if `once` names fields, then only the first with these values in them."""
        def is_known(recorded: Recorded) -> bool:
            return (type(recorded) is type(data)
                    and all(getattr(recorded, name) == getattr(data, name) for name in once))

        return self.decide(lambda state: None if once and any(map(is_known, state.recorded)) else data)

    def registered(self, data: Registered) -> Event | None:
        return self.decide(lambda state: promotion.registration(state, data))

    def judged(self, version: str, verdict: GateVerdict, against: str | None, data: str = "") -> Event | None:
        """Record a gate's verdict, unless the last one has the same outcome against
        the same champion. `data`: the data version's digest."""
        return self.decide(lambda state: promotion.judgement(state, version, verdict, against, data))

    def promote(self, version: str, *, expect: str | None) -> Event | None:
        """Make a version champion in place of `expect`; raises NotAllowed or Conflict."""
        return self.decide(lambda state: promotion.promotion(state, self.model, version, expect))

    def must_allow(self, version: str) -> None:
        """Raise NotAllowed unless the version is champion or may take the champion's place."""
        promotion.must_be_allowed(self.state(), self.model, version)

    def roll_back(self, reason: str, to: str | None = None) -> Event | None:
        """Make an earlier champion champion again; a second rollback goes further back."""
        return self.decide(lambda state: promotion.rollback(state, self.model, reason, to))

    def alias(self, name: str, version: str) -> Event | None:
        if name in DERIVED_ALIASES:
            raise PerennialError(f"alias {name!r} follows from promotions; choose another name")
        return self._annotate(version, lambda state: None if state.aliases.get(name) == version
                              else Aliased(name=name, version=version))

    def tag(self, version: str, key: str, value: str) -> Event | None:
        return self._annotate(version, lambda state: None if state.tags.get(version, {}).get(key) == value
                              else Tagged(version=version, key=key, value=value))

    def note(self, version: str, text: str) -> Event | None:
        return self._annotate(version, lambda state: Noted(version=version, text=text))

    def _annotate(self, version: str, decision: Decision) -> Event | None:
        if version not in self.state().versions:
            raise PerennialError(f"{self.model}: no version {version!r} is registered; see: perennial "
                                 f"history {self.model}")
        return self.decide(decision)

    def window_judged(self, data: WindowJudged,
                      is_replaceable: Callable[[WindowVerdict], bool]) -> WindowVerdict:
        """Record a window's verdict unless it has one that is not replaceable; returns the one that holds."""
        def decision(state: State) -> WindowJudged | None:
            recorded = state.windows.get(data.key)
            if recorded is None:
                return data
            # The same verdict on other labels is recorded too: else the window would stay due for ever.
            is_same = (recorded.verdict, recorded.labels) == (data.verdict, data.labels)
            return None if is_same or not is_replaceable(recorded.verdict) else data

        self.decide(decision)
        return self.state().windows[data.key].verdict

    def claim_retraining(self, key: str, *, now: datetime, reason: str, drift: Drift, new_rows: int) -> Claim:
        """Ask for a retraining for the window `key`; returns the claim: granted,
        refused, or the earlier one if the window has asked before.

        `now` is event time, so that a replay decides as the year itself would have.
        `new_rows`: the labelled rows that the champion was not trained on.
        """
        def decision(state: State) -> RetrainClaimed | RetrainRefused | None:
            if key in state.claims:
                return None
            refusal = retraining.refusal(state.claims, state.refusals, drift, model=self.model, now=now,
                                         clock=machine_time(), new_rows=new_rows)
            if refusal:
                return RetrainRefused(key=key, now=now, reason=reason, why=refusal.why, rule=refusal.rule)
            return RetrainClaimed(key=key, now=now, reason=reason)

        self.decide(decision)
        return self.state().claims[key]

    def claim_first_training(self, key: str, *, now: datetime, reason: str, drift: Drift) -> Claim | None:
        """Ask for the first training of a model without a champion; None if it may not start."""
        def decision(state: State) -> RetrainClaimed | None:
            is_busy = any(claim.is_granted for claim in state.claims.values())
            if state.champion or is_busy or key in state.claims or state.refusals >= drift.refusals:
                return None
            return RetrainClaimed(key=key, now=now, reason=reason)

        self.decide(decision)
        claim = self.state().claims.get(key)
        return claim if claim and claim.is_granted else None

    def retrain_finished(self, key: str, outcome: str, version: str) -> Event | None:
        def decision(state: State) -> RetrainFinished | None:
            is_finished = key in state.claims and state.claims[key].state is ClaimState.FINISHED
            return None if is_finished else RetrainFinished(key=key, outcome=outcome, version=version)

        return self.decide(decision)

    def start_retraining(self, key: str, run: str, is_alive: Callable[[str], bool]) -> bool:
        """Record that `run` works on a granted retraining; False if it may not: the retraining is unknown or
        finished, or another run of it `is_alive`."""
        def decision(state: State) -> RetrainStarted | None:
            claim = state.claims.get(key)
            is_free = claim and claim.is_granted and (claim.run is None or not is_alive(claim.run))
            return RetrainStarted(key=key, run=run) if is_free else None

        self.decide(decision)
        claim = self.state().claims.get(key)
        return claim is not None and claim.is_granted and claim.run == run

    def retrain_failed(self, key: str, why: str, attempts: int, run: str | None = None) -> Event | None:
        """Record that a run of a granted retraining failed; after so many `attempts` it is finished.
        `run`: only if this is the one that works on it."""
        def decision(state: State) -> RetrainFailed | RetrainFinished | None:
            claim = state.claims.get(key)
            if claim is None or not claim.is_granted or (run and claim.run != run):
                return None
            failures = claim.failures + 1
            if failures < attempts:
                return RetrainFailed(key=key, why=why, failures=failures)
            return RetrainFinished(key=key, outcome=GAVE_UP, why=f"{failures} runs failed, the last: {why}")

        return self.decide(decision)


def _hashed(event: Event, data: JsonObject) -> JsonObject:
    """What an event's digest is taken over."""
    return {"seq": event.seq, "prev": event.prev, "at": event.at, "by": event.by, "kind": kind_of(event.data),
            "data": data}


def _utc(at: str) -> datetime:
    try:
        time = datetime.fromisoformat(at)
    except ValueError:
        raise PerennialError(f"{at!r} is not a time; write it as 2013-07-01T12:00") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
