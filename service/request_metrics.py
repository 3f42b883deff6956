"""The Prometheus metrics of requests, in BentoML's names."""

from collections import Counter
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
from bentoml._internal.context import server_context
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware

TICK = 0.1  # seconds; how exactly the metrics tell when the last request came


class RequestMetrics:
    """BentoML's own request metrics, counted for requests that never reach the middleware which owns them.

    Each of them is a file in memory and costs as much as parsing a request, so `tell`
    adds up many requests: at every TICK, and before anybody reads the metrics.
    """

    def __init__(self, app: Any):
        self._app, self._told = app, 0.0
        self._begun: Counter[str] = Counter()  # since the last `tell`, less those that ended
        self._took: dict[tuple[str, int], list[float]] = {}
        self._in_progress: dict[str, Any] = {}
        self._ended: dict[tuple[str, int], tuple[Any, Any]] = {}

    def begin(self, path: str) -> float:
        """Note a request; gives the time by perf_counter."""
        self._begun[path] += 1
        return perf_counter()

    def answered(self, path: str, status: int, begun: float) -> None:
        """Note the answer to a request that `begin` noted at `begun`."""
        ended = perf_counter()
        self._took.setdefault((path, status), []).append(ended - begun)
        if ended >= self._told + TICK:
            self._told = ended
            self.tell()
            self._owner.metrics_last_request_timestamp.labels(**self._names).set_to_current_time()

    def end(self, path: str) -> None:
        """Note that a request is over, answered or not."""
        self._begun[path] -= 1

    def tell(self) -> None:
        """Bring the metrics up to date."""
        for path, more in self._begun.items():
            if path not in self._in_progress:
                self._in_progress[path] = self._owner.metrics_request_in_progress.labels(endpoint=path,
                                                                                         **self._names)
            self._in_progress[path].inc(more)
        for (path, status), seconds in self._took.items():
            if (path, status) not in self._ended:
                labels = self._names | {"endpoint": path, "http_response_code": status}
                owner = self._owner
                self._ended[path, status] = owner.metrics_request_total.labels(
                    **labels), owner.metrics_request_duration.labels(**labels)
            total, duration = self._ended[path, status]
            total.inc(len(seconds))
            observe(duration, seconds)
        self._begun.clear()
        self._took.clear()

    @cached_property
    def _owner(self) -> RunnerTrafficMetricsMiddleware:
        layer = self._app.middleware_stack
        while layer is not None and not isinstance(layer, RunnerTrafficMetricsMiddleware):
            layer = getattr(layer, "app", None)
        # Metrics are turned off: counted, shown nowhere.
        owner = layer or RunnerTrafficMetricsMiddleware(self._app)
        if not owner._is_setup:
            owner._setup()
        return owner

    @cached_property
    def _names(self) -> dict[str, Any]:
        return {"service_name": server_context.bento_name, "service_version": server_context.bento_version,
                "runner_name": server_context.service_name}


def observe(histogram: Any, values: list[float]) -> None:
    """What `histogram.observe` of each value does, in one go."""
    histogram._sum.inc(sum(values))
    places = np.searchsorted(histogram._upper_bounds, values)  # a bucket holds values up to its bound
    for bucket, times in zip(histogram._buckets,
                             np.bincount(places, minlength=len(histogram._buckets)).tolist()):
        if times:
            bucket.inc(times)
