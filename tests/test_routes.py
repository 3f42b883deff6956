"""Canary and shadow routes on a real Traefik with stand-in replicas: who answers, who sees, who is counted."""

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

from contracts.core.canary import canary_verdict, percentile
from contracts.core.errors import NotReady, RouteNotTaken
from contracts.core.policies import Rollout
from deployments import load_balancer, processes, replicas, routes
from deployments.canary_metrics import canary_sides, read_counters
from deployments.replicas import Replica
from deployments.routes import TrafficSplit
from service import limits

# Its version is how it behaves; a body of "?" is a caller's mistake, one of "!" lets "buggy" fail. An answer leaves in
# one write: Traefik can't try again what a killed replica had begun to answer.
STANDIN = """
import collections, http.server, os, sys, time
named, how = collections.Counter(), os.environ["HOW"]

class Standin(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["content-length"]))[:1]
        if how == "dies":
            os._exit(1)
        if how == "slow":
            time.sleep(0.1)
        if asked == b"?" or how == "picky":
            return self.answer(400, sys.argv[1])
        if how == "broken" or how == "buggy" and asked == b"!":
            return self.answer(500, sys.argv[1])
        named["late" if how == "constant" or sum(named.values()) % 4 == 0 else "on_time"] += 1
        self.answer(200, sys.argv[1])

    def do_GET(self):
        counts = [f'perennial_predictions_total{{class_name="{name}"}} {times}' for name, times in [*named.items()]]
        self.answer(200, "\\n".join(["# TYPE perennial_predictions_total counter", *counts, ""]))

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

Server(("127.0.0.1", int(sys.argv[1])), Standin).serve_forever()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routes") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "_command", lambda bento, port: [sys.executable, "-c", STANDIN, str(port)])
        yield folder
    load_balancer.stop_all(folder)


@pytest.fixture(scope="module")
def front(run) -> load_balancer.Balancer:
    return load_balancer.start(run, None)


@pytest.fixture(scope="module")
def champion(run) -> list[Replica]:
    return fresh(run, "good", 2)


def fresh(run: Path, how: str, count: int = 1) -> list[Replica]:
    started = replicas.start(Path("bento"), how, count, run, "m", {"HOW": how})
    replicas.wait_ready(started, 20)
    return started


def urls(some: list[Replica]) -> list[str]:
    return sorted(replica.url for replica in some)


def beside(run: Path, champion: list[Replica], how: str, share: float = 0.1, mode: str = "canary", count: int = 1) -> list[Replica]:
    challenger = fresh(run, how, count)
    routes.route(run, "m", urls(champion), "good", TrafficSplit(tuple(urls(challenger)), share, mode))
    return challenger


def ask(front: load_balancer.Balancer, times: int, body: bytes = b"x" * 2000) -> Counter:
    """The statuses, and the urls that answered, of as many requests one after the other."""
    seen: Counter = Counter()
    with httpx.Client(base_url=front.url, timeout=20, trust_env=False) as caller:
        for _ in range(times):
            reply = caller.post("/m/predict", content=body)
            seen.update([reply.status_code, f"http://127.0.0.1:{reply.text}"])
    return seen


def judged(before, after, deaths: int = 0):
    return canary_verdict(*canary_sides(before, after, deaths=deaths, grown_mb=0.0), Rollout(requests=20), latency_ms=50)


def test_a_canary_gets_its_exact_share_and_then_none(run, front, champion):
    challenger = beside(run, champion, "good", 0.125)
    assert routes.routed(run, "m") == urls(champion) and routes.routed_challenger(run, "m") == urls(challenger)
    before = read_counters(run, "m")
    seen = ask(front, 400)
    assert seen[200] == 400 and seen[challenger[0].url] == 50
    stable, mine = canary_sides(before, read_counters(run, "m"), deaths=0, grown_mb=0.0)
    assert (stable.requests, mine.requests) == (350, 50)
    assert sum(mine.classes.values()) == mine.latencies[float("inf")] == 50 and percentile(mine.latencies) < 0.1
    verdict = judged(before, read_counters(run, "m"))
    assert verdict.passed, verdict.reasons

    routes.route(run, "m", urls(champion), "good")
    assert routes.routed_challenger(run, "m") == [] and challenger[0].url not in ask(front, 20)


@pytest.mark.parametrize("how, kind", [
    ("broken", "errors"), ("picky", "errors"), ("dies", "errors"), ("slow", "slow"), ("constant", "different answers")])
def test_a_bad_canary_is_found_out_and_no_caller_sees_it(run, front, champion, how, kind):
    beside(run, champion, how, 0.25)
    before = read_counters(run, "m")
    seen = ask(front, 160)
    assert seen[200] == 160
    verdict = judged(before, read_counters(run, "m"))
    assert (verdict.outcome, verdict.kind) == ("failed", kind), verdict
    assert verdict.figures["challenger"]["requests"] == 40


def test_callers_mistakes_are_not_the_challengers(run, front, champion):
    beside(run, champion, "good", 0.25)
    before = read_counters(run, "m")
    assert ask(front, 40, b"?")[400] == 40
    stable, challenger = canary_sides(before, read_counters(run, "m"), deaths=0, grown_mb=0.0)
    assert (stable.refused, challenger.refused) == (30, 10) and stable.failed == challenger.failed == 0


def test_what_both_fail_is_tried_once_more_and_the_callers_to_see(run, front):
    """Both sides' failures count twice then, as Traefik counts them."""
    champion = fresh(run, "buggy")
    beside(run, champion, "buggy", 0.25)
    before = read_counters(run, "m")
    assert ask(front, 40, b"!")[500] == 40
    stable, challenger = canary_sides(before, read_counters(run, "m"), deaths=0, grown_mb=0.0)
    assert (stable.failed, challenger.failed) == (60, 20)


