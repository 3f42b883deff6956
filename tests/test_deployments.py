"""Replicas and the balancer with real programs: nothing is lost, and nothing is left running."""

import http.client
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

from contracts.core.errors import NotReady, RouteNotTaken
from deployments import load_balancer, processes, replicas, routes
from deployments.processes import get
from deployments.replicas import Replica

SERVICE = """
import asyncio, os
import bentoml

@bentoml.service(workers=1, traffic={"timeout": 5})
class Tiny:
    @bentoml.api
    async def predict(self, seconds: float = 0.0) -> dict:
        await asyncio.sleep(seconds)
        return {"told": os.environ.get("TOLD"), "threads": os.environ.get("OMP_NUM_THREADS")}
"""

STANDIN = '''
import asyncio, os, sys, uvicorn
under_way = 0

class Whole:
    """Writes head and body at once, as the service does: half an answer of a killed replica can't be repeated."""
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
    global under_way
    send.__self__.transport = Whole(send.__self__.transport)
    body = b"ok"
    if scope["path"].endswith("/predict"):
        under_way += 1
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(0.005)
        body = sys.argv[1].encode()
        under_way -= 1
    elif scope["path"] == "/metrics":
        body = b'bentoml_service_request_in_progress{endpoint="/predict"} %d.0' % under_way
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", lifespan="off")
'''


@pytest.fixture
def run(tmp_path):
    yield tmp_path / "run"
    load_balancer.stop_all(tmp_path / "run")
    assert marked(tmp_path / "run") == []


def marked(run: Path) -> list[int]:
    """The pids of all living processes that were started in a run folder."""
    found = psutil.process_iter(["environ", "status"])
    return [
        process.pid for process in found if process.info["status"] != psutil.STATUS_ZOMBIE
        and (process.info["environ"] or {}).get(processes.MARK, "").startswith(str(run))
    ]


@pytest.fixture(scope="module")
def bento(tmp_path_factory) -> Path:
    home, code = tmp_path_factory.mktemp("bentoml"), tmp_path_factory.mktemp("code")
    (code / "tiny.py").write_text(SERVICE)
    (code / "bentofile.yaml").write_text("service: tiny:Tiny\nname: tiny\npython: {lock_packages: false}\n")
    environ = os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    subprocess.run([sys.executable, "-m", "bentoml", "build", "--version", "one", str(code)], cwd=code, env=environ,
                   check=True, capture_output=True)
    return home / "bentos" / "tiny" / "one"


def runs_instead(monkeypatch, code: str) -> None:
    """Replicas are this code from here on, with the port as its argument."""
    monkeypatch.setattr(replicas, "_command", lambda bento, port: [sys.executable, "-c", code, str(port)])


@pytest.fixture
def standins(monkeypatch):
    runs_instead(monkeypatch, STANDIN)


def fresh(run: Path, version: str, model: str = "m", count: int = 2) -> list[Replica]:
    started = replicas.start(Path("bento"), version, count, run, model)
    replicas.wait_ready(started, 20)
    return started


def urls(some: list[Replica]) -> list[str]:
    return [replica.url for replica in some]


