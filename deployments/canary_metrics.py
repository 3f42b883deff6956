"""What champion and challenger answer during a canary, by the load balancer's and the replicas' counters."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from contracts.core.canary import CanarySide
from contracts.core.errors import Unavailable
from deployments import load_balancer, routes
from deployments.routes import Service

REQUESTS = "traefik_service_requests_total"
LATENCIES = "traefik_service_request_duration_seconds_bucket"
PREDICTIONS = "perennial_predictions_total"


class CounterKey(NamedTuple):
    """A metric of a service and a label; `source` identifies the process, since a restart counts from 0."""

    source: str
    service: Service
    metric: str
    label: str


Counters = Mapping[CounterKey, float]
Increases = Mapping[tuple[Service, str], Counter[str]]  # of a service's metric, by label


class Outcomes(NamedTuple):
    """Requests by how they ended."""

    answered: int
    refused: int  # 4xx
    failed: int  # 5xx


def read_counters(run: Path, model: str) -> Counters:
    """The counters of a model's champion and challenger; take the first reading after `routes.route`."""
    counters: dict[CounterKey, float] = defaultdict(float)
    for key, value in (*_balancer_counters(run, model),
                       *_replica_counters(Service.CHAMPION, routes.champion_urls(run, model)),
                       *_replica_counters(Service.CHALLENGER, routes.challenger_urls(run, model))):
        counters[key] += value
    return dict(counters)


def _balancer_counters(run: Path, model: str) -> Iterator[tuple[CounterKey, float]]:
    samples = list(_samples(load_balancer.metrics_address(run)))
    [start_time] = [str(sample.value) for sample in samples if sample.name == "process_start_time_seconds"]
    services = {f"{service.of(model)}@file": service
                for service in (Service.CHAMPION, Service.CHALLENGER, Service.FALLBACK)}
    for sample in samples:
        service = services.get(sample.labels.get("service", ""))
        if service is not None and sample.name == REQUESTS:
            yield CounterKey(start_time, service, REQUESTS, sample.labels["code"]), sample.value
        elif service is not None and sample.name == LATENCIES and sample.labels["code"] < "400":
            yield CounterKey(start_time, service, LATENCIES, sample.labels["le"]), sample.value


def _replica_counters(service: Service, urls: Iterable[str]) -> Iterator[tuple[CounterKey, float]]:
    for url in urls:
        try:
            samples = list(_samples(url))
        except (httpx.NetworkError, httpx.RemoteProtocolError, Unavailable):
            continue  # a dead replica's classes are lost; the load balancer counts the failed requests
        for sample in samples:
            if sample.name == PREDICTIONS:
                yield CounterKey(url, service, PREDICTIONS, sample.labels["class_name"]), sample.value


def _samples(address: str) -> Iterator[Sample]:
    try:
        reply = httpx.get(f"{address}/metrics", timeout=3, trust_env=False, verify=False).raise_for_status()
    except (httpx.TimeoutException, httpx.HTTPStatusError) as error:
        raise Unavailable(f"{address} does not answer with its metrics: {error!r}; "
                       "see the logs of the run folder") from error
    for family in text_string_to_metric_families(reply.text):
        yield from family.samples


def canary_sides(before: Counters, after: Counters, *, deaths: int,
                 grown_mb: float) -> tuple[CanarySide, CanarySide]:
    """Champion and challenger between two readings; `deaths` and `grown_mb` are the challenger's."""
    increases: defaultdict[tuple[Service, str], Counter[str]] = defaultdict(Counter)
    for key, value in after.items():
        start = before.get(key, 0)
        increases[key.service, key.metric][key.label] += round(value - start if value >= start else value)
    champion, challenger, fallback = (
        _outcomes(increases[service, REQUESTS])
        for service in (Service.CHAMPION, Service.CHALLENGER, Service.FALLBACK))
    if any(fallback):  # a refusal that the champion repeats is the caller's fault, all else the challenger's
        challenger = Outcomes(challenger.answered, fallback.refused, fallback.answered + fallback.failed)
    return (_canary_side(Service.CHAMPION, champion, increases, 0, 0.0),
            _canary_side(Service.CHALLENGER, challenger, increases, deaths, grown_mb))


def _outcomes(requests: Mapping[str, int]) -> Outcomes:
    """The requests by status code, summed by outcome."""
    return Outcomes(sum(count for code, count in requests.items() if code < "400"),
                    sum(count for code, count in requests.items() if "400" <= code < "500"),
                    sum(count for code, count in requests.items() if code >= "500"))


def _canary_side(service: Service, outcomes: Outcomes, increases: Increases, deaths: int,
                 grown_mb: float) -> CanarySide:
    latencies = {float(bound): count for bound, count in increases[service, LATENCIES].items()}
    return CanarySide(requests=sum(outcomes), refused=outcomes.refused, failed=outcomes.failed, deaths=deaths,
                      grown_mb=grown_mb, classes=dict(increases[service, PREDICTIONS]), latencies=latencies)
