"""Canary and shadow routes of a real Traefik, with fake replicas: who answers, and what is counted."""

import os
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from contracts.core.canary import CanarySide, canary_verdict, percentile
from contracts.core.errors import ReleaseFailed, Unavailable
from contracts.core.policies import Rollout
from contracts.core.verdict import CanaryVerdict
from deployments import fleet, load_balancer, processes, replicas, routes
from deployments.canary_metrics import Counters, canary_sides, read_counters
from deployments.replicas import Replica
from deployments.routes import SplitMode, TrafficSplit
from service import limits

# Its version names its behaviour; the body "?" is a caller's mistake, "!" makes "buggy" fail. It answers in
# one write, because Traefik can't retry after half an answer.
FAKE_REPLICA = """
import collections, http.server, os, sys, time
classes, behaviour = collections.Counter(), os.environ["BEHAVIOUR"]

class FakeReplica(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))[:1]
        if behaviour == "dies":
            os._exit(1)
        if behaviour == "slow":
            time.sleep(0.1)
        if body == b"?" or behaviour == "refuses":
            return self.answer(400, sys.argv[1])
        if behaviour == "broken" or behaviour == "buggy" and body == b"!":
            return self.answer(500, sys.argv[1])
        classes["late" if behaviour == "constant" or classes.total() % 4 == 0 else "on_time"] += 1
        self.answer(200, sys.argv[1])

    def do_GET(self):
        counter = "perennial_predictions_total"
        counts = [f'{counter}{{class_name="{name}"}} {count}' for name, count in [*classes.items()]]
        self.answer(200, "\\n".join([f"# TYPE {counter} counter", *counts, ""]))

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

Server(("127.0.0.1", int(sys.argv[1])), FakeReplica).serve_forever()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routes") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "_serve_command",
                      lambda _, port: [sys.executable, "-c", FAKE_REPLICA, str(port)])
        yield folder
    fleet.stop_all(folder)


@pytest.fixture(scope="module")
def balancer(run) -> load_balancer.LoadBalancer:
    return load_balancer.start(run, None)


@pytest.fixture(scope="module")
def champion(run) -> list[Replica]:
    return start_replicas(run, "good", 2)


def start_replicas(run: Path, behaviour: str, count: int = 1) -> list[Replica]:
    started = replicas.start(Path("bento"), behaviour, count, run, "m", {"BEHAVIOUR": behaviour})
    fleet.wait_ready(started, 20)
    return started


def urls(replicas: list[Replica]) -> list[str]:
    return sorted(replica.url for replica in replicas)


def start_split(run: Path, champion: list[Replica], behaviour: str, share: float = 0.1,
                mode: SplitMode = SplitMode.CANARY, count: int = 1) -> list[Replica]:
    """Start a challenger that behaves so, and give it its share of the requests."""
    challenger = start_replicas(run, behaviour, count)
    routes.route(run, "m", urls(champion), "good", TrafficSplit(tuple(urls(challenger)), share, mode))
    return challenger


def send_requests(balancer: load_balancer.LoadBalancer, times: int, body: bytes = b"x" * 2000) -> Counter:
    """How often each status and each replica's url answered sequential requests."""
    results: Counter = Counter()
    with httpx.Client(base_url=balancer.url, timeout=20, trust_env=False) as caller:
        for _ in range(times):
            reply = caller.post("/m/predict", content=body)
            results.update([reply.status_code, f"http://127.0.0.1:{reply.text}"])
    return results


def sides_since(before: Counters, run: Path) -> tuple[CanarySide, CanarySide]:
    """Champion and challenger since a reading of the counters."""
    return canary_sides(before, read_counters(run, "m"), deaths=0, grown_mb=0.0)


def verdict_since(before: Counters, run: Path) -> CanaryVerdict:
    return canary_verdict(*sides_since(before, run), Rollout(requests=20), latency_ms=50)


def test_a_canary_gets_its_exact_share_until_it_ends(run, balancer, champion):
    challenger = start_split(run, champion, "good", 0.125)
    assert routes.champion_urls(run, "m") == urls(champion)
    assert routes.challenger_urls(run, "m") == urls(challenger)
    before = read_counters(run, "m")
    results = send_requests(balancer, 400)
    assert results[200] == 400 and results[challenger[0].url] == 50
    champion_side, side = sides_since(before, run)
    assert (champion_side.requests, side.requests) == (350, 50)
    assert sum(side.classes.values()) == side.latencies[float("inf")] == 50
    assert percentile(side.latencies) < 0.1
    verdict = verdict_since(before, run)
    assert verdict.passed, verdict.reasons

    routes.route(run, "m", urls(champion), "good")
    assert routes.challenger_urls(run, "m") == [] and challenger[0].url not in send_requests(balancer, 20)


@pytest.mark.parametrize("behaviour, kind", [
    ("broken", "errors"), ("refuses", "errors"), ("dies", "errors"), ("slow", "slow"),
    ("constant", "different answers")])
def test_a_bad_canary_fails_and_no_caller_gets_its_errors(run, balancer, champion, behaviour, kind):
    start_split(run, champion, behaviour, 0.25)
    before = read_counters(run, "m")
    results = send_requests(balancer, 160)
    assert results[200] == 160
    verdict = verdict_since(before, run)
    assert (verdict.outcome, verdict.kind) == ("failed", kind), verdict
    assert verdict.figures.challenger.requests == 40


