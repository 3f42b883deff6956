"""Versions as images: built twice the same, pushed by digest, served without a right too many, started again, rolled back."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest

from contracts.core import errors
from contracts.core.errors import ImageFailed
from deployments import containers, fleet, load_balancer, processes, replicas, routes
from flows.ingest import ingest_batch
from flows.releasing import canary, replica_check, rollout, rollout_lock
from flows.releasing.bento import build_bento
from flows.releasing.image import artifact_of, ship_image
from flows.releasing.serving import roll_back
from flows.reporting.status import facts
from flows.training.judging import judge
from flows.training.version import SAMPLES, fit_version
from registry import images
from registry.context import ModelContext, fetch_version, open_model
from registry.images import Images
from service import profiles
from tests.conftest import PUMPS

pytestmark = pytest.mark.containers
REGISTRY = "127.0.0.1:5000"


@pytest.fixture(scope="module")
def prefix():
    """A place in the registry that no other run of the tests writes; its images leave the engine with it."""
    with pytest.MonkeyPatch.context() as patch:
        address = f"{REGISTRY}/test-{uuid4().hex[:8]}"
        patch.setenv("PERENNIAL_IMAGES", address)
        patch.setenv("PERENNIAL_BUILD_NETWORK", "host")
        yield address
        for image in images.engine().images.list():
            for tag in image.tags:
                if tag.startswith(address):
                    images.engine().images.remove(tag)


@pytest.fixture(scope="module")
def shipped(flights_version, flights_bento, prefix) -> tuple[ModelContext, str, str]:
    memory, version = flights_version
    return memory, version, ship_image(memory, version, flights_bento)


@pytest.fixture(scope="module")
def container(shipped):
    memory, version, image = shipped
    [started] = containers.start(image, version, 1, memory.run, memory.name, {"PERENNIAL_PROFILES": str(memory.spool)})
    try:
        replicas.wait_ready([started])
        yield started
    finally:
        containers.stop([started], memory.run, memory.name)


def attributes(reference: str) -> dict:
    return images.present(reference).attrs


def test_an_image_says_where_it_comes_from_and_may_do_little(shipped):
    memory, version, image = shipped
    facts = attributes(image)
    assert facts["Size"] <= 450e6
    labels = facts["Config"]["Labels"]
    assert (labels["perennial.model"], labels["perennial.version"]) == ("flights", version)
    assert {"perennial.bento", "perennial.data", "perennial.contract", "org.opencontainers.image.revision",
            "org.opencontainers.image.base.digest"} <= set(labels)
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert facts["Config"]["User"] == images.USER and facts["Config"]["Healthcheck"]
    assert not any("pypi" in line or "index" in line for line in facts["Config"]["Env"])
    assert memory.ledger.state().recorded["imaged"] == [{"version": version, "image": image}]


def test_the_image_holds_no_compiler_and_no_git(container):
    for program in ("gcc", "cc", "g++", "git", "perl", "pip", "make"):
        assert inside(container, "command", "-v", program) != 0


def inside(container, *command: str) -> int:
    return images.engine().containers.get(container.name).exec_run(["bash", "-c", " ".join(command)]).exit_code


def test_it_runs_unprivileged_on_a_file_system_that_nobody_can_write(container):
    assert inside(container, 'test "$(id -u)" = 10001') == 0
    assert inside(container, "touch", "/bento/x") != 0 and inside(container, "touch", "/opt/x") != 0
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert psutil.Process(container.pid).uids().real == 10001
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status


def test_it_answers_like_the_trainer_and_its_profiles_reach_the_spool(container, shipped):
    memory, version, _ = shipped
    assert replica_check.answers_like_trainer(memory, container)["records"] == SAMPLES
    records = json.loads((fetch_version(memory, version) / "samples.json").read_bytes())["records"]
    assert httpx.post(f"{container.url}/predict", json={"records": records}).status_code == 200
    wait(lambda: profiled(memory, version) == len(records))


def profiled(memory: ModelContext, version: str) -> int:
    """Rows in all the profiles that replicas of a version have written."""
    files = memory.spool.glob(f"{memory.name}/{version}/*/*.bin")
    return sum(profiles.rows(profiles.merge([path.read_bytes()])) for path in files)


def wait(done: Callable[[], bool], seconds: float = 30) -> None:
    assert processes.until(done, seconds)


def test_docker_sees_that_it_is_healthy(container):
    wait(lambda: containers._state(container)["Health"]["Status"] == "healthy")


def test_one_that_is_killed_is_started_again(container):
    before = container.pid
    os.kill(before, signal.SIGKILL)
    wait(lambda: container.deaths == 1 and container.pid not in (0, before) and processes.answers(f"{container.url}/readyz"))


def test_the_same_version_built_twice_is_the_same_digest(shipped, tmp_path, monkeypatch):
    memory, version, image = shipped
    monkeypatch.setenv("PERENNIAL_RUN", str(tmp_path))
    elsewhere = ModelContext(memory.contract, memory.store, memory.ledger, tmp_path)
    assert ship_image(elsewhere, version, build_bento(elsewhere, version)) == image
    assert len(memory.ledger.state().recorded["imaged"]) == 1


def test_a_second_version_brings_one_layer_of_its_own(shipped, flights_bento, prefix, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(flights_bento, other)
    (other / "src" / "model" / "more.txt").write_text("another version")
    first, second = attributes(shipped[2]), images.build(Images(prefix, network="host"), other, {}).attrs
    assert first["RootFS"]["Layers"][:-1] == second["RootFS"]["Layers"][:-1]
    assert first["RootFS"]["Layers"][-1] != second["RootFS"]["Layers"][-1]
    assert abs(second["Size"] - first["Size"]) < 5e6


def test_a_registry_that_is_away_is_said_and_running_again_finishes(flights_version, flights_bento, prefix, monkeypatch):
    memory, version = flights_version
    free = processes.free_ports(1)[0]
    with monkeypatch.context() as patch:
        patch.setenv("PERENNIAL_IMAGES", f"127.0.0.1:{free}/away")
        with pytest.raises(ImageFailed, match=r"was not pushed.*The champion goes on"):
            ship_image(memory, version, flights_bento)
    assert ship_image(memory, version, flights_bento).startswith(prefix)


def test_another_digest_under_the_name_is_refused(shipped, flights_bento, prefix, monkeypatch):
    where = Images(prefix)
    image = images.present(shipped[2])
    other = type("Data", (), {"id": "sha256:" + "0" * 64})
    monkeypatch.setattr(type(images.engine().images), "get_registry_data", lambda *_: other)  # a mock: one would have to race a push
    with pytest.raises(ImageFailed, match="somebody else writes this name"):
        images.push(where, image, "flights", "again")


def test_no_engine_is_said_in_one_line(monkeypatch, flights_version, flights_bento, prefix):
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{processes.free_ports(1)[0]}")
    with pytest.raises(errors.NoEngine, match="no container engine answers at tcp://127"):
        ship_image(*flights_version, flights_bento)


@pytest.fixture(scope="module")
def two_versions(prefix, tmp_path_factory):
    """Two versions of the pumps that passed the gate; the first is champion, in containers behind Traefik."""
    home = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_STORE", str(home / "store"))
        patch.setenv("PERENNIAL_RUN", str(home / "run"))
        memory = open_model(PUMPS)
        ingest_batch(memory, datetime(2024, 1, 1), datetime(2024, 2, 12))
        first = passed(memory)
        rollout.roll_out_version(memory, first, ship_image(memory, first, build_bento(memory, first)))
        ingest_batch(memory, datetime(2024, 2, 12), datetime(2024, 3, 18))
        second = passed(memory)
        try:
            yield memory, first, second
        finally:
            fleet.stop_all(memory.run)
        assert images.engine().containers.list(all=True, filters={"label": f"perennial.run={memory.run}"}) == []


def passed(memory: ModelContext) -> str:
    version = fit_version(memory)
    assert judge(memory, version).passed
    return version


class Callers:
    """Four callers who ask for one prediction after another until the block ends; `said` counts what they get."""

    def __init__(self, url: str):
        self.url, self.said, self.over, self.versions = url, Counter(), threading.Event(), set()
        self.threads = [threading.Thread(target=self.ask) for _ in range(4)]

    def ask(self) -> None:
        reading = {"measured_at": "2024-03-20T12:00:00", "vibration": 8.0, "heat": 60.0, "starts": 3}
        with httpx.Client(timeout=30) as client:
            while not self.over.wait(0.02):
                try:
                    reply = client.post(self.url, json={"records": [reading]})
                    self.said[reply.status_code] += 1
                    self.versions.add(reply.json()["version"])
                except httpx.HTTPError as error:
                    self.said[repr(error)] += 1

    def __enter__(self) -> "Callers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def test_a_release_and_a_rollback_without_prefect_and_registry_lose_no_request(two_versions, monkeypatch):
    memory, first, second = two_versions
    front = load_balancer.start(memory.run)
    monkeypatch.setenv("PERENNIAL_STORE", memory.store.address)
    monkeypatch.setenv("PERENNIAL_RUN", str(memory.run))
    with Callers(f"{front.url}/pumps/predict") as callers:
        done = rollout.roll_out_version(memory, second, ship_image(memory, second, build_bento(memory, second)))
        assert (done["outcome"], done["canary"]["outcome"]) == ("released", "passed")
        assert httpx.get(f"{front.url}/pumps/model").json()["version"] == second
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        monkeypatch.setattr(type(images.engine().images), "pull", unreachable)
        monkeypatch.setattr(type(images.engine().images), "push", unreachable)
        begun = time.monotonic()
        roll_back(PUMPS, "previous", "the test asked")
        assert time.monotonic() - begun < 30
    assert set(callers.said) == {200}
    assert httpx.get(f"{front.url}/pumps/model").json()["version"] == first == memory.ledger.state().champion
    assert {each.version for each in fleet.running(memory.run, "pumps")} == {first}
    assert memory.ledger.events()[-1].kind in ("rolled_back", "released")
    found = facts(PUMPS)
    assert [one["version"] for one in found["replicas"]] == [first, first] and found["callers"] == f"{front.url}/pumps"


def test_a_challenger_that_fails_callers_is_refused_and_no_caller_sees_it(two_versions, tmp_path):
    memory, first, second = two_versions
    bento = tmp_path / "bad"
    shutil.copytree(build_bento(memory, second), bento)
    api = bento / "src" / "service" / "app.py"
    good = api.read_text()
    api.write_text(good.replace("        if not sample:\n", "        if not sample:\n            1 / 0\n", 1))
    assert api.read_text() != good
    image = images.build(images.configured(), bento, {})
    front = load_balancer.start(memory.run)
    with Callers(f"{front.url}/pumps/predict") as callers:
        done = rollout.roll_out_version(memory, second, images.push(images.configured(), image, "pumps", "bad"))
    assert (done["outcome"], done["canary"]["kind"]) == ("refused", "errors")
    assert set(callers.said) == {200} and memory.ledger.state().champion == first
    assert {each.version for each in fleet.running(memory.run, "pumps")} == {first} and rollout.served(memory)
    assert memory.ledger.events()[-1].kind == "release_failed" and "failed" in memory.ledger.events()[-1].data["why"]


def test_what_is_in_the_shadow_is_compared_and_nobody_gets_its_answers(two_versions):
    memory, first, second = two_versions
    front = load_balancer.start(memory.run)
    with Callers(f"{front.url}/pumps/predict") as callers:
        verdict = canary.shadow(memory, second, artifact_of(memory, second), share=0.5)
    assert verdict.passed and verdict.figures["challenger"]["answered"] >= memory.contract.rollout.requests
    assert set(callers.said) == {200} and callers.versions == {first} and rollout.served(memory)
    assert memory.ledger.state().recorded["shadow_judged"][-1]["version"] == second
    assert profiled(memory, second) > 0


def test_a_rebuilt_image_of_the_champion_takes_over_and_is_what_a_rollback_starts(two_versions, tmp_path):
    memory, first, _ = two_versions
    bento = tmp_path / "mended"
    shutil.copytree(build_bento(memory, first), bento)
    (bento / "src" / "mended.txt").write_text("a security update, say")
    image = images.push(images.configured(), images.build(images.configured(), bento, {}), "pumps", "mended")
    with Callers(f"{load_balancer.start(memory.run).url}/pumps/predict") as callers:
        assert rollout.roll_out_version(memory, first, image)["outcome"] == "released"
    assert set(callers.said) == {200} and {each.image for each in fleet.running(memory.run, "pumps")} == {image}
    memory.ledger.record("imaged", {"version": first, "image": f"{image[:-64]}{'0' * 64}"})  # made since, and never served
    assert artifact_of(memory, first) == image and rollout.served(memory)


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, RuntimeError])
def test_a_canary_that_ends_in_ctrl_c_or_with_the_balancer_is_taken_back(two_versions, monkeypatch, stopped):
    memory, first, second = two_versions
    front = load_balancer.start(memory.run)

    def ends(*_: object, **__: object) -> None:
        if stopped is RuntimeError:
            os.kill(front.pid, signal.SIGKILL)
            wait(lambda: not front.alive)
        raise stopped

    monkeypatch.setattr(canary, "_watched", ends)
    with pytest.raises(stopped):
        rollout.roll_out_version(memory, second, artifact_of(memory, second))
    assert routes.routed_challenger(memory.run, "pumps") == [] and load_balancer.start(memory.run).url == front.url
    assert {each.version for each in fleet.running(memory.run, "pumps")} == {first} and rollout.served(memory)
    assert memory.ledger.events()[-1].kind == "release_failed" and memory.ledger.state().champion == first


def unreachable(*_: object, **__: object) -> None:
    """A stand-in for a registry that nobody can reach: the tests share theirs."""
    raise images.APIError("no route to the registry")
