"""The Prometheus metrics of requests, in BentoML's names."""

from collections import Counter
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from bentoml._internal.context import server_context
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware

if TYPE_CHECKING:
    from prometheus_client import Gauge  # BentoML imports it itself, once its own settings are made

UPDATE_INTERVAL = 0.1  # seconds; also the precision of the last request's time


class RequestMetrics:
    """BentoML's own request metrics, counted for requests that never reach BentoML's middleware.

    Writing one costs as much as parsing a request, so `update` writes those of many requests
    together: every UPDATE_INTERVAL, and before the metrics are read.
    """

    def __init__(self, app: Any):
        self._app, self._updated = app, 0.0
        self._started: Counter[str] = Counter()  # started less ended, since the last `update`
        self._durations: dict[tuple[str, int], list[float]] = {}
        self._in_progress: dict[str, Gauge] = {}
        self._counters: dict[tuple[str, int], tuple[Any, Any]] = {}

    def begin(self, path: str) -> float:
        """Count a request in; returns the time by perf_counter."""
        self._started[path] += 1
        return perf_counter()

    def answered(self, path: str, status: int, begun: float) -> None:
        """Count the answer to a request that began at `begun`."""
        ended = perf_counter()
        self._durations.setdefault((path, status), []).append(ended - begun)
        if ended >= self._updated + UPDATE_INTERVAL:
            self._updated = ended
            self.update()
            self._owner.metrics_last_request_timestamp.labels(**self._names).set_to_current_time()

    def end(self, path: str) -> None:
        """Count a request out, answered or not."""
        self._started[path] -= 1

    def update(self) -> None:
        """Write what was counted to BentoML's metrics."""
        for path, more in self._started.items():
            if path not in self._in_progress:
                self._in_progress[path] = self._owner.metrics_request_in_progress.labels(endpoint=path,
                                                                                         **self._names)
            self._in_progress[path].inc(more)
        for (path, status), seconds in self._durations.items():
            if (path, status) not in self._counters:
                labels = self._names | {"endpoint": path, "http_response_code": status}
                owner = self._owner
                self._counters[path, status] = owner.metrics_request_total.labels(
                    **labels), owner.metrics_request_duration.labels(**labels)
            total, duration = self._counters[path, status]
            total.inc(len(seconds))
            observe(duration, seconds)
        self._started.clear()
        self._durations.clear()

    @cached_property
    def _owner(self) -> RunnerTrafficMetricsMiddleware:
        layer = self._app.middleware_stack
        while layer is not None and not isinstance(layer, RunnerTrafficMetricsMiddleware):
            layer = getattr(layer, "app", None)
        # Where metrics are turned off there is no such layer: count, and show nothing.
        owner = layer or RunnerTrafficMetricsMiddleware(self._app)
        if not owner._is_setup:
            owner._setup()
        return owner

    @cached_property
    def _names(self) -> dict[str, str | None]:
        return {"service_name": server_context.bento_name, "service_version": server_context.bento_version,
                "runner_name": server_context.service_name}


def observe(histogram: Any, values: list[float]) -> None:
    """Add many values to a histogram at once, as `histogram.observe` of each would."""
    histogram._sum.inc(sum(values))
    places = np.searchsorted(histogram._upper_bounds, values)  # a bucket holds values up to its bound
    for bucket, times in zip(histogram._buckets,
                             np.bincount(places, minlength=len(histogram._buckets)).tolist()):
        if times:
            bucket.inc(times)
