"""What meets callers before BentoML's own layers, which cost more than the work: bodies in, answers out, counted in its metrics."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
from bentoml._internal.context import server_context
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware

from service.door import widen
from service.request import SAMPLE
from service.together import Caller, Gone, Overloaded

LARGEST_BODY = 32 * 2**20  # bytes; 10,000 records of a wide contract stay well below
MOST_READING = 64 * 2**20  # bytes of the bodies that have come in part
TIMEOUT = 5  # seconds in which a body must come
TICK = 0.1  # seconds; how exactly the metrics tell when the last request came

log = logging.getLogger("perennial.service")
Headers = tuple[tuple[bytes, bytes], ...]
Reply = tuple[int, bytes]
Handler = Callable[[bytes, bool, Caller | None], Awaitable[Reply]]
JSON = (b"content-type", b"application/json")
LATER: Headers = ((b"retry-after", b"1"),)
CLOSE: Headers = ((b"connection", b"close"),)
[SAMPLE_HEADER] = [(name.encode(), value.encode()) for name, value in SAMPLE.items()]


def error(rule: str) -> bytes:
    """An answer that tells of a fault of the request as a whole."""
    return msgspec.json.encode({"errors": [{"record": None, "field": None, "rule": rule, "value": None}]})


TOO_LARGE = error(f"the body is larger than {LARGEST_BODY} bytes; send fewer records at a time")
TOO_SLOW = error(f"the body did not come within {TIMEOUT} seconds")
TOO_MANY = error("overloaded: more requests wait than can soon be answered; try again in a second")
FAILED = error("internal error; see the log of the replica")


class TooLarge(Exception):
    """The body is larger than LARGEST_BODY."""


class Front:
    """Answers the paths of `routes`, by method and path; all others are BentoML's."""

    def __init__(self, app: Any, routes: Mapping[tuple[str, str], Handler]):
        self._app, self._routes, self._traffic, self._reading = app, routes, Traffic(app), 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        handler = self._routes.get((scope.get("method"), scope["path"])) if scope["type"] == "http" else None
        if handler is None:
            if scope["type"] == "lifespan":
                widen(asyncio.get_running_loop())  # uvicorn starts to listen after this
            else:
                self._traffic.tell()  # it may be the metrics that are asked for
            return await self._app(scope, receive, send)
        path, begun = scope["path"], self._traffic.begin(scope["path"])
        try:
            status, answer, more = await self._reply(handler, scope, receive, getattr(send, "__self__", None))
            headers = [JSON, (b"content-length", b"%d" % len(answer)), *more]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
            self._traffic.answered(path, status, begun)
        except Gone:
            return None
        finally:
            self._traffic.end(path)

    async def _reply(self, handler: Handler, scope: Any, receive: Any, cycle: Any) -> tuple[int, bytes, Headers]:
        caller = cycle if hasattr(cycle, "disconnected") else None  # uvicorn's; of another server's callers nothing is known
        if hasattr(cycle, "transport"):
            cycle.transport = AtOnce(cycle.transport)
        try:
            body = await self._body(receive, cycle)
            if body is None:
                return 408, TOO_SLOW, CLOSE
            status, answer = await handler(body, SAMPLE_HEADER in scope["headers"], caller)
            return status, answer, ()
        except Overloaded:
            return 503, TOO_MANY, LATER
        except TooLarge:
            return 413, TOO_LARGE, ()
        except Gone:
            raise
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            return 500, FAILED, ()

    async def _body(self, receive: Any, cycle: Any) -> bytes | None:
        """The body; None where it does not come in time."""
        if not getattr(cycle, "more_body", True):  # uvicorn has all of it already, as nearly always: no timer is armed
            return (await _heard(receive)).get("body", b"")
        try:
            async with asyncio.timeout(TIMEOUT):
                message = await _heard(receive)
                return await self._long_body(message, receive) if message.get("more_body") else message.get("body", b"")
        except TimeoutError:
            return None

    async def _long_body(self, message: Any, receive: Any) -> bytes:
        """A body that comes in parts; of one that is too large the rest is heard and dropped, for the caller to hear the answer."""
        body, size, held = bytearray(), 0, 0
        try:
            while True:
                part = message.get("body", b"")
                size += len(part)
                if size <= LARGEST_BODY:
                    body += part
                    held, self._reading = held + len(part), self._reading + len(part)
                    if self._reading > MOST_READING:
                        raise Overloaded
                if not message.get("more_body"):
                    break
                message = await _heard(receive)
        finally:
            self._reading -= held
        if size > LARGEST_BODY:
            raise TooLarge
        return bytes(body)


async def _heard(receive: Any) -> Any:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    return message


class AtOnce:
    """A transport that holds the head of an answer until its body comes, and writes both at once.

    A replica that is killed between uvicorn's two writes would leave half an answer, which no load balancer can repeat.
    """

    def __init__(self, transport: Any):
        self._transport, self._head = transport, None

    def write(self, part: bytes) -> None:
        if part.startswith(b"HTTP/1.1 100 "):  # the caller waits for it before it sends its body
            self._transport.write(part)
        elif self._head is None:
            self._head = part
        else:
            self._transport.write(self._head + part)
            self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Traffic:
    """BentoML's own request metrics, counted for requests that never reach the middleware which owns them.

    Each of them is a file in memory and costs as much as parsing a request, so `tell` adds up many requests: at every TICK,
    and before anybody reads the metrics.
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
                self._in_progress[path] = self._owner.metrics_request_in_progress.labels(endpoint=path, **self._names)
            self._in_progress[path].inc(more)
        for (path, status), seconds in self._took.items():
            if (path, status) not in self._ended:
                labels = self._names | {"endpoint": path, "http_response_code": status}
                owner = self._owner
                self._ended[path, status] = owner.metrics_request_total.labels(**labels), owner.metrics_request_duration.labels(**labels)
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
        owner = layer or RunnerTrafficMetricsMiddleware(self._app)  # metrics are turned off: counted, shown nowhere
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
    for bucket, times in zip(histogram._buckets, np.bincount(places, minlength=len(histogram._buckets)).tolist()):
        if times:
            bucket.inc(times)
