"""Which window verdicts ask for a retraining, which for a person, and which are judged again later."""

from collections.abc import Sequence

from contracts.core.policies import Drift
from contracts.core.verdict import Verdict

PAGED = ("broken contract", "training/serving skew", "stale")  # a person must look: training on it would teach the fault
RETRAINABLE = ("worse on labels", "input drift", "prediction drift")  # the other kinds teach nothing good


def wants_retraining(verdict: Verdict, policy: Drift) -> bool:
    """The world has moved in a way that the contract answers with a retraining."""
    return verdict.kind in RETRAINABLE and verdict.kind in policy.retrain_on


def persists(verdicts: Sequence[Verdict], policy: Drift) -> bool:
    """Whether drift was told of enough of the last windows, oldest first, and of the newest."""
    enough, of = policy.persist
    told = [wants_retraining(verdict, policy) for verdict in verdicts[-of:]]
    return sum(told) >= enough and told[-1]


def needs_person(verdict: Verdict) -> bool:
    """A person must look."""
    return verdict.kind in PAGED


def is_provisional(verdict: Verdict, policy: Drift) -> bool:
    """Whether the window is to be judged again: when there is more traffic, or when more of its labels are in."""
    covered = (verdict.figures.get("scores") or {}).get("coverage")
    return verdict.outcome == "insufficient" or verdict.kind == "stale" or (covered is not None and covered < policy.coverage)
