"""The power fails between any two writes; the same thing run again ends as if it had not."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
import pytest
from msgspec.structs import replace as replace_struct

import flows.ingest
import flows.training.judging
from contracts.core import windows
from contracts.core.policies import Recalibration
from contracts.core.verdict import Outcome
from contracts.pumps import contract, readings
from deployments import fleet, processes, replicas, routes
from flows.ingest import ingest_batch
from flows.monitoring.decision import record_and_decide
from flows.monitoring.evaluation import evaluate_window
from flows.monitoring.windows import known_labels
from flows.recalibration.due import DueRecalibration, due_recalibration
from flows.recalibration.judging import evaluate_recalibrated, record_recalibrated
from flows.recalibration.version import register_recalibrated, save_recalibrated
from flows.releasing import bento, rollout
from flows.releasing.bento import build_bento
from flows.training.judging import champion_probabilities, judge
from flows.training.version import fit_version
from registry import bad_rows, data
from registry.clock import is_simulated, set_clock
from registry.context import ModelContext, fetch_version, open_model
from registry.events import Ingested
from registry.folder_store import FolderStore
from registry.ledger import Ledger
from registry.settings import CLOCK
from registry.traffic import ship
from service import profiles
from service.atomic_files import write_atomically
from service.model import load_model
from tests.conftest import PUMPS
from tests.test_cli import ROOT, perennial

START, END, WEEK = datetime(2024, 1, 1), datetime(2024, 1, 22), timedelta(days=7)


class PowerFails(BaseException):
    """Not an Exception: nothing may catch it and tidy up."""


class Fuse:
    """Lets so many writes through, to the store and to Delta tables, and then fails at every one."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.left: float = float("inf")
        for owner, name in ((FolderStore, "create"), (FolderStore, "swap"), (data, "write_deltalake"),
                            (bad_rows, "write_deltalake")):
            patch.setattr(owner, name, self._limited(getattr(owner, name)))

    def _limited(self, write):
        def limited(*arguments, **named):
            if self.left < 1:
                raise PowerFails
            self.left -= 1
            return write(*arguments, **named)
        return limited


@pytest.fixture
def fuse(monkeypatch) -> Fuse:
    # A new process that answers the samples costs two seconds and writes nothing: left out here alone.
    monkeypatch.setattr(flows.training.judging, "disagreement", lambda *_: 0.0)
    return Fuse(monkeypatch)


@pytest.fixture
def base(addresses, fuse):
    """Three weeks ingested."""
    context = open_model(PUMPS)
    ingest_batch(context, START, END)
    return context


def in_every_way_it_may_fail(context: ModelContext, fuse: Fuse, run, end_state) -> int:
    """Run from the same store with 0, 1, 2, … writes before
    the power fails, then again; how many writes there are."""
    store, kept = context.store.folder, context.run.parent / "kept"
    shutil.copytree(store, kept)
    run(open_model(PUMPS))
    expected = end_state(open_model(PUMPS))
    for writes in count():
        shutil.rmtree(store)
        shutil.copytree(kept, store)
        again, fuse.left = open_model(PUMPS), writes
        try:
            run(again)
            return writes
        except PowerFails:
            fuse.left = float("inf")
            run(open_model(PUMPS))
            assert end_state(open_model(PUMPS)) == expected, f"after {writes} writes"
        finally:
            fuse.left = float("inf")


def kinds(context: ModelContext) -> list[str]:
    return [event.kind for event in context.ledger.events()]


def test_an_ingest(base, fuse, monkeypatch):
    batch = readings(END, END + WEEK)
    batch.loc[3, "vibration"] = 1_000.0
    monkeypatch.setattr(flows.ingest, "read_source", lambda *_: batch)

    def end_state(context):
        newest = data.newest(context.store, "pumps")
        return newest.digest, newest.rows, len(
            data.read(context.store, newest)), len(bad_rows.read(context.store, "pumps")), kinds(context)

    assert (in_every_way_it_may_fail(base, fuse, lambda context: ingest_batch(context, END, END + WEEK),
                                     end_state) == 4)


