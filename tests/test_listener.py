"""The listener: all who wait are let in within a few turns of the event loop, and nobody after it closed."""

import asyncio
import errno
import socket

import pytest
import uvloop

from service import listener
from service.listener import install_listener

CALLERS, TURNS = 100, 10


class Guest(asyncio.Protocol):
    """Says who it is to all who come in."""

    inside = 0

    def connection_made(self, transport):
        Guest.inside += 1
        transport.write(b"hello")

    def data_received(self, data):
        raise AssertionError(f"nobody says anything, got {data!r}")


@pytest.fixture
def sock():
    Guest.inside = 0
    with socket.create_server(("127.0.0.1", 0), backlog=CALLERS) as listening:
        yield listening


def let_in(sock, wide: bool) -> tuple[int, bytes]:
    """Those of many callers who are inside after a few turns, and what the first one heard."""
    async def turns():
        loop = asyncio.get_running_loop()
        if wide:
            install_listener(loop)
        callers = [socket.create_connection(sock.getsockname(), timeout=5) for _ in range(CALLERS)]
        server = await loop.create_server(Guest, sock=sock, backlog=CALLERS)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        inside = Guest.inside
        heard = await loop.run_in_executor(None, callers[0].recv, 10)
        server.close()
        for caller in callers:
            caller.close()
        await asyncio.sleep(0.1)
        await server.wait_closed()
        return inside, heard

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(turns())


def test_all_come_in_within_a_few_turns(sock):
    assert let_in(sock, wide=True) == (CALLERS, b"hello")


def test_the_loop_by_itself_lets_in_one_a_turn(sock):
    """If this fails, service/listener.py is needed no more."""
    assert let_in(sock, wide=False)[0] <= TURNS


def test_after_closing_nobody_comes_in_and_those_inside_stay():
    async def calls():
        loop = asyncio.get_running_loop()
        install_listener(loop)
        listening = socket.create_server(("127.0.0.1", 0))
        server = await loop.create_server(Guest, sock=listening)
        [opened] = server.sockets
        address = opened.getsockname()
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.readexactly(5) == b"hello"
        server.close()
        server.close()
        await server.wait_closed()
        assert server.sockets == []
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)  # still open
        writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(calls())


def test_a_loop_that_lets_in_many_is_left_as_it_is():
    async def kept():
        loop = asyncio.get_running_loop()
        before = loop.create_server
        install_listener(loop)
        return loop.create_server == before

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(kept())


class Full(socket.socket):
    """A socket that can let nobody in at first."""

    tried = 0

    def accept(self):
        self.tried += 1
        if self.tried == 1:
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


def test_who_finds_no_room_waits_and_comes_in_later(monkeypatch, caplog):
    monkeypatch.setattr(listener, "PAUSE", 0.2)

    async def calls():
        loop = asyncio.get_running_loop()
        install_listener(loop)
        full = Full(fileno=socket.create_server(("127.0.0.1", 0)).detach())
        server = await loop.create_server(Guest, sock=full)
        reader, writer = await asyncio.open_connection(*full.getsockname())
        begun = loop.time()
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello" and loop.time() - begun > 0.1
        writer.close()
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(calls())
    assert caplog.text.count("new connections wait") == 1
