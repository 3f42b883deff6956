"""Replicas beside the old → checked → canary → champion → all the traffic; or back, and the ledger says why."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import psutil
from prefect.exceptions import TerminationSignal

from contracts.canary import canary
from contracts.contract import PerennialError, Verdict
from deployments import balancer, figures, fleet, kustomize, replicas
from deployments.balancer import Beside
from deployments.fleet import Server
from flows.memory import Memory
from registry import models
from service.request import MOST_RECORDS, SAMPLE

STOPPED = (KeyboardInterrupt, SystemExit, TerminationSignal)  # Ctrl-C, and what Prefect makes of SIGTERM
REPLICAS = 2
READY = 60  # seconds in which new replicas must answer
LOOK, TELL = 0.5, 15  # seconds between two looks at a canary, and between two words on how far it is
FINAL = ("died", "errors")  # findings that no further request can mend
log = logging.getLogger("perennial.rollout")
ONE_BY_ONE = 11  # records that are asked alone as well: another way through the code, and what a caller waits


class ReleaseFailed(PerennialError):
    """The new version does not serve; what served before goes on."""

    exit_code = 1


def put_in_front(memory: Memory, version: str, what: Path | str, decide: Callable[[str | None], Any] | None = None) -> dict[str, Any]:
    """Start replicas beside the old, check them, give them a share, let the ledger decide, shift the rest, stop the old.

    `what` is a bento's folder or an image's reference. `decide` writes the ledger's event, given the champion before,
    and takes the canary's place; by default the promotion. Until the ledger names the new champion a failure leaves
    everything as it was. Run again after a kill, it takes up replicas that run. A challenger that the canary refuses
    is no error: `outcome` says "refused".
    """
    with _alone(memory, hurry=decide is not None):
        before = memory.ledger.state().champion
        if decide is None:
            memory.ledger.must_allow(version)  # asked again by the promotion; here, before anything is started
        mine = [each for each in fleet.running(memory.run, memory.name) if each.version == version and fleet.made_from(each, what)]
        there = {each.url for each in mine} if version == before else set()  # what serves is not taken away by a failure
        try:
            balancer.start(memory.run)
            mine += fleet.start(what, version, REPLICAS - len(mine), memory.run, memory.name,
                                {"PERENNIAL_PROFILES": str(memory.spool)}, hurry=before is None or decide is not None)
            _wait_ready(memory, mine, hurried=decide is not None)
            checked = [answers_like_trainer(memory, each) for each in mine]
            fleet.settle(mine)
            verdict = None if decide else beside_champion(memory, before, version, mine)
            if verdict and not _allows(memory, verdict):
                _withdraw(memory, before, version, mine, there, "; ".join(verdict.reasons))
                return {"outcome": "refused", "version": version, "before": before, "canary": verdict.as_json(), "checked": checked}
            decide(before) if decide else memory.ledger.promote(version, expect=before)
        except (Exception, *STOPPED) as error:  # else the challenger would go on with its share, and nobody judge it
            _withdraw(memory, before, version, mine, there, f"{type(error).__name__}: {error}")
            raise
        try:
            balancer.route(memory.run, memory.name, [each.url for each in mine], version)
        except Exception as error:
            _go_back(memory, before, version, mine, error)
            raise
        _retire(memory, mine, seconds=10 if decide else 30)
        _released(memory, {"version": version, "replicas": len(mine), "image": what if isinstance(what, str) else None})
    return {"outcome": "released", "version": version, "before": before, "replicas": [each.url for each in mine],
            "canary": verdict.as_json() if verdict else None, "checked": checked}


def _released(memory: Memory, facts: dict[str, Any]) -> None:
    """What serves now, which a rollback starts again; a run that is repeated says nothing new."""
    before = memory.ledger.state().recorded.get("released", ())
    if not before or any(before[-1].get(name) != value for name, value in facts.items()):
        memory.ledger.record("released", facts)


def _wait_ready(memory: Memory, mine: list[Server], hurried: bool) -> None:
    """Wait until all answer; a release that a rollback waits for gives up."""
    def over() -> bool:
        return (not hurried and _hurried(memory)) or all(replicas.answers(f"{each.url}/readyz") or each.deaths for each in mine)

    replicas.until(over, READY)
    if not hurried and _hurried(memory):
        raise ReleaseFailed(f"{memory.name}: the rollout gave way to a rollback; release it again when it is wanted")
    replicas.wait_ready(mine, 1)


@contextmanager
def _alone(memory: Memory, hurry: bool) -> Iterator[None]:
    """One rollout of a model at a time on this machine; one in a hurry (a rollback) makes a canary under way give up."""
    memory.run.mkdir(parents=True, exist_ok=True)
    if hurry:
        _flag(memory).write_text(str(os.getpid()))
    with open(_lock(memory), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            if hurry:
                _flag(memory).unlink(missing_ok=True)


def _lock(memory: Memory) -> Path:
    return memory.run / f"{memory.name}.rollout"


def _flag(memory: Memory) -> Path:
    return memory.run / f"{memory.name}.hurry"


def _hurried(memory: Memory) -> bool:
    """Whether somebody waits for a rollback; the flag of one that was killed counts for nothing."""
    try:
        return psutil.pid_exists(int(_flag(memory).read_text() or 0))
    except FileNotFoundError:
        return False


def under_way(memory: Memory) -> bool:
    """Whether a rollout of the model is going on on this machine."""
    memory.run.mkdir(parents=True, exist_ok=True)
    with open(_lock(memory), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def beside_champion(memory: Memory, champion: str | None, version: str, mine: list[Server], mode: Literal["canary", "shadow"] = "canary",
                    share: float | None = None) -> Verdict | None:
    """Let a challenger see its share of the traffic, and judge it by what both sides did; None where no champion serves."""
    old = [each.url for each in fleet.running(memory.run, memory.name) if each.version == champion]
    if not old or champion == version:
        return None
    policy, urls = memory.contract.rollout, tuple(each.url for each in mine)
    balancer.route(memory.run, memory.name, old, champion, Beside(urls, policy.share if share is None else share, mode))
    verdict = _watched(memory, mine, _apart(memory, version))
    memory.ledger.record(f"{mode}_judged", {"version": version, "against": champion, "verdict": verdict.as_json()})
    return verdict


def _apart(memory: Memory, version: str) -> float:
    """How far the gate saw the version's classes from the champion's; 0 for one that it has not judged against it."""
    verdicts = memory.ledger.state().verdicts.get(version) or [{"verdict": {"figures": {}}}]
    return verdicts[-1]["verdict"]["figures"].get("apart", 0.0)


def _watched(memory: Memory, mine: list[Server], apart: float) -> Verdict:
    """The Verdict as soon as it can't change for the better, or enough requests were answered, or time is up."""
    policy, deadline = memory.contract.rollout, time.monotonic() + memory.contract.rollout.minutes * 60
    first, small = figures.reading(memory.run, memory.name), {each.url: each.memory_mb() for each in mine}
    deaths = {each.url: each.deaths for each in mine}
    told = time.monotonic()
    log.info("%s: %s is tried on a part of the callers until it answered %d requests, for %g minutes at most",
             memory.name, mine[0].version[:12], policy.requests, policy.minutes)
    while True:
        time.sleep(LOOK)
        if _hurried(memory):
            raise ReleaseFailed(f"{memory.name}: the rollout gave way to a rollback; release it again when it is wanted")
        died = sum(each.deaths - deaths[each.url] for each in mine)
        grown = max((each.memory_mb() - small[each.url] for each in mine if each.alive), default=0.0)
        now = figures.reading(memory.run, memory.name)
        verdict = canary(*figures.sides(first, now, deaths=died, grown_mb=grown), policy,
                         latency_ms=memory.contract.gate.latency_ms, apart=apart)
        answered = verdict.figures["challenger"]["answered"]
        if time.monotonic() - told > TELL:
            told = time.monotonic()
            log.info("%s: answered %d of %d requests, %.0f s left", memory.name, answered, policy.requests, deadline - told)
        enough = answered >= policy.requests
        if verdict.kind in FINAL or enough or time.monotonic() > deadline:
            return verdict


