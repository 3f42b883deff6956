"""When a retraining is wanted, and when it may start: pure
functions of what the ledger holds and the contract's policy."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from msgspec import Struct

from contracts.core.policies import Drift, TrainingLimits
from contracts.core.verdict import Action, Outcome, WindowKind, WindowVerdict

# Training on these would teach the fault.
PAGING = (WindowKind.BROKEN_CONTRACT, WindowKind.SKEW, WindowKind.STALE)
RETRAINABLE = (WindowKind.DECAYED, WindowKind.WORSE_ON_LABELS, WindowKind.INPUT_DRIFT,
               WindowKind.PREDICTION_DRIFT)
ABANDONED = timedelta(hours=6)  # after which an unfinished retraining no longer holds up the next one
GAVE_UP = "gave up"  # the outcome of a granted retraining whose runs all failed


class ClaimState(StrEnum):
    """`CLAIMED`: granted and not finished yet."""

    CLAIMED = "claimed"
    REFUSED = "refused"
    FINISHED = "finished"


class RefusalRule(StrEnum):
    """The rule that keeps a retraining from starting."""

    CIRCUIT_BREAKER = "circuit breaker"
    NEW_ROWS = "new rows"
    IN_FLIGHT = "in flight"
    COOLDOWN = "cooldown"
    WEEKLY_BUDGET = "weekly budget"


class Claim(Struct, frozen=True, kw_only=True):
    """A retraining that was asked for, by the start of the window that is its cause.

    `now`: event time at which it was asked for, None where only its end is known. `at`: machine time (UTC)
    of the last event about it. `run`: the Prefect run that works on it. `failures`: runs of it that failed.
    `outcome`, `version`: what became of it.
    """

    key: str
    state: ClaimState
    now: datetime | None = None
    reason: str = ""
    at: datetime | None = None
    rule: RefusalRule | None = None
    why: str = ""
    failures: int = 0
    run: str | None = None
    outcome: str | None = None
    version: str | None = None

    @property
    def is_granted(self) -> bool:
        """Whether the retraining may run: it was granted and is not finished."""
        return self.state is ClaimState.CLAIMED

    @property
    def is_waiting(self) -> bool:
        """Whether it was granted and no run works on it."""
        return self.is_granted and self.run is None

    def is_overdue(self, clock: datetime, limits: TrainingLimits) -> bool:
        """Whether no run has begun in the time that the contract allows; `clock`: machine time (UTC)."""
        return self.is_waiting and self.at is not None and clock - self.at > limits.start_within


class ClaimFault(StrEnum):
    """What may go wrong with a granted retraining, so that a person is paged."""

    NOT_STARTED = "training not started"
    GAVE_UP = "training failed"


class Refusal(Struct, frozen=True):
    """Why no retraining may start now: the rule, and a sentence for people."""

    rule: RefusalRule
    why: str


def wants_retraining(verdict: WindowVerdict, policy: Drift) -> bool:
    """Whether the contract answers what was found with a retraining."""
    return verdict.kind in RETRAINABLE and verdict.kind in policy.retrain_on


def persists(verdicts: Sequence[WindowVerdict], policy: Drift) -> bool:
    """Whether enough of the last windows, oldest first, and the newest among them want a retraining."""
    enough, of = policy.persist
    wanted = [wants_retraining(verdict, policy) for verdict in verdicts[-of:]]
    return sum(wanted) >= enough and wanted[-1]


def needs_person(verdict: WindowVerdict) -> bool:
    """Whether a person is paged: the data is at fault, and no training mends that."""
    return verdict.kind in PAGING


def is_provisional(verdict: WindowVerdict, policy: Drift) -> bool:
    """Whether the window is judged again once there is more traffic, or more of its labels are in."""
    performance = verdict.figures.performance
    coverage = performance.coverage if performance else None
    return (
        verdict.outcome is Outcome.INSUFFICIENT
        or verdict.kind is WindowKind.STALE
        or (coverage is not None and coverage < policy.coverage)
    )


def refusal(claims: Mapping[str, Claim], refusals: int, policy: Drift, *, model: str, now: datetime,
            clock: datetime, new_rows: int) -> Refusal | None:
    """Why no retraining may start at event time `now`; None if it may.

    `refusals`: challengers in a row that gate or canary refused. `clock`: machine
    time (UTC). `new_rows`: labelled rows that the champion was not trained on.
    """
    if refusals >= policy.refusals:
        return Refusal(RefusalRule.CIRCUIT_BREAKER,
                       f"the circuit breaker is open: {refusals} challengers in a row were refused; look at "
                       f"their verdicts: perennial history {model}; a promotion closes it: perennial train "
                       f"{model}")
    if new_rows < policy.new_rows:
        return Refusal(
            RefusalRule.NEW_ROWS,
            f"{new_rows} labelled rows are new since the champion was trained, {policy.new_rows} are needed")
    granted = [claim for claim in claims.values() if claim.state is not ClaimState.REFUSED]
    for claim in granted:
        if claim.state is ClaimState.CLAIMED and claim.at and clock - claim.at < ABANDONED:
            return Refusal(RefusalRule.IN_FLIGHT, f"the retraining of {claim.key} is in flight")
    times = [claim.now for claim in granted if claim.now]
    if times and now < max(times) + policy.cooldown:
        return Refusal(RefusalRule.COOLDOWN, f"cooldown until {max(times) + policy.cooldown}")
    if sum(now - timedelta(days=7) < time <= now for time in times) >= policy.weekly_budget:
        return Refusal(RefusalRule.WEEKLY_BUDGET, f"the weekly budget of {policy.weekly_budget} is spent")
    return None


def action(verdict: WindowVerdict, claim: Claim | None, policy: Drift) -> Action:
    """What follows from a judged window; `claim`: the retraining that it asked for, if it did."""
    if needs_person(verdict):
        return Action.PAGE
    if not wants_retraining(verdict, policy):
        outcomes = {Outcome.PASSED: Action.FINE, Outcome.FAILED: Action.NOTED}
        return outcomes.get(verdict.outcome, Action.INSUFFICIENT)
    if claim is None:
        return Action.WATCH
    if claim.state is not ClaimState.REFUSED:
        return Action.RETRAIN
    return Action.PAGE if claim.rule is RefusalRule.CIRCUIT_BREAKER else Action.WAIT
