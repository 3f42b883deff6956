"""Score the requests that wait at the same time in one batch."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from contracts.core.errors import ClientDisconnected, Overloaded
from service.limits import MOST_BYTES, MOST_TOGETHER, MOST_WAITING


class Client(Protocol):
    """Who waits for an answer, as uvicorn tells of them."""

    disconnected: bool


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request: its records, those of the answers that are known, and who waits for all of them."""

    records: list[Any]
    size: int
    caller: Client | None
    done: asyncio.Future[list[Any]]
    answers: list[Any] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


Part = tuple[QueuedRequest, list[Any]]


class Batcher:
    """The queue of one worker. `score` gives an answer for each record of a list."""

    def __init__(self, score: Callable[[list[Any]], list[Any]]):
        self._score = score
        self._waiting: deque[QueuedRequest] = deque()
        self._bytes = 0

    def admit(self, size: int) -> None:
        """Raises Overloaded where a body of `size` bytes finds no room; an empty queue has room for any."""
        if self._waiting and (len(self._waiting) >= MOST_WAITING or self._bytes + size > MOST_BYTES):
            raise Overloaded

    def answers(self, records: list[Any], size: int,
                caller: Client | None = None) -> asyncio.Future[list[Any]]:
        """The records' answers, once they are scored; raises Gone for a caller who hung up meanwhile."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # A turn later it is known who sent a request and hung up.
            loop.call_soon(loop.call_soon, self._turn)
        one = QueuedRequest(records, size, caller, loop.create_future())
        self._waiting.append(one)
        self._bytes += size
        return one.done

    def _turn(self) -> None:
        parts = self._next()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        if parts:
            self._answer(parts)

    def _next(self) -> list[Part]:
        """What is scored now: whole requests, and the first records
        of one that is too large for the rest of the turn."""
        parts, room = [], MOST_TOGETHER
        while self._waiting and room:
            one = self._waiting[0]
            if one.caller is not None and one.caller.disconnected:
                one.fail(ClientDisconnected())
            if one.done.done():  # or one of its parts could not be scored
                self._leave()
                continue
            known = len(one.answers)
            part = one.records[known:known + room] if known or len(one.records) > room else one.records
            room -= len(part)
            parts.append((one, part))
            if known + len(part) < len(one.records):
                break
            self._leave()
        return parts

    def _leave(self) -> None:
        self._bytes -= self._waiting.popleft().size

    def _answer(self, parts: list[Part]) -> None:
        try:
            answers = self._score([record for _, part in parts for record in part])
        except Exception as error:
            if len(parts) == 1:
                parts[0][0].fail(error)
            else:
                for part in parts:  # only the request at fault shall fail
                    self._answer([part])
            return
        start = 0
        for request, records in parts:
            request.answers += answers[start:start + len(records)]
            start += len(records)
            if len(request.answers) == len(request.records) and not request.done.done():
                request.done.set_result(request.answers)