def shadow(memory: Memory, version: str, what: Path | str, share: float) -> Verdict:
    """Let one replica of a version see a share of the traffic, whose callers all get the champion's answers."""
    Beside(("the challenger",), share, "shadow")  # refuses a share that can't be before anything is started
    with _alone(memory, hurry=False):
        champion = memory.ledger.state().champion
        mine = fleet.start(what, version, 1, memory.run, memory.name, {"PERENNIAL_PROFILES": str(memory.spool)})
        try:
            replicas.wait_ready(mine)
            fleet.settle(mine)
            verdict = beside_champion(memory, champion, version, mine, "shadow", share)
        finally:
            _only(memory, champion)
            fleet.stop(mine, memory.run, memory.name)
    if verdict is None:
        raise ReleaseFailed(f"{memory.name}: no other champion serves here whose traffic {version[:12]} could see; "
                            f"run: perennial serve {memory.name}")
    return verdict


def _allows(memory: Memory, verdict: Verdict) -> bool:
    return verdict.passed or (verdict.outcome == "insufficient" and memory.contract.rollout.alone == "go on")


def _withdraw(memory: Memory, before: str | None, version: str, mine: list[Server], there: set[str], why: str) -> None:
    """The champion has all the traffic, as before; what was started is gone, and the ledger says why, whatever else fails."""
    try:
        if version != before:
            balancer.start(memory.run)  # it may be what has failed
            _only(memory, before)
    except Exception as error:
        why += f"; the traffic was not taken back: {type(error).__name__}: {error}"
    try:
        started = [each for each in mine if each.url not in there]
        replicas.drain(started, 5)
        fleet.stop(started, memory.run, memory.name, seconds=5)
    except Exception as error:
        why += f"; replicas were not stopped: {type(error).__name__}: {error}"
    memory.ledger.record("release_failed", {"version": version, "why": why})