class Load:
    """POSTs to the balancer from 8 threads until the block ends; `answers` counts statuses and errors."""

    def __init__(self, front: load_balancer.Balancer):
        self.address, self.answers, self.ended = front.url.removeprefix("http://"), Counter(), threading.Event()
        self.threads = [threading.Thread(target=self.send) for _ in range(8)]

    def send(self) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        while not self.ended.is_set() and self.answers.total() < 20_000:
            try:
                connection.request("POST", "/m/predict", b"x" * 3000)
                reply = connection.getresponse()
                reply.read()
                self.answers[reply.status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.answers[repr(error)] += 1
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

    def only_good(self, least: int) -> bool:
        print(self.answers)
        return set(self.answers) == {200} and self.answers.total() >= least


def test_replicas_of_a_bento_serve_drain_and_stop(run, bento):
    started = replicas.start(bento, "v" * 40, 2, run, "tiny", {"TOLD": "yes"})
    assert replicas.running(run, "tiny") == started
    assert [Path(one.log).name for one in started] == [f"tiny-{'v' * 12}-{one.url[-5:]}.log" for one in started]
    replicas.wait_ready(started)
    one, other = started
    assert httpx.post(f"{one.url}/predict", json={}).json() == {"told": "yes", "threads": "1"}

    with ThreadPoolExecutor() as pool:
        slow = pool.submit(httpx.post, f"{one.url}/predict", json={"seconds": 4})
        assert processes.until(lambda: not replicas.idle(one), 5) and replicas.idle(other)
        assert replicas.drain(started, 2.5) == [one]
        assert replicas.drain(started, 10) == []
        assert slow.result(timeout=0.5).status_code == 200

    replicas.stop([one], run, "tiny")
    assert replicas.running(run, "tiny") == [other] and not one.alive and other.alive
    assert replicas.idle(one) and replicas.drain([one], 5) == []
    replicas.stop(started, run, "tiny")
    replicas.stop(started, run, "tiny")
    assert replicas.running(run, "tiny") == [] and marked(run) == []
    assert {path.suffix for path in (run / "logs").iterdir()} == {".log"}


def test_workers_outlive_a_killed_server_but_not_stop(run, bento):
    [one] = replicas.start(bento, "v" * 40, 1, run, "tiny")
    replicas.wait_ready([one])
    os.kill(one.pid, signal.SIGKILL)
    assert processes.until(lambda: not one.alive, 5)
    assert get(f"{one.url}/readyz").status_code == 200 and marked(run)
    replicas.stop(replicas.running(run, "tiny"), run, "tiny")
    assert marked(run) == []


def test_a_replica_that_dies_at_start_shows_its_log(run):
    started = replicas.start(run / "no-bento", "v" * 40, 1, run, "tiny")
    with pytest.raises(NotReady, match=r"(?s)tiny-v{12}-\d+ died at start; the end of .*no-bento"):
        replicas.wait_ready(started)
    assert replicas.running(run, "tiny") == []


def test_a_replica_that_says_nothing_is_not_ready_and_is_killed_in_the_end(run, monkeypatch):
    runs_instead(monkeypatch, "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)\n"
                              "while True: time.sleep(1)")
    started = replicas.start(Path("bento"), "1", 1, run, "m")
    with pytest.raises(NotReady, match=r"(?s)does not answer http.*deaf"):
        replicas.wait_ready(started, 1)
    replicas.stop(started, run, "m", seconds=0.5)
    assert marked(run) == []


@pytest.mark.parametrize("moment", ["recorded", "spawned, not recorded"])
def test_a_killed_starter_leaves_what_stop_needs(run, moment):
    code = f"""
        import os, sys
        from pathlib import Path
        from deployments import replicas
        replicas._command = lambda bento, port: [sys.executable, "-c", "import time; time.sleep(60)"]
        spawn = replicas.spawn
        def then_die(*arguments):
            spawn(*arguments)
            os.kill(os.getpid(), 9)
        if {moment != "recorded"}:
            replicas.spawn = then_die
        replicas.start(Path("bento"), "1", 1, Path({str(run)!r}), "m")
        os.kill(os.getpid(), 9)
    """
    starter = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parent.parent)
    assert starter.returncode == -signal.SIGKILL and len(marked(run)) == 1
    left = replicas.running(run, "m")
    assert len(left) == (moment == "recorded")
    replicas.stop(left, run, "m")
    assert marked(run) == []


def test_a_pid_that_passed_to_another_process_is_left_alone(run):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    log = str(run / "logs" / "m-1.log")
    stale = Replica(version="1", url="http://127.0.0.1:9", pid=bystander.pid, born=1.0, log=log)
    assert not stale.alive
    replicas.stop([stale], run, "m")
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_children_of_a_background_shell_still_take_ctrl_c(run):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = "import signal; print(signal.getsignal(signal.SIGINT))"
        process = processes.spawn([sys.executable, "-c", code], run / "logs" / "it.log", {})
    finally:
        signal.signal(signal.SIGINT, before)
    assert processes.until(lambda: not process.alive, 10)
    assert "default_int_handler" in Path(process.log).read_text()


def test_replicas_started_at_once_are_all_on_record(run, standins):
    with ThreadPoolExecutor(4) as pool:
        started = [pool.submit(replicas.start, Path("bento"), "1", 1, run, "m") for _ in range(4)]
    assert {one.pid for each in started for one in each.result()} == {one.pid for one in replicas.running(run, "m")}
    assert len(replicas.running(run, "m")) == 4