def test_a_shadow_sees_its_share_and_answers_nobody(run, front, champion):
    [shadow] = beside(run, champion, "constant", 0.25, "shadow")
    before = read_counters(run, "m")
    seen = ask(front, 200)
    assert seen[200] == 200 and shadow.url not in seen
    assert processes.until(lambda: canary_sides(before, read_counters(run, "m"), deaths=0, grown_mb=0.0)[1].requests == 50, 5)
    verdict = judged(before, read_counters(run, "m"))
    assert (verdict.kind, verdict.figures["stable"]["requests"]) == ("different answers", 200)


@pytest.mark.parametrize("how, failed, refused", [("broken", 20, 0), ("picky", 0, 20), ("dies", 20, 0)])
def test_a_bad_shadow_is_counted_and_not_seen(run, front, champion, how, failed, refused):
    beside(run, champion, how, 0.5, "shadow")
    before = read_counters(run, "m")
    assert ask(front, 40)[200] == 40

    def counted() -> bool:
        shadow = canary_sides(before, read_counters(run, "m"), deaths=0, grown_mb=0.0)[1]
        return (shadow.failed, shadow.refused) == (failed, refused)

    assert processes.until(counted, 5)


def test_a_second_canary_starts_from_nought(run, front, champion):
    for _ in range(2):
        beside(run, champion, "broken", 0.5)
        before = read_counters(run, "m")
        ask(front, 10)
        _, challenger = canary_sides(before, read_counters(run, "m"), deaths=0, grown_mb=0.0)
        assert (challenger.requests, challenger.failed) == (5, 5)
        routes.route(run, "m", urls(champion), "good")


def test_no_request_is_lost_while_canaries_come_go_and_die(run, front, champion):
    ended, answers = threading.Event(), []

    def load() -> None:
        while not ended.is_set():
            answers.append(ask(front, 20))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(load)
        for mode, share in (("canary", 0.3), ("shadow", 0.5), ("canary", 0.9)):
            challenger = beside(run, champion, "good", share, mode, 2)
            time.sleep(0.4)
            os.kill(challenger[0].pid, signal.SIGKILL)
            time.sleep(0.4)
            routes.route(run, "m", urls(champion), "good")
        replicas.drain(challenger, 5)
        replicas.stop(challenger, run, "m")
        ended.set()
    total = sum(answers, Counter())
    assert {status for status in total if isinstance(status, int)} == {200} and total[200] > 300


def test_a_balancer_that_starts_anew_counts_from_nought(run, front, champion):
    routes.route(run, "m", urls(champion), "good")
    ask(front, 30)
    before = read_counters(run, "m")
    load_balancer.stop(run)
    with pytest.raises(NotReady, match=r"no balancer was started in .*; run: perennial serve"):
        read_counters(run, "m")
    again = load_balancer.start(run, None)
    assert processes.until(lambda: ask(again, 1)[200] == 1, 5)
    ask(again, 39)
    assert 39 < canary_sides(before, read_counters(run, "m"), deaths=0, grown_mb=0.0)[0].answered <= 41


@pytest.mark.parametrize("mode, share, fits", [
    ("canary", 0.001, True), ("canary", 0.0004, False), ("canary", 0.999, True), ("canary", 1.0, False),
    ("shadow", 0.01, True), ("shadow", 0.004, False), ("shadow", 1.0, True), ("shadow", 1.01, False)])
def test_shares_are_whole_parts(mode, share, fits):
    if fits:
        assert TrafficSplit(("http://127.0.0.1:9",), share, mode).parts >= 1
    else:
        with pytest.raises(RouteNotTaken, match=f"a {mode} of .*: name one or more, and a share in steps of"):
            TrafficSplit(("http://127.0.0.1:9",), share, mode)


def test_a_canary_without_replicas_is_an_error():
    with pytest.raises(RouteNotTaken, match="at 0 replicas: name one or more"):
        TrafficSplit((), 0.1)


def test_more_than_the_service_takes_is_refused(run, champion):
    front = load_balancer.start(run, None)
    routes.route(run, "m", urls(champion), "good")
    size = limits.LARGEST_BODY

    def chunks(count):
        yield from (b"x" * 2**20 for _ in range(count))

    with httpx.Client(base_url=front.url, timeout=20, trust_env=False) as caller:
        assert caller.post("/m/predict", content=chunks(size // 2**20)).status_code == 200
        assert caller.post("/m/predict", content=chunks(size // 2**20 + 1)).status_code == 413
