"""A layer is released without new replicas: those that run take it over between two requests."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest

import flows.releasing.layers
from contracts.core.calibration import Calibration
from contracts.core.errors import ReleaseFailed
from contracts.core.policies import Recalibration
from contracts.pumps import contract, readings
from deployments import fleet, routes
from flows.ingest import ingest_batch
from flows.recalibration.due import due_recalibration
from flows.recalibration.judging import record_recalibrated
from flows.recalibration.version import register_recalibrated, save_recalibrated
from flows.releasing import rollout
from flows.releasing.image import artifact_of
from flows.releasing.rollout import is_served, roll_out_version
from flows.training.judging import judge
from flows.training.version import fit_version
from registry.clock import is_simulated, set_clock
from registry.context import ModelContext, fetch_version, open_model
from registry.layers import publish_champion, publish_layer, served_layer
from registry.predictions import NUMBER, REPLICA, prediction_files, read_predictions
from registry.traffic import ship
from service.layers import LayerFollower, ServedLayer, layer_path, read_layer, write_layer
from service.model import load_model, records_of_columns
from tests.conftest import PUMPS
from tests.verdicts import gate_verdict

START, END = datetime(2024, 1, 1), datetime(2024, 1, 22)
MONDAY = datetime(2024, 2, 12)


# The file and who follows it.

def layer(version: str, bias: float = 0.1) -> ServedLayer:
    return ServedLayer(base="b", version=version, manifest={"version": version},
                       calibration=Calibration((bias, -bias)))


def test_a_layer_is_read_as_it_was_written_and_another_bases_is_not_taken(tmp_path):
    assert read_layer(tmp_path, "pumps", "b") is None
    write_layer(tmp_path, "pumps", layer("v"))
    assert read_layer(tmp_path, "pumps", "b") == layer("v") and read_layer(tmp_path, "pumps", "c") is None
    layer_path(tmp_path, "pumps", "c").write_bytes(layer_path(tmp_path, "pumps", "b").read_bytes())
    assert read_layer(tmp_path, "pumps", "c") is None
    layer_path(tmp_path, "pumps", "b").write_text("{")
    assert read_layer(tmp_path, "pumps", "b") is None


def test_the_same_layer_is_not_written_again(tmp_path):
    write_layer(tmp_path, "pumps", layer("v"))
    path = layer_path(tmp_path, "pumps", "b")
    before = path.stat().st_ino
    write_layer(tmp_path, "pumps", layer("v"))
    assert path.stat().st_ino == before
    write_layer(tmp_path, "pumps", layer("w"))
    assert path.stat().st_ino != before


def test_a_follower_takes_each_change_once_and_outlives_what_it_can_t_take(tmp_path):
    taken = []

    def take(found):
        taken.append(found.version)
        if found.version == "bad":
            raise ValueError("no layer of mine")

    write_layer(tmp_path, "pumps", layer("known"))
    follower = LayerFollower(tmp_path, "pumps", "b", take, interval=0.01)
    follower.start()
    try:
        for version in ("bad", "good"):
            write_layer(tmp_path, "pumps", layer(version))
            assert wait(lambda version=version: version in taken)
        layer_path(tmp_path, "pumps", "b").write_text("{")
        time.sleep(0.1)
        write_layer(tmp_path, "pumps", layer("last"))
        assert wait(lambda: "last" in taken)
    finally:
        follower.close()
    assert taken == ["bad", "good", "last"]


def wait(is_true, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := is_true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return done


# Real replicas behind the load balancer.

@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The pumps' first version, served by two replicas; one recalibrated from it passed the gate."""
    home = tmp_path_factory.mktemp("layers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_STORE", str(home / "store"))
        patch.setenv("PERENNIAL_RUN", str(home / "run"))
        patch.setenv("PERENNIAL_PROFILE_SECONDS", "0.3")
        context = open_model(PUMPS)
        if is_simulated():
            set_clock(datetime(2024, 3, 19, tzinfo=UTC))
        ingest_batch(context, START, END)
        base = fit_version(context)
        judge(context, base)
        roll_out_version(context, base, artifact_of(context, base))
        ingest_batch(context, END, MONDAY)
        context = replace(context, contract=replace(contract, recalibration=Recalibration()))
        yield context, base, recalibrated(context, base)
    fleet.stop_all(context.run)


def recalibrated(context: ModelContext, champion: str) -> str:
    version = register_recalibrated(context, save_recalibrated(context, due_recalibration(context)))
    record_recalibrated(context, version, champion, gate_verdict())
    return version


@contextmanager
def callers(context: ModelContext):
    """Callers who ask one after another; the answers, and what failed."""
    records = records_of_columns(contract, contract.columns_of(readings(MONDAY, datetime(2024, 2, 13))))[:40]
    url, stop = routes.model_url(context.run, PUMPS), threading.Event()
    answers, failures = [], []

    def ask():
        with httpx.Client(timeout=20) as client:
            while not stop.is_set():
                reply = client.post(f"{url}/predict", json={"records": records})
                (answers if reply.status_code == 200 else failures).append(reply.json())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield records, answers, failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def pids(context: ModelContext) -> set[int]:
    return {server.pid for server in fleet.running(context.run, PUMPS)}


