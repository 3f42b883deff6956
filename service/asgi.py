"""The ASGI middleware that answers predictions before BentoML's own layers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from contracts.core.errors import BodyTooLarge, ClientDisconnected, Overloaded
from service.batching import Client
from service.limits import LARGEST_BODY, MOST_READING, TIMEOUT
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
    """An answer that tells of a fault of the request as a whole."""
    return msgspec.json.encode({"errors": [{"record": None, "field": None, "rule": rule, "value": None}]})


TOO_LARGE = error(f"the body is larger than {LARGEST_BODY} bytes; send fewer records at a time")
TOO_SLOW = error(f"the body did not come within {TIMEOUT} seconds")
TOO_MANY = error("overloaded: more requests wait than can soon be answered; try again in a second")
FAILED = error("internal error; see the log of the replica")


class PredictionMiddleware:
    """Answers the paths of `routes`, by method and path; all others are BentoML's."""

    def __init__(self, app: Any, routes: Mapping[tuple[str, str], Handler]):
        self._app, self._routes, self._traffic, self._reading = app, routes, RequestMetrics(app), 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        handler = self._routes.get((scope.get("method"), scope["path"])) if scope["type"] == "http" else None
        if handler is None:
            if scope["type"] == "lifespan":
                install_listener(asyncio.get_running_loop())  # uvicorn starts to listen after this
            else:
                self._traffic.tell()  # it may be the metrics that are asked for
            await self._app(scope, receive, send)
            return
        path, begun = scope["path"], self._traffic.begin(scope["path"])
        try:
            status, answer, more = await self._reply(handler, scope, receive, getattr(send, "__self__", None))
            headers = [JSON, (b"content-length", b"%d" % len(answer)), *more]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
            self._traffic.answered(path, status, begun)
        except ClientDisconnected:
            return None
        finally:
            self._traffic.end(path)

    async def _reply(self, handler: Handler, scope: Any, receive: Any,
                     cycle: Any) -> tuple[int, bytes, Headers]:
        # Uvicorn's; of another server's callers nothing is known.
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
        """The body; None where it does not come in time."""
        # Uvicorn has all of it already, as nearly always: no timer is armed.
        if not getattr(cycle, "more_body", True):
            body: bytes = (await _heard(receive)).get("body", b"")
            return body
        try:
            async with asyncio.timeout(TIMEOUT):
                message = await _heard(receive)
                return (await self._long_body(message, receive) if message.get("more_body")
                        else message.get("body", b""))
        except TimeoutError:
            return None

    async def _long_body(self, message: Any, receive: Any) -> bytes:
        """A body that comes in parts; of one that is too large the rest
        is heard and dropped, for the caller to hear the answer."""
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
            raise BodyTooLarge
        return bytes(body)


async def _heard(receive: Any) -> Any:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    return message


class SingleWriteTransport:
    """A transport that holds the head of an answer until its body comes, and writes both at once.

    A replica that is killed between uvicorn's two writes would
    leave half an answer, which no load balancer can repeat.
    """

    def __init__(self, transport: Any):
        self._transport = transport
        self._head: bytes | None = None

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
