"""Replicas and the load balancer as real processes: no request is lost, and no process is left running."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from contracts.core.errors import ReleaseFailed, Unavailable
from deployments import fleet, load_balancer, processes, replicas, routes
from deployments.processes import http_get
from deployments.replicas import Replica

SERVICE = """
import asyncio, os
import bentoml

@bentoml.service(workers=1, traffic={"timeout": 5})
class Tiny:
    @bentoml.api
    async def predict(self, seconds: float = 0.0) -> dict:
        await asyncio.sleep(seconds)
        return {"setting": os.environ.get("SETTING"), "threads": os.environ.get("OMP_NUM_THREADS")}
"""

FAKE_REPLICA = '''
import asyncio, os, sys, uvicorn
in_flight = 0

class OneWrite:
    """Writes head and body at once, as the service does: Traefik can't retry after half an answer."""
    def __init__(self, transport):
        self.transport, self.head = transport, b""
    def write(self, part):
        self.head += part
        if not self.head.endswith(b"\\r\\n\\r\\n"):
            self.transport.write(self.head)
            self.head = b""
    def __getattr__(self, name):
        return getattr(self.transport, name)

async def app(scope, receive, send):
    global in_flight
    send.__self__.transport = OneWrite(send.__self__.transport)
    body = b"ok"
    if scope["path"].endswith("/predict"):
        in_flight += 1
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(0.005)
        body = sys.argv[1].encode()
        in_flight -= 1
    elif scope["path"] == "/metrics":
        body = b'bentoml_service_request_in_progress{endpoint="/predict"} %d.0' % in_flight
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", lifespan="off")
'''


@pytest.fixture
def run(tmp_path):
    """A run folder; when the test ends, so do its processes."""
    yield tmp_path / "run"
    fleet.stop_all(tmp_path / "run")
    assert started_pids(tmp_path / "run") == []


def started_pids(run: Path) -> list[int]:
    """The living processes that were started for a run folder."""
    return [process.pid for process in psutil.process_iter(["environ", "status"])
            if process.info["status"] != psutil.STATUS_ZOMBIE
            and (process.info["environ"] or {}).get(processes.MARK, "").startswith(str(run))]


@pytest.fixture(scope="module")
def bento(tmp_path_factory) -> Path:
    home, code = tmp_path_factory.mktemp("bentoml"), tmp_path_factory.mktemp("code")
    (code / "tiny.py").write_text(SERVICE)
    (code / "bentofile.yaml").write_text("service: tiny:Tiny\nname: tiny\npython: {lock_packages: false}\n")
    environ = os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    subprocess.run([sys.executable, "-m", "bentoml", "build", "--version", "one", str(code)], cwd=code,
                   env=environ, check=True, capture_output=True)
    return home / "bentos" / "tiny" / "one"


def replace_bentoml(monkeypatch, code: str) -> None:
    """Make replicas run this Python code instead, with the port as its argument."""
    monkeypatch.setattr(replicas, "_serve_command", lambda _, port: [sys.executable, "-c", code, str(port)])


@pytest.fixture
def fake_replicas(monkeypatch):
    replace_bentoml(monkeypatch, FAKE_REPLICA)


def start_replicas(run: Path, version: str, model: str = "m", count: int = 2) -> list[Replica]:
    started = replicas.start(Path("bento"), version, count, run, model)
    fleet.wait_ready(started, 20)
    return started


def urls(replicas: list[Replica]) -> list[str]:
    return [replica.url for replica in replicas]


class Load:
    """POST to the load balancer from 8 threads until the block ends; `results` counts statuses and errors."""

    def __init__(self, balancer: load_balancer.LoadBalancer):
        self.address = balancer.url.removeprefix("http://")
        self.results, self.ended = Counter(), threading.Event()
        self.threads = [threading.Thread(target=self.send) for _ in range(8)]

    def send(self) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        while not self.ended.is_set() and self.results.total() < 20_000:
            try:
                connection.request("POST", "/m/predict", b"x" * 3000)
                reply = connection.getresponse()
                reply.read()
                self.results[reply.status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.results[repr(error)] += 1
                connection.close()
        connection.close()

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def is_lossless(self, at_least: int) -> bool:
        print(self.results)
        return set(self.results) == {200} and self.results.total() >= at_least


def test_replicas_of_a_bento_serve_drain_and_stop(run, bento):
    started = replicas.start(bento, "v" * 40, 2, run, "tiny", {"SETTING": "yes"})
    assert replicas.running(run, "tiny") == started
    assert [Path(replica.log).name for replica in started] == [
        f"tiny-{'v' * 12}-{replica.url[-5:]}.log" for replica in started]
    fleet.wait_ready(started)
    first, second = started
    assert httpx.post(f"{first.url}/predict", json={}).json() == {"setting": "yes", "threads": "1"}

    with ThreadPoolExecutor() as pool:
        slow = pool.submit(httpx.post, f"{first.url}/predict", json={"seconds": 4})
        assert processes.wait_until(lambda: not fleet.is_idle(first), 5) and fleet.is_idle(second)
        assert fleet.drain(started, 2.5) == [first]
        assert fleet.drain(started, 10) == []
        assert slow.result(timeout=0.5).status_code == 200

    replicas.stop([first], run, "tiny")
    assert replicas.running(run, "tiny") == [second] and not first.is_alive and second.is_alive
    assert fleet.is_idle(first) and fleet.drain([first], 5) == []
    replicas.stop(started, run, "tiny")
    replicas.stop(started, run, "tiny")
    assert replicas.running(run, "tiny") == [] and started_pids(run) == []
    assert {path.suffix for path in (run / "logs").iterdir()} == {".log"}


def test_workers_outlive_a_killed_server_but_not_stop(run, bento):
    [replica] = replicas.start(bento, "v" * 40, 1, run, "tiny")
    fleet.wait_ready([replica])
    os.kill(replica.pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not replica.is_alive, 5)
    assert http_get(f"{replica.url}/readyz").status_code == 200 and started_pids(run)
    replicas.stop(replicas.running(run, "tiny"), run, "tiny")
    assert started_pids(run) == []


def test_a_replica_that_dies_at_start_shows_its_log(run):
    started = replicas.start(run / "no-bento", "v" * 40, 1, run, "tiny")
    with pytest.raises(Unavailable, match=r"(?s)tiny-v{12}-\d+ died at start; the end of .*no-bento"):
        fleet.wait_ready(started)
    assert replicas.running(run, "tiny") == []


def test_a_replica_that_never_answers_is_not_ready_and_ignores_sigterm_in_vain(run, monkeypatch):
    replace_bentoml(monkeypatch, "import signal, time\nsignal.signal(15, signal.SIG_IGN)\n"
                                 "print('started', flush=True)\nwhile True: time.sleep(1)")
    started = replicas.start(Path("bento"), "1", 1, run, "m")
    with pytest.raises(Unavailable, match=r"(?s)does not answer http.*started"):
        fleet.wait_ready(started, 1)
    replicas.stop(started, run, "m", seconds=0.5)
    assert started_pids(run) == []


@pytest.mark.parametrize("moment", ["recorded", "spawned, not recorded"])
def test_stop_finds_what_a_killed_process_started(run, moment):
    code = f"""
        import os, sys
        from pathlib import Path
        from deployments import processes, replicas
        replicas._serve_command = lambda bento, port: [sys.executable, "-c", "import time; time.sleep(60)"]
        spawn = processes.spawn
        def spawn_and_die(*arguments):
            spawn(*arguments)
            os.kill(os.getpid(), 9)
        if {moment != "recorded"}:
            processes.spawn = spawn_and_die
        replicas.start(Path("bento"), "1", 1, Path({str(run)!r}), "m")
        os.kill(os.getpid(), 9)
    """
    starter = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parent.parent)
    assert starter.returncode == -signal.SIGKILL and len(started_pids(run)) == 1
    left = replicas.running(run, "m")
    assert len(left) == (moment == "recorded")
    replicas.stop(left, run, "m")
    assert started_pids(run) == []


def test_a_later_process_of_the_same_pid_is_left_alone(run):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    log = str(run / "logs" / "m-1.log")
    stale = Replica(version="1", url="http://127.0.0.1:9", pid=bystander.pid, create_time=1.0, log=log)
    assert not stale.is_alive
    replicas.stop([stale], run, "m")
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_the_records_of_earlier_versions_are_read(run):
    run.mkdir()
    process = {"pid": os.getpid(), "born": psutil.Process().create_time(), "log": "replica.log"}
    (run
     / "m.replicas.json").write_text(json.dumps([process | {"version": "1", "url": "http://127.0.0.1:9"}]))
    (run / "balancer.json").write_text(json.dumps(process | {"url": "http://127.0.0.1:8", "api": "http://x"}))
    [replica] = replicas.running(run, "m")
    assert (replica.version, replica.url, replica.log) == ("1", "http://127.0.0.1:9", "replica.log")
    assert load_balancer.recorded(run).is_alive


def test_processes_started_by_a_background_shell_still_receive_ctrl_c(run):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = "import signal; print(signal.getsignal(signal.SIGINT))"
        process = processes.spawn([sys.executable, "-c", code], run / "logs" / "child.log", {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert processes.wait_until(lambda: not process.is_alive, 10)
    assert "default_int_handler" in Path(process.log).read_text()


def test_replicas_started_in_parallel_are_all_recorded(run, fake_replicas):
    with ThreadPoolExecutor(4) as pool:
        started = [pool.submit(replicas.start, Path("bento"), "1", 1, run, "m") for _ in range(4)]
    pids = {replica.pid for start in started for replica in start.result()}
    assert pids == {replica.pid for replica in replicas.running(run, "m")}
    assert len(replicas.running(run, "m")) == 4


def test_the_balancer_takes_the_given_port_or_a_free_one(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert processes.available_port(port) != port
        other_port = load_balancer.start(run, port)
        assert other_port.url != f"http://127.0.0.1:{port}"
    assert load_balancer.start(run, port) == other_port
    load_balancer.stop(run)
    load_balancer.stop(run)
    assert not other_port.is_alive
    assert load_balancer.start(run, port).url == f"http://127.0.0.1:{port}"


def test_a_killed_balancer_restarts_with_its_routes(run, fake_replicas):
    serving = start_replicas(run, "1", count=1)
    first = load_balancer.start(run, None)
    routes.route(run, "m", urls(serving), "1")
    os.kill(first.pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not first.is_alive, 5)
    load_balancer.wait_until_stopped(run)
    second = load_balancer.start(run, None)
    assert second.pid != first.pid
    assert processes.wait_until(lambda: http_get(f"{second.url}/m/predict").status_code == 200, 5)


def test_a_route_is_in_effect_once_it_is_set(run, fake_replicas):
    balancer = load_balancer.start(run, None)
    assert routes.champion_urls(run, "m") == []
    started = start_replicas(run, "1")
    longest = 0.0
    for turn in range(12):
        chosen = started[turn % 2]
        began = time.monotonic()
        routes.route(run, "m", [chosen.url], chosen.version)
        longest = max(longest, time.monotonic() - began)
        answers = {http_get(f"{balancer.url}/m/predict").text for _ in range(3)}
        assert answers == {chosen.url.rpartition(":")[2]} and routes.champion_urls(run, "m") == [chosen.url]
    assert longest < 2


def test_a_route_does_not_match_a_longer_model_name(run, fake_replicas):
    balancer = load_balancer.start(run, None)
    [pump] = start_replicas(run, "1", "pump", 1)
    routes.route(run, "pump", [pump.url], "1")
    assert http_get(f"{balancer.url}/pump/predict").status_code == 200
    assert http_get(f"{balancer.url}/pumps/predict").status_code == 404


def test_a_route_that_is_not_taken_is_an_error(run):
    with pytest.raises(ReleaseFailed, match="no replica to route to; run: perennial serve m"):
        routes.route(run, "m", [], "1")
    with pytest.raises(ReleaseFailed, match=r"sends to none; see .*traefik\.log"):
        routes.route(run, "m", ["http://127.0.0.1:9"], "1", seconds=0.2)


def test_no_request_is_lost_while_versions_change(run, fake_replicas):
    balancer = load_balancer.start(run, None)
    serving = start_replicas(run, "0")
    routes.route(run, "m", urls(serving), "0")
    with Load(balancer) as load:
        for version in "123":
            new = start_replicas(run, version)
            routes.route(run, "m", urls(new), version)
            assert fleet.drain(serving) == []
            replicas.stop(serving, run, "m")
            serving = new
    assert replicas.running(run, "m") == serving
    assert load.is_lossless(at_least=200)


def test_no_request_is_lost_whose_body_is_still_arriving(run, fake_replicas):
    balancer = load_balancer.start(run, None)
    [old], [new] = start_replicas(run, "0", count=1), start_replicas(run, "1", count=1)
    routes.route(run, "m", [old.url], "0")
    connection = http.client.HTTPConnection(balancer.url.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/m/predict")
    connection.putheader("Content-Length", "3000")
    connection.endheaders(b"x" * 1000)
    with ThreadPoolExecutor() as pool:
        rest = pool.submit(lambda: (time.sleep(0.7), connection.send(b"x" * 2000)))
        routes.route(run, "m", [new.url], "1")
        fleet.drain([old])
        replicas.stop([old], run, "m")
        rest.result()
    assert connection.getresponse().status == 200
    connection.close()


def test_no_request_is_lost_when_a_replica_is_killed(run, fake_replicas):
    balancer = load_balancer.start(run, None)
    serving = start_replicas(run, "0", count=3)
    routes.route(run, "m", urls(serving), "0")
    with Load(balancer) as load:
        for victim in serving[:2]:
            time.sleep(1)
            os.kill(victim.pid, signal.SIGKILL)
            assert processes.wait_until(lambda: not is_up(balancer, victim), 3)  # noqa: B023
    assert load.is_lossless(at_least=200)


@pytest.mark.parametrize("good, statuses", [(1, {200}), (0, {500})])
def test_a_failed_request_is_retried_once_on_another_replica(run, monkeypatch, good, statuses):
    """Traefik itself answers 500 when docker closes the connection to a container that restarts."""
    replace_bentoml(monkeypatch, FAKE_REPLICA)
    serving = start_replicas(run, "1", count=good) if good else []
    failing = '"status": 500 if scope["path"].endswith("/predict") else 200'
    replace_bentoml(monkeypatch, FAKE_REPLICA.replace('"status": 200', failing))
    serving += start_replicas(run, "2", count=2 - good)
    balancer = load_balancer.start(run, None)
    routes.route(run, "m", urls(serving), "1")
    assert {httpx.post(f"{balancer.url}/m/predict", content=b"x").status_code for _ in range(10)} == statuses
    metrics = http_get(f"{balancer.api}/metrics").text
    failed = sum(map(float, re.findall(r'service_requests_total\{code="500".*"m@file"\} (\S+)', metrics)))
    assert 0 < failed <= 10 * (2 - good)


def is_up(balancer: load_balancer.LoadBalancer, replica: Replica) -> bool:
    return http_get(f"{balancer.api}/api/http/services/m@file").json()["serverStatus"][replica.url] == "UP"
