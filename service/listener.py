"""The HTTP listener of a replica: how connections are accepted and requests parsed."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

AT_ONCE = 256  # callers let in before those inside are heard again
PAUSE = 1.0  # second in which nobody is let in after nobody could be

log = logging.getLogger("perennial.service")
Protocols = Callable[[], asyncio.Protocol]


def install_listener(loop: asyncio.AbstractEventLoop) -> None:
    """Let servers that are created from a socket from now on
    have a Door, where the loop lets in too few itself."""
    narrow = loop.create_server
    if isinstance(loop, asyncio.SelectorEventLoop):
        return

    async def create_server(protocols: Protocols, *args: Any, sock: socket.socket | None = None,
                            ssl: Any = None, **named: Any) -> Any:
        if sock is None or ssl:
            return await narrow(protocols, *args, sock=sock, ssl=ssl, **named)
        return Listener(loop, protocols, sock, named.get("backlog", 100))

    loop.create_server = create_server  # type: ignore[method-assign,assignment]  # a uvicorn that BentoML starts takes no other loop and no other server


class Listener:
    """What asyncio calls a server, of one socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocols: Protocols, sock: socket.socket,
                 backlog: int):
        self._loop, self._protocols, self._sock = loop, protocols, sock
        self._entering: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        sock.listen(backlog)
        self._open()

    def _open(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._knock)

    @property
    def sockets(self) -> list[socket.socket]:
        return [self._sock] if self._sock.fileno() >= 0 else []

    def _knock(self) -> None:
        for _ in range(AT_ONCE):
            try:
                caller, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # of file descriptors there are no more: others must leave first
                log.exception("new connections wait for %s second", PAUSE)
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(PAUSE, self._open)
                return
            caller.setblocking(False)
            if caller.family in (socket.AF_INET, socket.AF_INET6):
                caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            entering = self._loop.create_task(self._enter(caller))
            self._entering.add(entering)
            entering.add_done_callback(self._entering.discard)

    async def _enter(self, caller: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocols, caller)
        except OSError:  # who hung up at once
            caller.close()
        except Exception:
            log.exception("a caller could not be let in")
            caller.close()

    def close(self) -> None:
        """Let in nobody else; those inside are served."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    async def wait_closed(self) -> None:
        """All who were entering are in."""
        await asyncio.gather(*self._entering)
