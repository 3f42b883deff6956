"""May a challenger that serves a share of the requests take over? Errors, latency, classes, memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from scipy.stats import binom, hypergeom

from contracts.core.policies import Rollout
from contracts.core.verdict import CanaryFigures, CanaryKind, CanaryVerdict, SideFigures, gravest

CHANCE = 0.01  # significance level: a difference with a larger p-value counts as chance
DRAWS = 2_000  # simulated pairs of class counts, with a fixed seed


@dataclass(frozen=True)
class CanarySide:
    """What one side did while both served.

    `requests`: all it was sent. It `refused` some for their caller's mistake (4xx) and `failed` others: 5xx,
    no answer, or a refusal of what the champion answered. `latencies`: seconds → answers within them,
    cumulative, up to infinity. `classes`: records by named class. `deaths`: replicas that ended by
    themselves. `grown_mb`: the most that one replica's memory grew.
    """

    requests: int
    failed: int
    refused: int
    latencies: Mapping[float, int]
    classes: Mapping[str, int]
    deaths: int
    grown_mb: float

    @property
    def answered(self) -> int:
        return self.requests - self.failed - self.refused

    @property
    def records(self) -> int:
        return sum(self.classes.values())


def canary_verdict(
    stable: CanarySide, challenger: CanarySide, policy: Rollout, *, latency_ms: float,
    class_distance: float = 0.0,
) -> CanaryVerdict:
    """The verdict on a challenger; its kind is the gravest finding, its reasons are all of them.

    `class_distance`: the total variation distance of the two models' class shares that the gate saw on
    the newest labelled window. A challenger that learnt from a world that moved must differ by that much.
    """
    answered_enough = challenger.answered >= policy.requests
    too_few = ([] if answered_enough else [f"answered {challenger.answered} requests, {policy.requests} are "
                                           f"needed", *_missing_figures("challenger", challenger)])
    reasons: list[tuple[CanaryKind, list[str]]] = [  # the gravest first
        (CanaryKind.DIED, [f"{challenger.deaths} of its replicas died"] if challenger.deaths else []),
        (CanaryKind.ERRORS, [reason for what in ("failed", "refused")
                             for reason in _more_failures(what, stable, challenger, policy)]),
        (CanaryKind.DIFFERENT_ANSWERS, _different_answers(stable, challenger, policy.shift + class_distance)),
        (CanaryKind.SLOW, _slow(stable, challenger, policy, latency_ms)),
        (CanaryKind.MEMORY, _memory_growth(challenger, policy)),
        (CanaryKind.UNSEEN, _missing_figures("challenger", challenger) if answered_enough else []),
        (CanaryKind.INSUFFICIENT, [*_missing_figures("champion", stable), *too_few]),
    ]
    kind, outcome = gravest(reasons, CanaryKind.FINE)
    figures = CanaryFigures(stable=_figures(stable), challenger=_figures(challenger),
                            distance=class_share_distance(stable, challenger))
    return CanaryVerdict(outcome=outcome, kind=kind,
                         reasons=tuple(reason for _, found in reasons for reason in found), figures=figures)


def _more_failures(what: str, stable: CanarySide, challenger: CanarySide, policy: Rollout) -> list[str]:
    """Fisher's exact test, one-sided, on what exceeds `policy.errors`; where the champion has no failed
    request, one of the challenger's is too many."""
    bad, baseline = getattr(challenger, what), getattr(stable, what)
    excess = np.ceil(bad - policy.errors * challenger.requests - 1e-9)
    chance = hypergeom.sf(excess - 1, stable.requests + challenger.requests, baseline + excess,
                          challenger.requests)
    if excess <= 0 or (chance >= CHANCE and (baseline or what == "refused")):
        return []
    return [f"{what} {bad} of {challenger.requests} requests, the champion {baseline} of {stable.requests}; "
            f"limit: {policy.errors:.2%} more, beyond chance"]