def _only(memory: Memory, champion: str | None) -> None:
    """End a canary or a shadow: all the traffic is the champion's, and nobody else sees it."""
    if balancer.routed_beside(memory.run, memory.name):
        urls = [each.url for each in fleet.running(memory.run, memory.name) if each.version == champion]
        balancer.route(memory.run, memory.name, urls, champion)


def _go_back(memory: Memory, before: str | None, version: str, mine: list[Server], error: Exception) -> None:
    """The traffic could not be shifted: the old version is champion again, and its replicas never stopped."""
    memory.ledger.record("release_failed", {"version": version, "why": f"{type(error).__name__}: {error}"})
    if before and before != version:
        memory.ledger.roll_back(f"traffic was not shifted: {error}", to=before)
        old = [each.url for each in fleet.running(memory.run, memory.name) if each.version == before]
        balancer.route(memory.run, memory.name, old, before)
        fleet.stop(mine, memory.run, memory.name)


def _retire(memory: Memory, mine: list[Server], seconds: float) -> None:
    """Drain and stop every other replica, within about twice so many seconds; the balancer sends them nothing any more."""
    urls = {each.url for each in mine}
    old = [each for each in fleet.running(memory.run, memory.name) if each.url not in urls]
    replicas.drain([each for each in old if replicas.answers(f"{each.url}/livez")], seconds)
    fleet.stop(old, memory.run, memory.name, seconds=int(seconds))


def answers_like_trainer(memory: Memory, server: Server) -> dict[str, Any]:
    """Ask a replica the version's sample records over HTTP, together and alone; refuse it unless it answers as the trainer
    did, in time."""
    files = models.fetch(memory.store, memory.name, server.version, memory.run / "models")
    samples = json.loads((files / "samples.json").read_bytes())
    records, wanted = samples["records"], np.asarray(samples["probabilities"])
    seconds = _compared(memory, server, records, wanted)
    chosen = np.linspace(0, len(records) - 1, ONE_BY_ONE).astype(int)
    alone = float(np.median([_compared(memory, server, [records[at]], wanted[[at]]) for at in chosen])) * 1000
    if alone > (limit := memory.contract.gate.latency_ms):
        raise ReleaseFailed(f"{server.url} takes {alone:.0f} ms for a single record, the median of {ONE_BY_ONE}; limit: {limit:g} ms")
    return {"url": server.url, "records": len(records), "seconds": seconds, "latency_ms": alone}


