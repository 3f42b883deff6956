"""The ledger of a model: a chain of events in the store, each with the digest of the one before."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import reduce
from threading import RLock

import msgspec

from contracts.core import retraining
from contracts.core.errors import Conflict, PerennialError
from contracts.core.gate_verdict import GateVerdict
from contracts.core.policies import Drift
from contracts.core.retraining import GAVE_UP, Claim, ClaimState
from contracts.core.verdict import WindowVerdict
from registry import promotion, settings
from registry.clock import machine_time
from registry.event_log.chain import link
from registry.event_log.snapshots import opened
from registry.events import (
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
)
from registry.state import State, after, earlier, fold
from registry.store import Store

log = logging.getLogger(__name__)
MAX_ATTEMPTS = 100  # after which a writer that other writers are always ahead of gives up
DERIVED_ALIASES = ("champion", "previous")

Decision = Callable[[State], Data | None]


class Ledger:
    """The events of one model in a store; every writer may race every other."""

    def __init__(self, store: Store, model: str):
        self.store, self.model = store, model
        self._lock = RLock()
        self._state: State | None = None
        self._indexes: dict[tuple[type[Recorded], tuple[str, ...]], set[bytes]] = {}

    @property
    def length(self) -> int:
        """How many events there are now; raises Corrupt."""
        return self.state().length

    def events(self, first: int = 0, end: int | None = None) -> list[Event]:
        """The events with the numbers [first, end), by default all, their chain verified; raises Corrupt."""
        with self._lock:
            length = self._newest().length
            return self._log.events(first, length if end is None else min(end, length))

    def events_with(self, *texts: str) -> list[Event]:
        """The events that hold one of the texts, as a version or a window's start, in a value; raises
        Corrupt. All are searched and only these are read: cheaper than `events`."""
        with self._lock:
            self._newest()
            return self._log.events_with(texts)

    def state(self, at: str | None = None) -> State:
        """The state after the last event, or after the last one until
        the time `at` (ISO-8601, UTC where it has no zone)."""
        with self._lock:
            return self._newest() if at is None else self._state_at(_utc(at))

    def _state_at(self, time: datetime) -> State:
        # Clocks may go backwards: what precedes an event in the chain had happened by its time.
        newest, length = self._newest(), self._log.last_until(time)
        if length >= self._snapshots.end:
            return earlier(newest, length)
        older = self._snapshots.before(length)
        return reduce(fold, self._log.events(older.end, length), after(older, older.end))

    def _newest(self) -> State:
        """The state after the events that are there now. Those that were known before are not read again."""
        known, self._state = self._state, None  # what fails between the two is read anew
        if known is None:
            self._log, self._snapshots, known = opened(self.store, self.model)
            self._indexes.clear()
        else:
            for event in self._log.new_events():
                known = self._fold(known, event)
        self._state = known
        return known

    def _fold(self, state: State, event: Event) -> State:
        for (kind, names), index in self._indexes.items():
            if type(event.data) is kind:
                index.add(_values(event.data, names))
        return fold(state, event)

    def decide(self, decision: Decision) -> Event | None:
        """Append the event that `decision` returns for the state, if
        it returns one; it is called again when another writer was first."""
        for _ in range(MAX_ATTEMPTS):
            with self._lock:
                state = self._newest()
                data = decision(state)
                if data is None:
                    return None
                content = link(state.length, self._log.digest, machine_time(), settings.user(), data)
                try:
                    event = self._log.append(content)
                except Conflict:
                    continue
                self._state = None
                self._state = self._fold(state, event)
                self._save(self._state)
                return event
        raise Conflict(f"{self.model}: {MAX_ATTEMPTS} other writers came first; try again")

    def _save(self, state: State) -> None:
        """Keep the copies up that others read; the event is appended whether or not that works."""
        try:
            self._snapshots.save(self._log.save(), state)
        except Conflict:  # another writer does it
            return
        except Exception as error:
            log.warning("%s: the copies of the ledger's events were not written, and will be after a later "
                        "event: %s: %s", self.model, type(error).__name__, error)

    def record(self, data: Data, once: tuple[str, ...] = ()) -> Event | None:
        """Append an event; if `once` names fields, then only the first with these values in them."""
        return self.decide(lambda state: None if once and self._is_recorded(state, data, once) else data)

    def _is_recorded(self, state: State, data: Data, names: tuple[str, ...]) -> bool:
        """Whether an event of this kind has the same values. They are indexed when first asked for."""
        index = self._indexes.get((type(data), names))
        if index is None:
            index = self._indexes[type(data), names] = {_values(known, names)
                                                        for known in state.of_kind(type(data))}
        return _values(data, names) in index

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
        return self._annotate(version, lambda state: None if state.tag(version, key) == value
                              else Tagged(version=version, key=key, value=value))

    def note(self, version: str, text: str) -> Event | None:
        return self._annotate(version, lambda state: Noted(version=version, text=text))

    def _annotate(self, version: str, decision: Decision) -> Event | None:
        if version not in self.state().registered:
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


def _values(data: Recorded, names: tuple[str, ...]) -> bytes:
    return msgspec.json.encode([getattr(data, name) for name in names])


def _utc(at: str) -> datetime:
    try:
        time = datetime.fromisoformat(at)
    except ValueError:
        raise PerennialError(f"{at!r} is not a time; write it as 2013-07-01T12:00") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