def test_running_replicas_take_a_layer_over_and_back_and_no_request_fails(served):
    context, base, version = served
    before = pids(context)
    with callers(context) as (records, answers, failures):
        assert wait(lambda: len(answers) > 20)
        result = roll_out_version(context, version, artifact_of(context, version))
        assert result["outcome"] == "released" and len(result["checked"]) == rollout.REPLICAS
        assert result["before"] == base and result["canary"] is None
        so_far = len(answers)
        assert wait(lambda: len(answers) > so_far + 20)
        assert {answer["version"] for answer in answers[so_far + 8:]} == {version}
        roll_out_version(context, base, artifact_of(context, base),
                         lambda _: context.ledger.roll_back("a test", base))
        so_far = len(answers)
        assert wait(lambda: len(answers) > so_far + 20)
        assert {answer["version"] for answer in answers[so_far + 8:]} == {base}
    assert failures == [] and pids(context) == before and is_served(context)
    # Every answer is that of the version that it names, to the last bit, whatever happened meanwhile.
    expected = {one: json.loads(json.dumps(load_model(contract, fetch_version(context, one)).probabilities(
        contract.columns_of(readings(MONDAY, datetime(2024, 2, 13)).head(40))).tolist()))
        for one in (base, version)}
    for answer in answers:
        said = [[*prediction["probabilities"].values()] for prediction in answer["predictions"]]
        assert np.array_equal(np.float32(said), np.float32(expected[answer["version"]]))
    # And it is logged and profiled under that version, each prediction once.
    answered = Counter()
    for answer in answers:
        answered[answer["version"]] += len(answer["predictions"])

    def logged(one):
        ship(context)
        tables = read_predictions(context, prediction_files(context, one, MONDAY))
        return len({pair for table in tables
                    for pair in zip(table[REPLICA].to_pylist(), table[NUMBER].to_pylist())})
    assert wait(lambda: {one: logged(one) for one in answered} == answered), (answered, logged(base))
    ids = [prediction["id"] for answer in answers for prediction in answer["predictions"]]
    assert len({*ids}) == len(ids) == len(answers) * len(records)


def test_what_the_fleet_and_model_say_and_a_replica_that_starts_later(served):
    context, base, version = served
    roll_out_version(context, version, artifact_of(context, version))
    servers = fleet.running(context.run, PUMPS)
    assert {server.version for server in servers} == {version} and is_served(context)
    told = httpx.get(f"{servers[0].url}/model").json()
    assert told["version"] == version and told["layer"]["base"] == base
    fleet.stop(servers[:1], context.run, PUMPS)
    assert not is_served(context)
    roll_out_version(context, version, artifact_of(context, version))
    again = fleet.running(context.run, PUMPS)
    assert {server.version for server in again} == {version} and len(again) == rollout.REPLICAS
    assert servers[1].pid in {server.pid for server in again} and is_served(context)
    roll_out_version(context, base, artifact_of(context, base),
                     lambda _: context.ledger.roll_back("a test", base))


def test_replicas_that_do_not_take_it_over_go_on_as_before(served, monkeypatch):
    context, base, version = served
    before, whole = pids(context), flows.releasing.layers.publish_layer
    with monkeypatch.context() as patch:
        patch.setattr(flows.releasing.layers, "TAKEN_WITHIN", 0.5)
        patch.setattr(flows.releasing.layers, "publish_layer",
                      lambda context, one: None if one == version else whole(context, one))
        with pytest.raises(ReleaseFailed, match="the replicas answer as"):
            roll_out_version(context, version, artifact_of(context, version))
    assert context.ledger.state().champion == base and pids(context) == before and is_served(context)
    assert [event.kind for event in context.ledger.events()][-2:] == ["release_failed", "rolled_back"]


def test_killed_between_the_ledger_and_the_file_the_release_of_the_champion_finishes_it(served, monkeypatch):
    context, base, version = served
    before = pids(context)

    class PowerFails(BaseException):
        pass

    def fail(*_):
        raise PowerFails

    with monkeypatch.context() as patch:
        patch.setattr(flows.releasing.layers, "publish_layer", fail)
        with pytest.raises(PowerFails):
            roll_out_version(context, version, artifact_of(context, version))
    assert context.ledger.state().champion == version and not is_served(context)
    roll_out_version(context, version, artifact_of(context, version))
    assert is_served(context) and pids(context) == before


def test_a_sidecar_tells_replicas_of_the_champion(served, tmp_path):
    """As in a pod, or under docker-compose: the folder is shared with replicas that no release reaches."""
    context, base, version = served
    pod = replace(context, run=tmp_path)
    champion = context.ledger.state().champion
    publish_champion(pod)
    found = read_layer(pod.spool, PUMPS, base)
    assert found == served_layer(context, champion) and found.version == champion
    publish_layer(pod, base)
    assert read_layer(pod.spool, PUMPS, base).calibration is None