def answered_by(memory: Memory, version: str, records: list[dict]) -> np.ndarray:
    """A version's probabilities by its live replica: for one whose features the contract here can't compute any more."""
    alive = [each for each in fleet.running(memory.run, memory.name) if each.version == version]
    if not alive:
        raise ReleaseFailed(f"{memory.name}: {version[:12]} has other features than the contract has now, and no replica "
                            f"of it runs here to be asked; run on the machine that serves it")
    parts = [_asked(alive[0], records[at:at + MOST_RECORDS]) for at in range(0, len(records), MOST_RECORDS)]
    if (bad := [part for part in parts if part.status_code != 200]):
        raise ReleaseFailed(f"{memory.name}: {version[:12]} does not take records of the contract as it is now: {bad[0].text[:300]}")
    answers = [one for part in parts for one in _parsed(alive[0], part, memory.contract.label.classes)["predictions"]]
    return np.asarray([list(one["probabilities"].values()) for one in answers], dtype=np.float32)


def _compared(memory: Memory, server: Server, records: list[dict], wanted: np.ndarray) -> float:
    """Seconds that a replica took for records; ReleaseFailed unless version, probabilities and classes are the trainer's."""
    reply, names = _asked(server, records), memory.contract.label.classes
    if reply.status_code != 200:
        raise ReleaseFailed(f"{server.url} answers the samples with {reply.status_code}: {reply.text[:500]}")
    answer = _parsed(server, reply, names)
    got = np.asarray([[one["probabilities"][name] for name in names] for one in answer["predictions"]], dtype=float)
    if answer["version"] != server.version:
        raise ReleaseFailed(f"{server.url} says that it serves {answer['version'][:12]}, and was started for {server.version[:12]}")
    if got.shape != wanted.shape or not np.array_equal(got, wanted):
        far = np.abs(got - wanted).max() if got.shape == wanted.shape else f"shapes {got.shape} and {wanted.shape}"
        raise ReleaseFailed(f"{server.url} differs by {far} from the trainer's answers of {server.version[:12]}, asked "
                            f"{len(records)} at once; see {server.log}")
    called = [names[index] for index in (wanted * memory.contract.weights).argmax(axis=1)]
    if (wrong := [(one["class"], name) for one, name in zip(answer["predictions"], called) if one["class"] != name]):
        raise ReleaseFailed(f"{server.url} names another class than the trainer for {len(wrong)} of {len(called)} samples, "
                            f"such as {wrong[0][0]} for {wrong[0][1]}")
    return reply.elapsed.total_seconds()


def _asked(server: Server, records: list[dict]) -> httpx.Response:
    try:
        return httpx.post(f"{server.url}/predict", json={"records": records}, headers=SAMPLE, timeout=10, trust_env=False)
    except httpx.TransportError as error:
        raise ReleaseFailed(f"{server.url} gives no answer to the samples: {error!r}; {server.said()}") from error


def _parsed(server: Server, reply: httpx.Response, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        answer = reply.json()
        good = all(set(one) == {"id", "class", "probabilities"} and list(one["probabilities"]) == list(names)
                   for one in answer["predictions"]) and isinstance(answer["version"], str)
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise ReleaseFailed(f"{server.url} answers the samples in another form than the service's: {reply.text[:200]}") from None
    return answer


def hand_over(memory: Memory, version: str, image: str, folder: Path, decide: Callable[[str | None], Any] | None = None) -> dict[str, Any]:
    """Name a version champion and write its image into a kustomization: the cluster does the rest, by its own probes.

    What can be wrong with the file is found before the ledger learns anything; a run that was killed between the two is
    made up for by running it again, or by the reconciler's release of the champion.
    """
    before = memory.ledger.state().champion
    kustomize.pointed_to(folder)
    decide(before) if decide else memory.ledger.promote(version, expect=before)
    try:
        kustomize.point_to(folder, image)
    except Exception as error:
        memory.ledger.record("release_failed", {"version": version, "why": f"{type(error).__name__}: {error}"})
        if before and before != version:
            memory.ledger.roll_back(f"the image was not written: {error}", to=before)
        raise
    _released(memory, {"version": version, "image": image})
    return {"outcome": "released", "version": version, "before": before, "replicas": [image], "canary": None, "checked": []}


def served(memory: Memory) -> bool:
    """Whether the champion has all its replicas here; true as well where this machine does not serve the model."""
    champion, routed = memory.ledger.state().champion, balancer.routed(memory.run, memory.name)
    alive = fleet.running(memory.run, memory.name)
    if not (routed or alive) or under_way(memory):
        return True
    whole = len(alive) >= REPLICAS and {each.version for each in alive} == {champion}
    return whole and sorted(each.url for each in alive) == routed and not balancer.routed_beside(memory.run, memory.name)