def test_the_balancer_takes_the_port_it_is_told_or_a_free_one(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert processes.port_or_free(port) != port
        beside = load_balancer.start(run, port)
        assert beside.url != f"http://127.0.0.1:{port}"
    assert load_balancer.start(run, port) == beside
    load_balancer.stop(run)
    load_balancer.stop(run)
    assert not beside.alive
    assert load_balancer.start(run, port).url == f"http://127.0.0.1:{port}"


def test_a_killed_balancer_comes_back_with_its_routes(run, standins):
    serving = fresh(run, "1", count=1)
    first = load_balancer.start(run, None)
    routes.route(run, "m", urls(serving), "1")
    os.kill(first.pid, signal.SIGKILL)
    assert processes.until(lambda: not first.alive, 5)
    load_balancer.wait(run)
    second = load_balancer.start(run, None)
    assert second.pid != first.pid
    assert processes.until(lambda: get(f"{second.url}/m/predict").status_code == 200, 5)


def test_a_route_holds_from_the_moment_it_is_set_every_time(run, standins):
    front = load_balancer.start(run, None)
    assert routes.routed(run, "m") == []
    one, other = fresh(run, "1")
    longest = 0.0
    for turn in range(12):
        chosen = (one, other)[turn % 2]
        began = time.monotonic()
        routes.route(run, "m", [chosen.url], chosen.version)
        longest = max(longest, time.monotonic() - began)
        answers = {get(f"{front.url}/m/predict").text for _ in range(3)}
        assert answers == {chosen.url.rpartition(":")[2]} and routes.routed(run, "m") == [chosen.url]
    assert longest < 2


def test_models_whose_names_begin_alike_keep_apart(run, standins):
    front = load_balancer.start(run, None)
    [pump] = fresh(run, "1", "pump", 1)
    routes.route(run, "pump", [pump.url], "1")
    assert get(f"{front.url}/pump/predict").status_code == 200
    assert get(f"{front.url}/pumps/predict").status_code == 404


def test_a_route_that_is_not_taken_is_an_error(run):
    with pytest.raises(RouteNotTaken, match="no replica to route to; run: perennial serve m"):
        routes.route(run, "m", [], "1")
    with pytest.raises(RouteNotTaken, match=r"sends to none; see .*traefik\.log"):
        routes.route(run, "m", ["http://127.0.0.1:9"], "1", seconds=0.2)


def test_no_request_is_lost_while_versions_change(run, standins):
    front = load_balancer.start(run, None)
    serving = fresh(run, "0")
    routes.route(run, "m", urls(serving), "0")
    with Load(front) as load:
        for version in "123":
            newer = fresh(run, version)
            routes.route(run, "m", urls(newer), version)
            assert replicas.drain(serving) == []
            replicas.stop(serving, run, "m")
            serving = newer
    assert replicas.running(run, "m") == serving
    assert load.only_good(least=200)


def test_no_request_is_lost_whose_body_is_still_on_its_way(run, standins):
    front = load_balancer.start(run, None)
    [old], [newer] = fresh(run, "0", count=1), fresh(run, "1", count=1)
    routes.route(run, "m", [old.url], "0")
    connection = http.client.HTTPConnection(front.url.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/m/predict")
    connection.putheader("Content-Length", "3000")
    connection.endheaders(b"x" * 1000)
    with ThreadPoolExecutor() as pool:
        rest = pool.submit(lambda: (time.sleep(0.7), connection.send(b"x" * 2000)))
        routes.route(run, "m", [newer.url], "1")
        replicas.drain([old])
        replicas.stop([old], run, "m")
        rest.result()
    assert connection.getresponse().status == 200
    connection.close()


def test_no_request_is_lost_when_a_replica_is_killed(run, standins):
    front = load_balancer.start(run, None)
    serving = fresh(run, "0", count=3)
    routes.route(run, "m", urls(serving), "0")
    with Load(front) as load:
        for victim in serving[:2]:
            time.sleep(1)
            os.kill(victim.pid, signal.SIGKILL)
            assert processes.until(lambda: up(front, victim) is False, 3)  # noqa: B023
    assert load.only_good(least=200)


@pytest.mark.parametrize("good, statuses, tries", [(1, {200}, 2), (0, {500}, 2)])
def test_a_request_that_a_replica_fails_is_asked_of_another_once_and_no_more(run, monkeypatch, good, statuses, tries):
    """Traefik itself answers 500 where docker closes the connection to a container that starts again."""
    runs_instead(monkeypatch, STANDIN)
    serving = fresh(run, "1", count=good) if good else []
    runs_instead(monkeypatch, STANDIN.replace('"status": 200', '"status": 500 if scope["path"].endswith("/predict") else 200'))
    serving += fresh(run, "2", count=2 - good)
    front = load_balancer.start(run, None)
    routes.route(run, "m", urls(serving), "1")
    asked = 10
    assert {httpx.post(f"{front.url}/m/predict", content=b"x").status_code for _ in range(asked)} == statuses
    told = get(f"{front.api}/metrics").text
    failed = sum(float(value) for value in re.findall(r'service_requests_total\{code="500".*"m@file"\} (\S+)', told))
    assert 0 < failed <= asked * (tries - good)


def up(front: load_balancer.Balancer, replica: Replica) -> bool:
    return get(f"{front.api}/api/http/services/m@file").json()["serverStatus"][replica.url] == "UP"
