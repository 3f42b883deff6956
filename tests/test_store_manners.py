"""What else lies in a store is no event, and what a connection drops is not written twice."""

import socket
from collections.abc import Iterator
from datetime import datetime
from threading import Thread

import boto3
import pytest

from contracts.core.errors import Corrupt
from flows.monitoring.windows import windows_of_traffic
from registry import models
from registry.context import open_model
from registry.events import Noted
from registry.ledger import Ledger
from registry.store import open_store
from registry.traffic import window_counts
from tests.test_registry import moto, s3  # noqa: F401  fixtures

FOREIGN = ("ledger/pumps/", "ledger/pumps/README.txt", "profiles/pumps/", "profiles/pumps/.keep",
           "profiles/pumps/v1/notes.txt", "profiles/pumps/v1/2024-02-12T0000/",
           "predictions/pumps/odd/odd/odd.parquet")


class DroppingProxy:
    """Passes requests on to a server; of the first write to a ledger no answer comes back."""

    def __init__(self, port: int):
        self.target, self.dropped = port, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            client.settimeout(0.3)
            request = b""
            while not request.endswith(b"\r\n\r\n") or b"PUT" in request[:3]:
                try:
                    part = client.recv(65_536)
                except TimeoutError:
                    break
                if not part:
                    return
                request += part
                if b"100-continue" in request and not request.endswith(b"}"):
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            server.sendall(request.replace(b"Expect: 100-continue\r\n", b"").replace(
                b"Connection: keep-alive", b"Connection: close"))
            server.settimeout(5)
            answer = b""
            while part := server.recv(65_536):
                answer += part
            if b"PUT" in request[:3] and b"/ledger/" in request[:200] and not self.dropped:
                self.dropped += 1
                return
            client.sendall(answer)

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def proxy(moto, s3, monkeypatch) -> Iterator[DroppingProxy]:  # noqa: F811
    passing = DroppingProxy(int(moto.rsplit(":", 1)[1]))
    yield passing
    passing.close()


def test_a_write_whose_answer_was_lost_is_known_as_ones_own(proxy, s3, monkeypatch):  # noqa: F811
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    ledger = Ledger(open_store(s3), "pumps")
    assert ledger.record(Noted(version="v1", text="once")).seq == 0
    assert proxy.dropped == 1
    assert [event.data.text for event in Ledger(open_store(s3), "pumps").events()] == ["once"]


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_foreign_objects_are_passed_over(where, tmp_path, monkeypatch, request):
    address = str(tmp_path / "store") if where == "folder" else request.getfixturevalue("s3")
    monkeypatch.setenv("PERENNIAL_STORE", address)
    monkeypatch.setenv("PERENNIAL_RUN", str(tmp_path / "run"))
    context = open_model("pumps")
    context.ledger.record(Noted(version="v1", text="an event"))
    put_foreign(address)
    assert len(Ledger(context.store, "pumps").events()) == 1
    assert windows_of_traffic(context) == set()
    assert window_counts(context, "v1", datetime(2024, 2, 12)).rows == 0


def put_foreign(address: str) -> None:
    if not address.startswith("s3://"):
        store = open_store(address)
        for key in FOREIGN:
            if not key.endswith("/"):
                store.create(key, b"")
        return
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    for key in FOREIGN:
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"")


@pytest.mark.parametrize("name", ["../../x.py", "/tmp/x.py", ".."])
def test_a_name_in_the_store_is_no_path(name, tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(Corrupt, match="leads out of the folder"):
        store.create(f"{name}" if name.startswith("/") else f"models/{name}", b"print()")
    monkeypatch.setattr(models, "manifest", lambda *_: {"files": {name: "0"}})
    with pytest.raises(Corrupt, match=r"which is a path|leads out"):
        models.fetch(store, "m", "v", tmp_path / "models")


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_folders_are_told_by_their_names(where, tmp_path, request):
    store = open_store(str(tmp_path / "store") if where == "folder" else request.getfixturevalue("s3"))
    assert store.folders("traffic/") == []
    for key in ("a/1.bin", "a/deeper/2.bin", "b/deeper/3.bin", "c/4.bin", "5.bin"):
        store.create(f"traffic/{key}", b"x")
    store.create("traffic-else/d/6.bin", b"x")
    assert store.folders("traffic/") == ["a", "b", "c"]
    assert store.folders("traffic/", "traffic/b/") == ["b", "c"]
    assert store.folders("traffic/", "traffic/bb/") == ["c"]
    assert store.folders("traffic/", "traffic/d/") == store.folders("traffic/5.bin/") == []


def test_a_folder_without_a_file_is_none(tmp_path):
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "store" / "traffic" / "a").mkdir(parents=True)
    (tmp_path / "store" / "traffic" / "a" / ".tmp-1").write_bytes(b"of a write that was killed")
    assert store.folders("traffic/") == []