def _different_answers(stable: CanarySide, challenger: CanarySide, shift: float) -> list[str]:
    distance = class_share_distance(stable, challenger)
    if distance is None:
        return []  # insufficient
    chance = _simulated_distances(stable, challenger)
    if distance <= max(shift + chance.mean(), np.quantile(chance, 1 - CHANCE)):
        return []
    return [f"of {dict(challenger.classes)} classes, the champion {dict(stable.classes)}; total variation "
            f"distance {distance:.2f}, limit {shift:.3g} and {chance.mean():.2f} by chance"]


def class_share_distance(stable: CanarySide, challenger: CanarySide) -> float | None:
    """Total variation distance of the class shares, 0 to 1; None where a side has answered nothing."""
    if not (stable.records and challenger.records):
        return None
    first, second = _counts(stable, challenger)
    return float(np.abs(first / stable.records - second / challenger.records).sum() / 2)


def _simulated_distances(stable: CanarySide, challenger: CanarySide) -> np.ndarray:
    """Distances simulated for two sides with equal class shares, (DRAWS,); the records
    of one request are alike, so a side's sample is no larger than its requests."""
    shares = _counts(stable, challenger).sum(axis=0) / (stable.records + challenger.records)
    sizes = [max(min(side.records, side.answered), 1) for side in (stable, challenger)]
    generator = np.random.default_rng(0)
    first, second = (generator.multinomial(size, shares, DRAWS) / size for size in sizes)
    return np.asarray(np.abs(first - second).sum(axis=1) / 2)


def _counts(*sides: CanarySide) -> np.ndarray:
    names = sorted({name for side in sides for name in side.classes})
    return np.array([[side.classes.get(name, 0) for name in names] for side in sides])


def _slow(stable: CanarySide, challenger: CanarySide, policy: Rollout, latency_ms: float) -> list[str]:
    """An exact test of "1 % take longer than the limit";
    answers in the limit's own bucket count as within it."""
    baseline, total = percentile(stable.latencies), challenger.latencies.get(inf, 0)
    if baseline is None or not total:
        return []  # insufficient
    limit = max(policy.slower * baseline, latency_ms / 1000)
    slow = total - challenger.latencies[min(bound for bound in challenger.latencies if bound >= limit)]
    if slow == 0 or binom.sf(slow - 1, total, 0.01) >= CHANCE:
        return []
    return [f"{slow} of {total} answers took longer than {limit * 1000:.0f} ms, the larger of "
            f"{policy.slower:g} times the champion's 99th percentile of {baseline * 1000:.1f} ms and "
            f"{latency_ms:g} ms; limit: 1 %, beyond chance"]


def percentile(latencies: Mapping[float, int], share: float = 0.99) -> float | None:
    """Seconds, linear within a bucket as in Prometheus; the last
    finite bound where it is above that; None: no answers."""
    bounds, rank = sorted(latencies), share * latencies.get(inf, 0)
    if rank == 0:
        return None
    index = next(index for index, bound in enumerate(bounds) if latencies[bound] >= rank)
    low, below = (bounds[index - 1], latencies[bounds[index - 1]]) if index else (0.0, 0)
    return (low if bounds[index] == inf
            else low + (bounds[index] - low) * (rank - below) / (latencies[bounds[index]] - below))


def _memory_growth(challenger: CanarySide, policy: Rollout) -> list[str]:
    if challenger.grown_mb <= policy.memory_mb:
        return []  # a growth that is not a number gets no pass here
    return [f"memory of a replica grew by {challenger.grown_mb:.0f} MB, limit {policy.memory_mb:g}"]


def _missing_figures(name: str, side: CanarySide) -> list[str]:
    """Which figures a side lacks; where it has answered enough requests, its own counting is broken."""
    counts = {"classes": side.records, "latency": side.latencies.get(inf)}
    return [f"nothing is known of the {name}'s {what}" for what, count in counts.items() if not count]


def _figures(side: CanarySide) -> SideFigures:
    return SideFigures(
        requests=side.requests, answered=side.answered, failed=side.failed, refused=side.refused,
        deaths=side.deaths,
        grown_mb=side.grown_mb if isfinite(side.grown_mb) else None,  # JSON has no NaN
        p99_seconds=percentile(side.latencies), classes=dict(side.classes))