def test_a_look(base, addresses, fuse, monkeypatch):
    """The next look finds the rows known: the version that the other made is recorded all the same."""
    monkeypatch.setenv(CLOCK, str(addresses / "clock"))
    set_clock((END + WEEK).replace(tzinfo=UTC))
    batch = readings(END, END + WEEK)
    batch.loc[3, "vibration"] = 1_000.0
    batch = batch.head(1_000)

    def rows_of(_, start, end, *__):
        return batch[(batch["measured_at"] >= start) & (batch["measured_at"] < end)]

    def end_state(context):
        newest, ingested = data.newest(context.store, "pumps"), context.ledger.state().of_kind(Ingested)
        return newest.digest, len(data.read(context.store, newest)), kinds(context), ingested

    monkeypatch.setattr(flows.ingest, "read_source", rows_of)
    in_every_way_it_may_fail(base, fuse, ingest_batch, end_state)
    newest, [*_, told] = data.newest(base.store, "pumps"), base.ledger.state().of_kind(Ingested)
    assert (told.data, told.bad, told.changed_from) == (newest.digest, 1, newest.changed_from)


def train_and_promote(context: ModelContext) -> None:
    version = fit_version(context)
    before = context.ledger.state().champion
    verdict = judge(context, version)
    if verdict.passed and before != version:
        context.ledger.promote(version, expect=before)


def test_a_training_and_its_promotion(base, fuse):
    def end_state(context):
        state = context.ledger.state()
        files = {key for key in context.store.list("models/")}
        return state.champion, state.versions, kinds(context), files

    assert in_every_way_it_may_fail(base, fuse, train_and_promote, end_state) > 8


def test_a_windows_verdict(base, fuse):
    train_and_promote(base)
    ingest_batch(base, END, END + WEEK)
    champion = base.ledger.state().champion
    traffic, late = readings(END, END + WEEK), datetime(2024, 3, 4)
    traffic["heat"] += 40
    columns = contract.columns_of(traffic)
    model = load_model(contract, fetch_version(base, champion))
    probabilities = model.probabilities(columns)
    bins = profiles.bins_in(fetch_version(base, champion))
    seen = profiles.profile_rows(contract, bins, columns, probabilities, model.classes(probabilities))
    write_atomically(base.spool / "pumps" / champion / END.strftime(windows.WINDOW_FORMAT) / "one-0.bin",
                     profiles.to_bytes(seen))
    assert late > END

    def run(context):
        ship(context)
        verdict = evaluate_window(context, END)
        assert verdict.kind == "input drift"
        assert record_and_decide(context, END, verdict, known_labels(context)) == "retrain"

    def end_state(context):
        return kinds(context), context.ledger.state().windows.keys(), context.store.list("profiles/")

    assert in_every_way_it_may_fail(base, fuse, run, end_state) == 3


def test_a_recalibration_and_its_promotion(base, fuse):
    train_and_promote(base)
    ingest_batch(base, END, END + WEEK)
    first = base.ledger.state().champion

    def run(context):
        context = replace(context, contract=replace(contract, recalibration=Recalibration()))
        due = due_recalibration(context)
        if not isinstance(due, DueRecalibration):  # the run before has promoted it
            return
        version = register_recalibrated(context, save_recalibrated(context, due))
        verdict = replace_struct(evaluate_recalibrated(context, version, due.champion),
                                 outcome=Outcome.PASSED)
        record_recalibrated(context, version, due.champion, verdict)
        context.ledger.promote(version, expect=due.champion)

    def end_state(context):
        state = context.ledger.state()
        assert state.base_of(state.champion) == first
        return state.champion, state.layers, kinds(context), {*context.store.list("models/")}

    assert in_every_way_it_may_fail(base, fuse, run, end_state) > 8


STEPS = [(replicas, "start"), (Ledger, "promote"), (routes, "route")]


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory):
    """A store with two versions and their bentos; the second
    passed the gate and is not promoted yet. One replica serves."""
    home = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_STORE", str(home / "store"))
        patch.setenv("PERENNIAL_RUN", str(home / "run"))
        context = open_model(PUMPS)
    if is_simulated():
        set_clock(datetime(2024, 3, 19, tzinfo=UTC))  # the servers' clock: later than the rows of this test
    ingest_batch(context, START, datetime(2024, 2, 12))
    train_and_promote(context)
    first = context.ledger.state().champion
    ingest_batch(context, datetime(2024, 2, 12), datetime(2024, 3, 18))
    second = fit_version(context)
    assert judge(context, second).passed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "REPLICAS", 1)
        yield context, first, second
    fleet.stop_all(context.run)


