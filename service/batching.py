"""Score the requests that wait at the same time in one batch."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Protocol

from contracts.core.errors import ClientDisconnected, Overloaded
from service.limits import MAX_BATCH, MAX_WAITING, MAX_WAITING_BYTES

QUIET = 1.0  # seconds within which a request that has begun is read and queued


class Client(Protocol):
    """The caller of a request, as uvicorn knows it."""

    disconnected: bool


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request that waits: its records, the answers so far, and the future of all of them."""

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
    """The queue of one worker; `score` gives an answer for each record of a list."""

    def __init__(self, score: Callable[[list[Any]], list[Any]]):
        self._score = score
        self._waiting: deque[QueuedRequest] = deque()
        self._bytes = 0

    def admit(self, size: int) -> None:
        """Raise Overloaded if the queue has no room for a body of `size` bytes; an empty one always has."""
        if self._waiting and (len(self._waiting) >= MAX_WAITING or self._bytes + size > MAX_WAITING_BYTES):
            raise Overloaded

    def wait_until_empty(self, seconds: float) -> None:
        """Wait, in another thread than the loop's, until no request waits, at most so many seconds.

        It waits a little in any case: a request that has begun may not be in the queue yet.
        """
        deadline = monotonic() + seconds
        sleep(min(QUIET, seconds))
        while self._waiting and monotonic() < deadline:
            sleep(0.05)

    def answers(self, records: list[Any], size: int,
                caller: Client | None = None) -> asyncio.Future[list[Any]]:
        """The records' answers, once scored; raises ClientDisconnected if the caller hangs up first."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # Not at once: in the next turn of the event loop the server notices who has hung up.
            loop.call_soon(loop.call_soon, self._score_batch)
        request = QueuedRequest(records, size, caller, loop.create_future())
        self._waiting.append(request)
        self._bytes += size
        return request.done

    def _score_batch(self) -> None:
        parts = self._next_batch()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._score_batch)
        if parts:
            self._answer(parts)

    def _next_batch(self) -> list[Part]:
        """The next batch: whole requests, and the first records
        of one that is too large for the rest of the batch."""
        parts, room = [], MAX_BATCH
        while self._waiting and room:
            request = self._waiting[0]
            if request.caller is not None and request.caller.disconnected:
                request.fail(ClientDisconnected())
            if request.done.done():  # also where a part of it could not be scored
                self._pop()
                continue
            answered = len(request.answers)
            fits = not answered and len(request.records) <= room
            part = request.records if fits else request.records[answered:answered + room]
            room -= len(part)
            parts.append((request, part))
            if answered + len(part) < len(request.records):
                break
            self._pop()
        return parts

    def _pop(self) -> None:
        self._bytes -= self._waiting.popleft().size

    def _answer(self, parts: list[Part]) -> None:
        try:
            answers = self._score([record for _, part in parts for record in part])
        except Exception as error:
            if len(parts) == 1:
                parts[0][0].fail(error)
            else:
                for part in parts:  # one by one, so that only the request at fault fails
                    self._answer([part])
            return
        start = 0
        for request, records in parts:
            request.answers += answers[start:start + len(records)]
            start += len(records)
            if len(request.answers) == len(request.records) and not request.done.done():
                request.done.set_result(request.answers)
