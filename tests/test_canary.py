"""The judgement on a canary: both sides of every limit, and what chance alone would do."""

import json
from math import inf, nan

import numpy as np
import pytest

from contracts.core.canary import CanarySide, canary_verdict, class_share_distance, percentile
from contracts.core.diff import diff_contracts
from contracts.core.digests import canonical_json
from contracts.core.policies import Rollout
from contracts.core.verdict import as_json
from contracts.flights import contract
from deployments.load_balancer import BUCKETS

SHARES = {"on_time": 0.6, "late": 0.25, "disrupted": 0.15}


def latencies(seconds) -> dict[float, int]:
    return {bound: int(np.sum(np.asarray(seconds) <= bound)) for bound in (*BUCKETS, inf)}


def side(requests=1000, failed=0, refused=0, seconds=0.004, shares=SHARES, deaths=0, grown_mb=0.0,
         slow=(0, 0.0)) -> CanarySide:
    answered = requests - failed - refused
    times = [slow[1]] * slow[0] + [seconds] * (answered - slow[0])
    classes = {name: round(share * answered) for name, share in shares.items()}
    return CanarySide(requests, failed, refused, latencies(times), classes, deaths, grown_mb)


def verdict(stable: CanarySide, challenger: CanarySide, latency_ms: float = 50, **limits):
    return canary_verdict(stable, challenger, Rollout(**limits), latency_ms=latency_ms)


def kind(stable: CanarySide, challenger: CanarySide, latency_ms: float = 50, **limits) -> str:
    return verdict(stable, challenger, latency_ms, **limits).kind


def test_alike_sides_pass():
    fine = verdict(side(900), side(100))
    assert (fine.question, fine.outcome, fine.kind, fine.reasons) == ("canary", "passed", "fine", ())
    assert fine.figures.challenger.requests == 100 and fine.figures.distance < 0.01
    canonical_json(as_json(fine))


@pytest.mark.parametrize("requests, outcome", [(0, "insufficient"), (99, "insufficient"), (100, "passed")])
def test_enough_requests(requests, outcome):
    assert verdict(side(900), side(requests)).outcome == outcome


def test_refused_requests_are_not_answered_ones():
    assert kind(side(900, refused=9), side(100, refused=1)) == "insufficient"


def test_a_side_without_figures_is_not_passed():
    blank = CanarySide(500, 0, 0, {}, {}, 0, 0.0)
    for one, other, found in ((blank, side(500), "insufficient"), (side(500), blank, "unseen")):
        judged = verdict(one, other)
        assert judged.kind == found and len(judged.reasons) == 2
        canonical_json(as_json(judged))
    assert verdict(side(500), blank).outcome == "failed"  # it answered, and what it answered is not counted
    assert kind(side(0), side(100)) == "insufficient"


@pytest.mark.parametrize("requests, failed, refused, usual, errors, found", [
    (200, 0, 0, 0, 0.0, False), (200, 1, 0, 0, 0.0, True),  # where the champion fails none, one is enough
    (200, 2, 0, 0, 0.01, False), (200, 3, 0, 0, 0.01, True),
    (200, 4, 0, 18, 0.0, False), (200, 12, 0, 18, 0.0, True),  # 2 % of the champion's: 6 % is beyond chance
    (5, 1, 0, 0, 0.0, True), (1, 1, 0, 0, 1.0, False),
])
def test_failures(requests, failed, refused, usual, errors, found):
    judged = verdict(side(900, failed=usual), side(requests, failed, refused), errors=errors)
    assert (judged.kind == "errors") == found


@pytest.mark.parametrize("refused, usual, found",
                         [(1, 0, False), (3, 0, True), (4, 27, False), (12, 27, True), (100, 27, True)])
def test_refusals(refused, usual, found):
    """A caller's mistakes fall on both sides alike, but for chance."""
    assert (kind(side(900, refused=usual), side(150, refused=refused)) == "errors") == found


def test_slow_is_more_than_a_multiple_and_more_than_the_allowance():
    champion = side(900, seconds=0.03)
    assert kind(champion, side(200, seconds=0.085)) == "fine"
    assert kind(champion, side(200, seconds=0.11)) == "slow"
    assert kind(side(900, seconds=0.0015), side(200, seconds=0.045)) == "fine"
    assert kind(side(900, seconds=0.0015), side(200, seconds=0.06), latency_ms=50) == "slow"
    assert kind(side(900, seconds=0.0015), side(200, seconds=30.0)) == "slow"


@pytest.mark.parametrize("slow, found", [(0, False), (2, False), (4, False), (5, True)])
def test_a_few_slow_answers_are_chance(slow, found):
    assert (kind(side(900), side(100, slow=(slow, 0.4))) == "slow") == found


