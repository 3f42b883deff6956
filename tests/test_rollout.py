"""What a rollout does without replicas: a digest handed
on, profiles shipped, one at a time, a rollback first."""

import os
import signal
import subprocess
import sys
import threading
from datetime import datetime

import numpy as np
import pytest

from contracts.core.binning import Bins, monitored_columns
from contracts.core.errors import PerennialError
from contracts.pumps import readings
from deployments import fleet, kustomize, load_balancer, processes, routes
from flows.releasing import kubernetes, rollout_lock, serving
from flows.training.judging import judge
from flows.training.version import fit_version
from service import profiles
from service.atomic_files import write_atomically
from tests.conftest import PUMPS

IMAGE = f"registry.example.org/pumps@sha256:{'a' * 64}"


def test_a_version_is_handed_to_a_cluster_by_its_digest(pumps, tmp_path):
    version = fit_version(pumps)
    assert judge(pumps, version).passed
    done = kubernetes.release_to_kubernetes(pumps, version, IMAGE, tmp_path / "image")
    assert kustomize.current_image(tmp_path / "image") == IMAGE
    assert (done["before"], pumps.ledger.state().champion) == (None, version)
    kubernetes.release_to_kubernetes(pumps, version, IMAGE, tmp_path / "image")
    kinds = [event.kind for event in pumps.ledger.events()]
    assert kinds.count("promoted") == kinds.count("released") == 1


def test_a_version_that_did_not_pass_is_handed_to_nobody(pumps, tmp_path):
    with pytest.raises(PerennialError, match="verdict"):
        kubernetes.release_to_kubernetes(pumps, fit_version(pumps), IMAGE, tmp_path / "image")
    assert not (tmp_path / "image").exists() and pumps.ledger.state().champion is None


def test_shipping_goes_on_until_it_is_told_to_end_and_then_ships_a_last_time(pumps):
    command = [sys.executable, "-c", "from flows.cli import main; main()", "ship", PUMPS, "--every", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as shipping:
        try:
            leave(pumps, "one-0.bin")
            assert processes.wait_until(lambda: stored(pumps) == {"one-0.bin"}, 30)
            os.kill(shipping.pid, signal.SIGSTOP)  # else the next round, not the last one, might ship it
            leave(pumps, "two-0.bin")
            os.kill(shipping.pid, signal.SIGTERM)
            os.kill(shipping.pid, signal.SIGCONT)
            said, _ = shipping.communicate(timeout=30)
        finally:
            shipping.kill()
    assert shipping.returncode == 0 and "2 new or changed profiles" in said
    assert stored(pumps) == {"one-0.bin", "two-0.bin"}


def leave(context, name: str) -> None:
    columns = context.contract.columns_of(readings(datetime(2024, 2, 19), datetime(2024, 2, 20)))
    even = np.full((len(columns["heat"]), 2), 0.5)
    rows = (columns, even, even.argmax(axis=1))
    bins = {name: Bins.of(*column) for name, column in monitored_columns(context.contract, *rows).items()}
    view = profiles.profile_rows(context.contract, bins, *rows)
    write_atomically(context.spool / "pumps" / ("f" * 64) / "20240219T000000" / name, profiles.to_bytes(view))


def stored(context) -> set[str]:
    return {key.rsplit("/", 1)[-1] for key in context.store.list("profiles/pumps/")}


def test_one_rollout_at_a_time_and_a_rollback_is_heard_by_the_one_under_way(pumps):
    assert not rollout_lock.is_under_way(pumps)
    went = threading.Event()

    def back() -> None:
        with rollout_lock.exclusive_rollout(pumps, urgent=True):
            went.set()

    with rollout_lock.exclusive_rollout(pumps, urgent=False):
        assert rollout_lock.is_under_way(pumps) and not rollout_lock.is_rollback_waiting(pumps)
        waiting = threading.Thread(target=back)
        waiting.start()
        assert processes.wait_until(lambda: rollout_lock.is_rollback_waiting(pumps), 5) and not went.is_set()
    waiting.join()
    assert went.is_set()
    assert not rollout_lock.is_rollback_waiting(pumps) and not rollout_lock.is_under_way(pumps)


def test_a_second_serve_of_a_model_is_refused(pumps):
    with serving.serving(pumps), pytest.raises(PerennialError,
                                               match=r"is served .* already"), serving.serving(pumps):
        pass


def test_the_end_of_one_model_leaves_the_other_and_the_last_one_takes_the_balancer(addresses):
    run = addresses / "run"
    for model in ("one", "other"):
        load_balancer.start(run)
        routes.route(run, model, ["http://127.0.0.1:9"], "v")
    fleet.stop_model(run, "one")
    assert (routes.champion_urls(run, "other") and not routes.champion_urls(run, "one")
            and load_balancer.recorded(run).is_alive)
    fleet.stop_model(run, "other")
    assert not (run / "balancer.json").exists()


def test_the_flag_of_a_rollback_that_was_killed_holds_nobody_up(pumps):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    pumps.run.mkdir(parents=True, exist_ok=True)
    rollout_lock._rollback_flag(pumps).write_text(str(ended.pid))
    assert not rollout_lock.is_rollback_waiting(pumps)
