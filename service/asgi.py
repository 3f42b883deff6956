"""The ASGI middleware that answers predictions before BentoML's own layers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from contracts.core.errors import BodyTooLarge, ClientDisconnected, Overloaded
from service.batching import Client
from service.limits import MAX_BODY_BYTES, MAX_PARTIAL_BYTES, TIMEOUT
from service.listener import install_listener
from service.request_metrics import RequestMetrics
from service.schema import SAMPLE_HEADERS

log = logging.getLogger("perennial.service")
Headers = tuple[tuple[bytes, bytes], ...]
Reply = tuple[int, bytes]
Handler = Callable[[bytes, bool, Client | None], Awaitable[Reply]]
JSON = (b"content-type", b"application/json")
LATER: Headers = ((b"retry-after", b"1"),)
CLOSE: Headers = ((b"connection", b"close"),)
[SAMPLE_HEADER] = [(name.encode(), value.encode()) for name, value in SAMPLE_HEADERS.items()]


def error(rule: str) -> bytes:
    """The body of an answer for a request that failed as a whole."""
    return msgspec.json.encode({"errors": [{"record": None, "field": None, "rule": rule, "value": None}]})


TOO_LARGE = error(f"the body is larger than {MAX_BODY_BYTES} bytes; send fewer records at a time")
TOO_SLOW = error(f"the body did not arrive within {TIMEOUT} seconds")
TOO_MANY = error("overloaded: more requests wait than can soon be answered; try again in a second")
FAILED = error("internal error; see the log of the replica")


class PredictionMiddleware:
    """Answers the paths of `routes`, by method and path; all others are BentoML's."""

    def __init__(self, app: Any, routes: Mapping[tuple[str, str], Handler]):
        self._app, self._routes, self._metrics, self._reading = app, routes, RequestMetrics(app), 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        handler = self._routes.get((scope.get("method"), scope["path"])) if scope["type"] == "http" else None
        if handler is None:
            if scope["type"] == "lifespan":
                install_listener(asyncio.get_running_loop())  # before uvicorn starts to listen
            else:
                self._metrics.update()  # the request may be for /metrics
            await self._app(scope, receive, send)
            return
        path, begun = scope["path"], self._metrics.begin(scope["path"])
        try:
            status, answer, more = await self._reply(handler, scope, receive, getattr(send, "__self__", None))
            headers = [JSON, (b"content-length", b"%d" % len(answer)), *more]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
            self._metrics.answered(path, status, begun)
        except ClientDisconnected:
            return None
        finally:
            self._metrics.end(path)

    async def _reply(self, handler: Handler, scope: Any, receive: Any,
                     cycle: Any) -> tuple[int, bytes, Headers]:
        # Uvicorn's cycle knows; other servers don't say whether the caller is there.
        caller = cycle if hasattr(cycle, "disconnected") else None
        if hasattr(cycle, "transport"):
            cycle.transport = SingleWriteTransport(cycle.transport)
        try:
            body = await self._body(receive, cycle)
            if body is None:
                return 408, TOO_SLOW, CLOSE
            status, answer = await handler(body, SAMPLE_HEADER in scope["headers"], caller)
            return status, answer, ()
        except Overloaded:
            return 503, TOO_MANY, LATER
        except BodyTooLarge:
            return 413, TOO_LARGE, ()
        except ClientDisconnected:
            raise
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            return 500, FAILED, ()

    async def _body(self, receive: Any, cycle: Any) -> bytes | None:
        """The body; None if it does not arrive in time."""
        # Nearly always uvicorn has all of it already, and no timer is needed.
        if not getattr(cycle, "more_body", True):
            body: bytes = (await _receive(receive)).get("body", b"")
            return body
        try:
            async with asyncio.timeout(TIMEOUT):
                message = await _receive(receive)
                return (await self._long_body(message, receive) if message.get("more_body")
                        else message.get("body", b""))
        except TimeoutError:
            return None

    async def _long_body(self, message: Any, receive: Any) -> bytes:
        """A body that arrives in parts. One that is too large is read to its end
        and dropped: a caller reads the answer only after sending everything."""
        body, size, counted = bytearray(), 0, 0
        try:
            while True:
                part = message.get("body", b"")
                size += len(part)
                if size <= MAX_BODY_BYTES:
                    body += part
                    counted, self._reading = counted + len(part), self._reading + len(part)
                    if self._reading > MAX_PARTIAL_BYTES:
                        raise Overloaded
                if not message.get("more_body"):
                    break
                message = await _receive(receive)
        finally:
            self._reading -= counted
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge
        return bytes(body)


async def _receive(receive: Any) -> Any:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    return message


class SingleWriteTransport:
    """A transport that holds an answer's head back until its body is there, and writes both at once.

    A replica killed between uvicorn's two writes would leave half an
    answer, after which no load balancer can send the request elsewhere.
    """

    def __init__(self, transport: Any):
        self._transport = transport
        self._head: bytes | None = None

    def write(self, part: bytes) -> None:
        if part.startswith(b"HTTP/1.1 100 "):  # callers wait for it before they send the body
            self._transport.write(part)
        elif self._head is None:
            self._head = part
        else:
            self._transport.write(self._head + part)
            self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