def test_percentiles():
    assert percentile({}) is None and percentile({0.1: 0, inf: 0}) is None
    assert percentile({0.1: 100, inf: 100}) == pytest.approx(0.099)
    assert percentile({0.1: 50, 0.2: 100, inf: 100}, 0.75) == pytest.approx(0.15)
    assert percentile({0.1: 50, 0.2: 50, 0.4: 100, inf: 100}, 0.5) == pytest.approx(0.1)
    assert percentile({0.1: 98, inf: 100}) == 0.1


@pytest.mark.parametrize("shares, found",
                         [(SHARES, False), ({"on_time": 0.45, "late": 0.35, "disrupted": 0.2}, False),
                          ({"on_time": 0.25, "late": 0.6, "disrupted": 0.15}, True), ({"on_time": 1.0}, True),
                          ({"disrupted": 1.0}, True), ({"else": 1.0}, True)])
def test_different_answers(shares, found):
    assert (kind(side(900), side(100, shares=shares)) == "different answers") == found


@pytest.mark.parametrize("off, found", [(0.19, False), (0.22, True)])
def test_the_limit_of_the_distance_once_chance_is_small(off, found):
    shares = {"on_time": 0.6 - off, "late": 0.25 + off, "disrupted": 0.15}
    many = side(20_000, shares=shares)
    assert class_share_distance(side(20_000), many) == pytest.approx(off, abs=0.001)
    assert (kind(side(20_000), many) == "different answers") == found


@pytest.mark.parametrize("requests, shift, most",
                         [(100, 0.2, 0), (100, 0.05, 25), (100, 0.0, 25), (20, 0.2, 10)])
def test_good_challengers_pass(requests, shift, most):
    """1,000 that name classes just as the champion does; a small shift allowed, 1 in 100 goes by chance."""
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(1000):
        stable, mine = (dict(zip(SHARES, random.multinomial(count, list(SHARES.values())).tolist()))
                        for count in (900, requests))
        one, other = side(900), side(requests)
        judged = verdict(CanarySide(**{**vars(one), "classes": stable}),
                         CanarySide(**{**vars(other), "classes": mine}), shift=shift)
        refused += judged.kind == "different answers"
    assert refused <= most


def test_many_records_of_few_requests_prove_little():
    """Records of one request are alike: 30 requests of 100 records are no 3,000 answers."""
    shares = {"on_time": 0.32, "late": 0.53, "disrupted": 0.15}
    few = CanarySide(**{**vars(side(30)),
                        "classes": {name: round(3000 * share) for name, share in shares.items()}})
    assert kind(side(900), few) == "insufficient"
    assert kind(side(900), side(3000, shares=shares)) == "different answers"


@pytest.mark.parametrize("grown, found",
                         [(100.0, False), (100.1, True), (nan, True), (inf, True), (-5.0, False)])
def test_memory(grown, found):
    judged = verdict(side(900), side(100, grown_mb=grown))
    assert (judged.kind == "memory") == found
    canonical_json(as_json(judged))


def test_deaths():
    assert verdict(side(900), side(100, deaths=1)).reasons == ("1 of its replicas died",)
    assert kind(side(900, deaths=1), side(100)) == "fine"


def test_all_reasons_are_told_and_the_gravest_names_the_kind():
    worst = verdict(side(900), side(90, 20, 15, seconds=1.0, shares={"late": 1.0}, deaths=2, grown_mb=300))
    assert (worst.outcome, worst.kind, len(worst.reasons)) == ("failed", "died", 7)
    assert verdict(side(900), side(5, 5)).kind == "errors"


def test_figures_that_are_no_numbers_never_pass():
    for field in ("requests", "failed", "refused", "deaths", "grown_mb"):
        assert not verdict(side(900), CanarySide(**{**vars(side(100)), field: nan})).passed, field


def test_the_contract_tells_its_rollout():
    told = contract.describe()
    assert told["rollout"]["share"] == 0.1
    changed = json.loads(json.dumps(told))
    changed["rollout"]["errors"] = 0.5
    [change] = diff_contracts(told, changed)
    assert (change.path, change.old, change.new, change.breaks) == ("rollout.errors", 0.0, 0.5, None)


def test_what_the_gate_saw_of_a_world_that_moved_is_no_fault():
    usual, moved = side(900), side(100, shares={"on_time": 0.2, "late": 0.4, "disrupted": 0.4})
    assert canary_verdict(usual, moved, Rollout(), latency_ms=50).kind == "different answers"
    assert canary_verdict(usual, moved, Rollout(), latency_ms=50, class_distance=0.35).passed
