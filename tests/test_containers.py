"""Model versions as images and containers: reproducible, unprivileged, restarted, released, rolled back."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest

from contracts.core import errors
from contracts.core.errors import ReleaseFailed
from deployments import containers, fleet, load_balancer, routes
from deployments.processes import free_ports, is_answering, wait_until
from flows.ingest import ingest_batch
from flows.releasing import canary, replica_check, rollout
from flows.releasing.bento import build_bento
from flows.releasing.image import artifact_of, ship_image
from flows.releasing.rollback import roll_back
from flows.reporting.status import facts
from flows.training.judging import judge
from flows.training.version import SAMPLES, fit_version
from registry import images
from registry.context import ModelContext, fetch_version, open_model
from registry.events import Imaged, ShadowJudged
from registry.images import Images
from service import profiles
from tests.conftest import PUMPS

pytestmark = pytest.mark.containers
REGISTRY = "127.0.0.1:5000"


@pytest.fixture(scope="module")
def prefix():
    """An unused prefix in the registry; its images are removed from the engine afterwards."""
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
    """The flights version and the image that was pushed of it."""
    context, version = flights_version
    return context, version, ship_image(context, version, flights_bento)


@pytest.fixture(scope="module")
def container(shipped):
    context, version, image = shipped
    environ = {"PERENNIAL_PROFILES": str(context.spool)}
    [started] = containers.start(image, version, 1, context.run, context.name, environ)
    try:
        fleet.wait_ready([started])
        yield started
    finally:
        containers.stop([started], context.run, context.name)


def attributes(reference: str) -> dict:
    return images.present(reference).attrs


def test_an_image_is_labelled_with_its_origin_and_unprivileged(shipped):
    context, version, image = shipped
    attrs = attributes(image)
    assert attrs["Size"] <= 450e6
    labels = attrs["Config"]["Labels"]
    assert (labels["perennial.model"], labels["perennial.version"]) == ("flights", version)
    assert {"perennial.bento", "perennial.data", "perennial.contract", "org.opencontainers.image.revision",
            "org.opencontainers.image.base.digest"} <= set(labels)
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert attrs["Config"]["User"] == images.USER and attrs["Config"]["Healthcheck"]
    assert not any("pypi" in line or "index" in line for line in attrs["Config"]["Env"])
    assert context.ledger.state().of_kind(Imaged) == [Imaged(version=version, image=image)]


def test_the_image_has_no_compiler_and_no_git(container):
    for program in ("gcc", "cc", "g++", "git", "perl", "pip", "make"):
        assert exit_code(container, "command", "-v", program) != 0


def exit_code(container, *command: str) -> int:
    """The exit code of a command that is run in a container."""
    engine_container = images.engine().containers.get(container.name)
    return engine_container.exec_run(["bash", "-c", " ".join(command)]).exit_code


def test_a_container_runs_unprivileged_on_a_read_only_file_system(container):
    user = os.getuid() or int(images.USER.split(":")[0])  # see containers._profile_writer
    assert exit_code(container, f'test "$(id -u)" = {user}') == 0
    assert exit_code(container, "touch", "/bento/x") != 0 and exit_code(container, "touch", "/opt/x") != 0
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert psutil.Process(container.pid).uids().real == user
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status


def test_a_container_answers_like_the_trainer_and_writes_profiles(container, shipped):
    context, version, _ = shipped
    assert replica_check.answers_like_trainer(context, container)["records"] == SAMPLES
    records = json.loads((fetch_version(context, version) / "samples.json").read_bytes())["records"]
    assert httpx.post(f"{container.url}/predict", json={"records": records}).status_code == 200
    assert wait_until(lambda: profiled_rows(context, version) == len(records), 30)


def profiled_rows(context: ModelContext, version: str) -> int:
    """Rows in all the profiles that replicas of a version have written."""
    files = context.spool.glob(f"{context.name}/{version}/*/*.bin")
    return sum(profiles.rows(profiles.merge([path.read_bytes()])) for path in files)


def test_docker_reports_the_container_healthy(container):
    assert wait_until(lambda: containers._engine_state(container)["Health"]["Status"] == "healthy", 30)


def test_a_killed_container_is_restarted(container):
    pid = container.pid
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: container.deaths == 1 and container.pid not in (0, pid)
                      and is_answering(f"{container.url}/readyz"), 30)


def test_the_same_version_built_twice_has_the_same_digest(shipped, tmp_path, monkeypatch):
    context, version, image = shipped
    monkeypatch.setenv("PERENNIAL_RUN", str(tmp_path))
    other_run = ModelContext(context.contract, context.store, context.ledger, tmp_path)
    assert ship_image(other_run, version, build_bento(other_run, version)) == image
    assert len(context.ledger.state().of_kind(Imaged)) == 1


def test_a_second_version_adds_one_small_layer(shipped, flights_bento, prefix, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(flights_bento, other)
    (other / "src" / "model" / "more.txt").write_text("another version")
    first = attributes(shipped[2])
    second = images.build(Images(prefix, network="host"), other, {}).attrs
    assert first["RootFS"]["Layers"][:-1] == second["RootFS"]["Layers"][:-1]
    assert first["RootFS"]["Layers"][-1] != second["RootFS"]["Layers"][-1]
    assert abs(second["Size"] - first["Size"]) < 5e6


def test_a_failed_push_can_be_repeated(flights_version, flights_bento, prefix, monkeypatch):
    context, version = flights_version
    [free] = free_ports(1)
    with monkeypatch.context() as patch:
        patch.setenv("PERENNIAL_IMAGES", f"127.0.0.1:{free}/away")
        with pytest.raises(ReleaseFailed, match=r"was not pushed.*The champion goes on"):
            ship_image(context, version, flights_bento)
    assert ship_image(context, version, flights_bento).startswith(prefix)


def test_a_tag_that_another_writer_moved_is_refused(shipped, flights_bento, prefix, monkeypatch):
    where = Images(prefix)
    image = images.present(shipped[2])
    other = type("Data", (), {"id": "sha256:" + "0" * 64})  # a mock, since a real one would race the push
    monkeypatch.setattr(type(images.engine().images), "get_registry_data", lambda *_: other)
    with pytest.raises(ReleaseFailed, match="somebody else writes this name"):
        images.push(where, image, "flights", "again")


def test_without_an_engine_the_error_names_its_address(monkeypatch, flights_version, flights_bento, prefix):
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(errors.Unavailable, match="no container engine answers at tcp://127"):
        ship_image(*flights_version, flights_bento)


@pytest.fixture(scope="module")
def two_versions(prefix, tmp_path_factory):
    """Two versions of pumps that passed the gate; the first is champion, in containers behind Traefik."""
    home = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_STORE", str(home / "store"))
        patch.setenv("PERENNIAL_RUN", str(home / "run"))
        context = open_model(PUMPS)
        ingest_batch(context, datetime(2024, 1, 1), datetime(2024, 2, 12))
        first = train_version(context)
        rollout.roll_out_version(context, first, ship_image(context, first, build_bento(context, first)))
        ingest_batch(context, datetime(2024, 2, 12), datetime(2024, 3, 18))
        second = train_version(context)
        try:
            yield context, first, second
        finally:
            fleet.stop_all(context.run)
        left = images.engine().containers.list(all=True, filters={"label": f"perennial.run={context.run}"})
        assert left == []


def train_version(context: ModelContext) -> str:
    """Train a version that passes the gate."""
    version = fit_version(context)
    assert judge(context, version).passed
    return version


def running_versions(context: ModelContext) -> set[str]:
    return {replica.version for replica in fleet.running(context.run, context.name)}


class Callers:
    """Four callers that send requests until the block ends; `results` counts statuses and errors."""

    def __init__(self, url: str):
        self.url, self.results, self.ended, self.versions = url, Counter(), threading.Event(), set()
        self.threads = [threading.Thread(target=self.send_requests) for _ in range(4)]

    def send_requests(self) -> None:
        reading = {"measured_at": "2024-03-20T12:00:00", "vibration": 8.0, "heat": 60.0, "starts": 3}
        with httpx.Client(timeout=30) as client:
            while not self.ended.wait(0.02):
                try:
                    reply = client.post(self.url, json={"records": [reading]})
                    self.results[reply.status_code] += 1
                    self.versions.add(reply.json()["version"])
                except httpx.HTTPError as error:
                    self.results[repr(error)] += 1

    def __enter__(self) -> "Callers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()


def test_a_release_and_a_rollback_without_prefect_and_registry_lose_no_request(two_versions, monkeypatch):
    context, first, second = two_versions
    balancer = load_balancer.start(context.run)
    monkeypatch.setenv("PERENNIAL_STORE", context.store.address)
    monkeypatch.setenv("PERENNIAL_RUN", str(context.run))
    with Callers(f"{balancer.url}/pumps/predict") as callers:
        image = ship_image(context, second, build_bento(context, second))
        done = rollout.roll_out_version(context, second, image)
        assert (done["outcome"], done["canary"]["outcome"]) == ("released", "passed")
        assert httpx.get(f"{balancer.url}/pumps/model").json()["version"] == second
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        monkeypatch.setattr(type(images.engine().images), "pull", fail_unreachable)
        monkeypatch.setattr(type(images.engine().images), "push", fail_unreachable)
        start = time.monotonic()
        roll_back(PUMPS, "previous", "the test asked")
        assert time.monotonic() - start < 30
    assert set(callers.results) == {200}
    assert httpx.get(f"{balancer.url}/pumps/model").json()["version"] == first
    assert context.ledger.state().champion == first
    assert running_versions(context) == {first}
    assert context.ledger.events()[-1].kind in ("rolled_back", "released")
    status = facts(PUMPS)
    assert [replica["version"] for replica in status["replicas"]] == [first, first]
    assert status["callers"] == f"{balancer.url}/pumps"


def test_a_challenger_that_fails_requests_is_refused_and_callers_get_no_errors(two_versions, tmp_path):
    context, first, second = two_versions
    bento = tmp_path / "bad"
    shutil.copytree(build_bento(context, second), bento)
    app = bento / "src" / "service" / "app.py"
    source = app.read_text()
    branch = "        if not sample:\n"
    app.write_text(source.replace(branch, f"{branch}            1 / 0\n", 1))
    assert app.read_text() != source
    image = images.build(images.configured(), bento, {})
    balancer = load_balancer.start(context.run)
    with Callers(f"{balancer.url}/pumps/predict") as callers:
        reference = images.push(images.configured(), image, "pumps", "bad")
        done = rollout.roll_out_version(context, second, reference)
    assert (done["outcome"], done["canary"]["kind"]) == ("refused", "errors")
    assert set(callers.results) == {200} and context.ledger.state().champion == first
    assert running_versions(context) == {first} and rollout.is_served(context)
    last = context.ledger.events()[-1]
    assert last.kind == "release_failed" and "failed" in last.data.why


def test_a_shadow_is_compared_and_callers_get_only_the_champions_answers(two_versions):
    context, first, second = two_versions
    balancer = load_balancer.start(context.run)
    with Callers(f"{balancer.url}/pumps/predict") as callers:
        verdict = canary.shadow(context, second, artifact_of(context, second), share=0.5)
    assert verdict.passed
    assert verdict.figures.challenger.answered >= context.contract.rollout.requests
    assert set(callers.results) == {200} and callers.versions == {first} and rollout.is_served(context)
    assert context.ledger.state().of_kind(ShadowJudged)[-1].version == second
    assert profiled_rows(context, second) > 0


def test_a_rebuilt_image_of_the_champion_takes_over_and_is_used_by_rollbacks(two_versions, tmp_path):
    context, first, _ = two_versions
    bento = tmp_path / "rebuilt"
    shutil.copytree(build_bento(context, first), bento)
    (bento / "src" / "update.txt").write_text("for example a security update")
    image = images.push(images.configured(), images.build(images.configured(), bento, {}), "pumps", "rebuilt")
    with Callers(f"{load_balancer.start(context.run).url}/pumps/predict") as callers:
        assert rollout.roll_out_version(context, first, image)["outcome"] == "released"
    assert set(callers.results) == {200}
    assert {replica.image for replica in fleet.running(context.run, "pumps")} == {image}
    never_served = f"{image[:-64]}{'0' * 64}"
    context.ledger.record(Imaged(version=first, image=never_served))
    assert artifact_of(context, first) == image and rollout.is_served(context)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_canary_that_is_interrupted_or_loses_the_balancer_is_withdrawn(two_versions, monkeypatch, error):
    context, first, second = two_versions
    balancer = load_balancer.start(context.run)

    def interrupt(*_: object, **__: object) -> None:
        if error is RuntimeError:
            os.kill(balancer.pid, signal.SIGKILL)
            assert wait_until(lambda: not balancer.is_alive, 30)
        raise error

    monkeypatch.setattr(canary, "_await_verdict", interrupt)
    with pytest.raises(error):
        rollout.roll_out_version(context, second, artifact_of(context, second))
    assert routes.challenger_urls(context.run, "pumps") == []
    assert load_balancer.start(context.run).url == balancer.url
    assert running_versions(context) == {first} and rollout.is_served(context)
    assert context.ledger.events()[-1].kind == "release_failed" and context.ledger.state().champion == first


def fail_unreachable(*_: object, **__: object) -> None:
    """Fail as if the registry, which all tests share, could not be reached."""
    raise images.APIError("no route to the registry")
