"""TODO"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from contracts.core.canary import CanarySide
from contracts.core.errors import NotReady
from deployments import load_balancer, routes

STABLE, CHALLENGER, INSTEAD = "stable", "challenger", "instead"


class CounterKey(NamedTuple):
    """What is counted, for a service or a side: requests by status, answers within so many seconds, or classes."""

    source: str  # a counter of another life of the balancer is another counter
    side: str
    what: str
    label: str


Reading = dict[CounterKey, float]


def read_counters(run: Path, model: str) -> Reading:
    """All counters of a model's two sides as they are now; the first of two is taken once `route` has returned."""
    counts: Reading = defaultdict(float)
    for counter, value in (*_balancer(run, model), *_classes(STABLE, routes.routed(run, model)),
                           *_classes(CHALLENGER, routes.routed_challenger(run, model))):
        counts[counter] += value
    return dict(counts)


def _balancer(run: Path, model: str) -> Iterator[tuple[CounterKey, float]]:
    samples = list(_samples(load_balancer.metrics_address(run)))
    [life] = [str(sample.value) for sample in samples if sample.name == "process_start_time_seconds"]
    sides = {f"{model}@file": STABLE, f"{model}-challenger@file": CHALLENGER, f"{model}-instead@file": INSTEAD}
    for sample in samples:
        side = sides.get(sample.labels.get("service", ""))
        if side and sample.name == "traefik_service_requests_total":
            yield CounterKey(life, side, "requests", sample.labels["code"]), sample.value
        elif side and sample.name == "traefik_service_request_duration_seconds_bucket" and sample.labels["code"] < "400":
            yield CounterKey(life, side, "seconds", sample.labels["le"]), sample.value


def _classes(side: str, urls: Iterable[str]) -> Iterator[tuple[CounterKey, float]]:
    for url in urls:
        try:
            samples = list(_samples(url))
        except (httpx.NetworkError, httpx.RemoteProtocolError, NotReady):
            continue  # it died, or hangs, and its counts with it; what callers met the balancer knows
        for sample in samples:
            if sample.name == "perennial_predictions_total":
                yield CounterKey(url, side, "classes", sample.labels["class_name"]), sample.value


def _samples(address: str) -> Iterator[Sample]:
    try:
        text = httpx.get(f"{address}/metrics", timeout=3, trust_env=False, verify=False).raise_for_status().text
    except (httpx.TimeoutException, httpx.HTTPStatusError) as error:
        raise NotReady(f"{address} does not tell its counters: {error!r}; see the logs of the run folder") from error
    for family in text_string_to_metric_families(text):
        yield from family.samples


def canary_sides(before: Reading, after: Reading, *, deaths: int, grown_mb: float) -> tuple[CanarySide, CanarySide]:
    """Champion and challenger between two readings; the challenger's replicas died and grew as stated."""
    gained: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for counter, value in after.items():
        start = before.get(counter, 0)
        gained[counter.side, counter.what][counter.label] += round(value - start if value >= start else value)
    stable, challenger, instead = (_by_kind(gained[side, "requests"]) for side in (STABLE, CHALLENGER, INSTEAD))
    if any(instead):  # asked what the challenger did not answer, the champion answered, refused or failed
        challenger = (challenger[0], instead[1], instead[0] + instead[2])
    return _side(stable, gained, STABLE, 0, 0.0), _side(challenger, gained, CHALLENGER, deaths, grown_mb)


def _by_kind(requests: dict[str, int]) -> tuple[int, int, int]:
    """How many requests were answered, refused and failed, of those by status code."""
    return (sum(times for code, times in requests.items() if code < "400"),
            sum(times for code, times in requests.items() if "400" <= code < "500"),
            sum(times for code, times in requests.items() if code >= "500"))


def _side(kinds: tuple[int, int, int], gained: dict, side: str, deaths: int, grown_mb: float) -> CanarySide:
    return CanarySide(requests=sum(kinds), refused=kinds[1], failed=kinds[2], deaths=deaths, grown_mb=grown_mb,
                latencies={float(bound): times for bound, times in gained[side, "seconds"].items()},
                classes=dict(gained[side, "classes"]))
