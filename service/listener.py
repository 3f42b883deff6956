"""The HTTP listener of a replica: how connections are accepted and requests parsed."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

MAX_ACCEPTS = 256  # connections accepted in a row before open ones are served again
PAUSE = 1.0  # seconds without accepting after the process had no file descriptor left

log = logging.getLogger("perennial.service")
ProtocolFactory = Callable[[], asyncio.Protocol]


def install_listener(loop: asyncio.AbstractEventLoop) -> None:
    """Make `loop.create_server` return a Listener for a socket.

    uvloop accepts one connection in a turn of its loop, too few when many callers come at once.
    """
    create_default = loop.create_server
    if isinstance(loop, asyncio.SelectorEventLoop):
        return

    async def create_server(protocols: ProtocolFactory, *args: Any, sock: socket.socket | None = None,
                            ssl: Any = None, **named: Any) -> Any:
        if sock is None or ssl:
            return await create_default(protocols, *args, sock=sock, ssl=ssl, **named)
        return Listener(loop, protocols, sock, named.get("backlog", 100))

    loop.create_server = create_server  # type: ignore[method-assign,assignment]  # a uvicorn that BentoML starts takes no other loop and no other server


class Listener:
    """An asyncio server of one listening socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocols: ProtocolFactory, sock: socket.socket,
                 backlog: int):
        self._loop, self._protocols, self._sock = loop, protocols, sock
        self._connecting: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        sock.listen(backlog)
        self._open()

    def _open(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    @property
    def sockets(self) -> list[socket.socket]:
        return [self._sock] if self._sock.fileno() >= 0 else []

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no file descriptor is left until a connection closes
                log.exception("new connections wait for %s second", PAUSE)
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(PAUSE, self._open)
                return
            connection.setblocking(False)
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocols, connection)
        except OSError:  # the caller hung up at once
            connection.close()
        except Exception:
            log.exception("a connection could not be accepted")
            connection.close()

    def close(self) -> None:
        """Accept no more; open connections are served."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    async def wait_closed(self) -> None:
        """Wait until every accepted connection is set up."""
        await asyncio.gather(*self._connecting)