@pytest.mark.parametrize(("room", "step"), STEPS, ids=[step for _, step in STEPS])
def test_a_release(two_versions, tmp_path, monkeypatch, room, step):
    """Killed right after a step: what served goes on, and
    the release run again finishes with nothing left over."""
    context, first, second = two_versions
    store = tmp_path / "store"
    shutil.copytree(context.store.folder, store)
    context = ModelContext(contract, FolderStore(store), Ledger(FolderStore(store), "pumps"), context.run)
    rollout.roll_out_version(context, first, build_bento(context, first))
    bento = build_bento(context, second)

    whole = getattr(room, step)

    def killed(*arguments, **named):
        whole(*arguments, **named)
        raise PowerFails

    with monkeypatch.context() as patch:
        patch.setattr(room, step, killed)
        with pytest.raises(PowerFails):
            rollout.roll_out_version(context, second, bento)
    assert routes.champion_urls(context.run, "pumps")
    assert all(processes.is_answering(f"{url}/readyz") for url in routes.champion_urls(context.run, "pumps"))

    rollout.roll_out_version(context, second, bento)
    running = replicas.running(context.run, "pumps")
    assert [one.version for one in running] == [second] * rollout.REPLICAS
    assert (sorted(one.url for one in running) == routes.champion_urls(context.run, "pumps")
            and rollout.is_served(context))
    assert context.ledger.state().champion == second
    assert [kinds(context).count(kind) for kind in ("promoted", "released", "release_failed")] == [2, 2, 0]


@pytest.mark.parametrize("model", [(), ("pumps",)])
def test_down_ends_what_a_release_started(two_versions, tmp_path, model):
    context, first, _ = two_versions
    shutil.copytree(context.store.folder, tmp_path / "store")
    context = ModelContext(contract, FolderStore(tmp_path / "store"),
                           Ledger(FolderStore(tmp_path / "store"), "pumps"), context.run)
    rollout.roll_out_version(context, first, bento.build_bento(context, first))
    environ = {"PERENNIAL_RUN": str(context.run), "PERENNIAL_STORE": context.store.address,
               "PERENNIAL_DEMO": str(tmp_path / "demo"), "PYTHONPATH": str(ROOT)}
    said = perennial("down", *model, **environ)
    assert said.returncode == 0 and "ended pumps (1 replicas)" in said.stdout, said.stderr
    assert routes.routed_models(context.run) == replicas.running(context.run, "pumps") == []
    assert "no model served" in perennial("down", *model, **environ).stdout


def test_killed_before_the_old_replicas_are_retired_the_reconciler_notices(two_versions, tmp_path,
                                                                           monkeypatch):
    context, first, second = two_versions
    shutil.copytree(context.store.folder, tmp_path / "store")
    context = ModelContext(contract, FolderStore(tmp_path / "store"),
                           Ledger(FolderStore(tmp_path / "store"), "pumps"), context.run)
    rollout.roll_out_version(context, first, bento.build_bento(context, first))

    def killed(*_, **__):
        raise PowerFails

    with monkeypatch.context() as patch:
        patch.setattr(rollout, "_stop_others", killed)
        with pytest.raises(PowerFails):
            rollout.roll_out_version(context, second, bento.build_bento(context, second))
    assert len(replicas.running(context.run, "pumps")) == 2 and not rollout.is_served(context)
    rollout.roll_out_version(context, second, bento.build_bento(context, second))
    assert len(replicas.running(context.run, "pumps")) == 1 and rollout.is_served(context)


def test_a_champion_with_other_features_is_asked_over_http(two_versions):
    """A data scientist adds or drops a feature: the challenger is still judged against what serves."""
    context, first, _ = two_versions
    rollout.roll_out_version(context, first, bento.build_bento(context, first))
    rows = readings(datetime(2024, 2, 12), datetime(2024, 2, 14))
    fewer = ModelContext(replace(contract, features=contract.features[:2]), context.store, context.ledger,
                         context.run)
    same = champion_probabilities(context, first, rows)
    asked = champion_probabilities(fewer, first, rows)
    assert np.array_equal(same, asked) and len(asked) == len(rows)