def test_a_callers_mistake_does_not_count_against_the_challenger(run, balancer, champion):
    start_split(run, champion, "good", 0.25)
    before = read_counters(run, "m")
    assert send_requests(balancer, 40, b"?")[400] == 40
    champion_side, challenger = sides_since(before, run)
    assert (champion_side.refused, challenger.refused) == (30, 10)
    assert champion_side.failed == challenger.failed == 0


def test_a_request_that_both_fail_is_retried_once_and_returned_as_failed(run, balancer):
    """Traefik counts the retries too."""
    champion = start_replicas(run, "buggy")
    start_split(run, champion, "buggy", 0.25)
    before = read_counters(run, "m")
    assert send_requests(balancer, 40, b"!")[500] == 40
    champion_side, challenger = sides_since(before, run)
    assert (champion_side.failed, challenger.failed) == (60, 20)


def test_a_shadow_gets_its_share_and_answers_no_caller(run, balancer, champion):
    [shadow] = start_split(run, champion, "constant", 0.25, SplitMode.SHADOW)
    before = read_counters(run, "m")
    results = send_requests(balancer, 200)
    assert results[200] == 200 and shadow.url not in results
    assert processes.wait_until(lambda: sides_since(before, run)[1].requests == 50, 5)
    verdict = verdict_since(before, run)
    assert (verdict.kind, verdict.figures.stable.requests) == ("different answers", 200)


@pytest.mark.parametrize("behaviour, counts", [("broken", (20, 0)), ("refuses", (0, 20)), ("dies", (20, 0))])
def test_a_bad_shadow_is_counted_and_callers_get_no_errors(run, balancer, champion, behaviour, counts):
    start_split(run, champion, behaviour, 0.5, SplitMode.SHADOW)
    before = read_counters(run, "m")
    assert send_requests(balancer, 40)[200] == 40

    def is_counted() -> bool:
        shadow = sides_since(before, run)[1]
        return (shadow.failed, shadow.refused) == counts

    assert processes.wait_until(is_counted, 5)


def test_a_second_canary_is_counted_from_zero(run, balancer, champion):
    for _ in range(2):
        start_split(run, champion, "broken", 0.5)
        before = read_counters(run, "m")
        send_requests(balancer, 10)
        _, challenger = sides_since(before, run)
        assert (challenger.requests, challenger.failed) == (5, 5)
        routes.route(run, "m", urls(champion), "good")


def test_no_request_is_lost_while_canaries_start_end_and_die(run, balancer, champion):
    ended, answers = threading.Event(), []

    def load() -> None:
        while not ended.is_set():
            answers.append(send_requests(balancer, 20))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(load)
        for mode, share in ((SplitMode.CANARY, 0.3), (SplitMode.SHADOW, 0.5), (SplitMode.CANARY, 0.9)):
            challenger = start_split(run, champion, "good", share, mode, 2)
            time.sleep(0.4)
            os.kill(challenger[0].pid, signal.SIGKILL)
            time.sleep(0.4)
            routes.route(run, "m", urls(champion), "good")
        fleet.drain(challenger, 5)
        replicas.stop(challenger, run, "m")
        ended.set()
    total = sum(answers, Counter())
    assert {status for status in total if isinstance(status, int)} == {200} and total[200] > 300


def test_counters_of_a_restarted_balancer_start_at_zero(run, balancer, champion):
    routes.route(run, "m", urls(champion), "good")
    send_requests(balancer, 30)
    before = read_counters(run, "m")
    load_balancer.stop(run)
    with pytest.raises(Unavailable, match=r"no load balancer was started in .*; run: perennial serve"):
        read_counters(run, "m")
    again = load_balancer.start(run, None)
    assert processes.wait_until(lambda: send_requests(again, 1)[200] == 1, 5)
    send_requests(again, 39)
    assert 39 < sides_since(before, run)[0].answered <= 41


@pytest.mark.parametrize("mode, share, is_valid", [
    (SplitMode.CANARY, 0.001, True), (SplitMode.CANARY, 0.0004, False), (SplitMode.CANARY, 0.999, True),
    (SplitMode.CANARY, 1.0, False), (SplitMode.SHADOW, 0.01, True), (SplitMode.SHADOW, 0.004, False),
    (SplitMode.SHADOW, 1.0, True), (SplitMode.SHADOW, 1.01, False)])
def test_a_share_outside_what_traefik_can_split_is_refused(mode, share, is_valid):
    if is_valid:
        assert TrafficSplit(("http://127.0.0.1:9",), share, mode).weight >= 1
    else:
        with pytest.raises(ReleaseFailed, match=f"a {mode} of .*: name one or more, and a share in steps of"):
            TrafficSplit(("http://127.0.0.1:9",), share, mode)


def test_a_canary_without_replicas_is_an_error():
    with pytest.raises(ReleaseFailed, match="at 0 replicas: name one or more"):
        TrafficSplit((), 0.1)


def test_a_body_larger_than_the_service_takes_is_refused(run, champion):
    balancer = load_balancer.start(run, None)
    routes.route(run, "m", urls(champion), "good")
    size = limits.MAX_BODY_BYTES

    def chunks(count):
        yield from (b"x" * 2**20 for _ in range(count))

    with httpx.Client(base_url=balancer.url, timeout=20, trust_env=False) as caller:
        assert caller.post("/m/predict", content=chunks(size // 2**20)).status_code == 200
        assert caller.post("/m/predict", content=chunks(size // 2**20 + 1)).status_code == 413
