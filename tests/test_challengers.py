"""Several challengers of one training: which rows each learns from, and which the gate's verdicts choose."""

from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest

import flows.train
from contracts.core.challenger_policy import ALL_ROWS, Challenger
from contracts.core.challengers import RowChoice, best_challenger
from contracts.core.errors import ContractError, PerennialError
from contracts.core.policies import Gate
from contracts.pumps import contract, readings
from flows.ingest import ingest_batch
from flows.train import train
from flows.training import booster
from flows.training.dataset import read_training_set
from flows.training.version import code_digest, preprocess_rows, save_version
from registry import data, models
from registry.context import ModelContext, open_model
from registry.events import Registered
from tests.conftest import PUMPS

START, END = datetime(2024, 1, 1), datetime(2024, 2, 5)
DAY = timedelta(days=1)
RECENT = Challenger("recent rows alone", newest=14 * DAY)
WEIGHTED = Challenger("recent rows weighted", half_life=7 * DAY)


def times(days: int) -> np.ndarray:
    return np.datetime64(START, "s") + np.arange(days) * np.timedelta64(1, "D")


def test_a_row_of_one_half_life_counts_half_and_all_count_one_in_the_mean():
    choice = RowChoice.of(WEIGHTED, times(28), START + 28 * DAY)
    weights = choice.weights(times(28))
    assert weights[-8] / weights[-1] == pytest.approx(0.5, rel=1e-5) and weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    assert RowChoice.of(ALL_ROWS, times(28), START + 28 * DAY).weights(times(28)) is None


def test_only_the_newest_rows_are_chosen():
    choice = RowChoice.of(RECENT, times(28), START + 28 * DAY)
    assert choice.since == START + 14 * DAY and choice.weights(times(3)) is None
    with pytest.raises(PerennialError, match="'recent rows alone' has no row"):
        RowChoice.of(RECENT, times(3), START + 28 * DAY)


@pytest.mark.parametrize(("challengers", "said"), [
    ((), "challengers"), ((RECENT, replace(RECENT, newest=DAY)), "with different names"),
    ((Challenger("x", half_life=timedelta(0)),), "half_life of 'x'"),
    ((Challenger("x", newest=-DAY),), "newest of 'x'")])
def test_a_contract_names_sound_challengers(challengers, said):
    with pytest.raises(ContractError, match=said):
        replace(contract, challengers=challengers)


def trained_on(challenger, older, folder, monkeypatch) -> tuple[np.ndarray, np.ndarray | None]:
    """The times and weights of the rows that XGBoost is given."""
    seen, whole = [], booster.dmatrix
    rows = readings(START, END)
    monkeypatch.setattr(booster, "dmatrix", lambda given, block: seen.append(block) or whole(given, block))
    with closing(read_training_set(contract, [rows], len(rows), END - 7 * DAY, folder)) as training_set:
        training_set.of(challenger).fit(3, older=older)
    [block] = seen
    return block.times, block.weights


def test_each_trains_on_its_rows_and_the_twin_on_those_before_the_judged_window(tmp_path, monkeypatch):
    for older, latest in ((False, END), (True, END - 7 * DAY)):
        found, weights = trained_on(RECENT, older, tmp_path, monkeypatch)
        assert weights is None and found.min() >= np.datetime64(latest - 14 * DAY - timedelta(minutes=10))
        assert found.max() < np.datetime64(latest) and len(found) == pytest.approx(14 * 400, abs=20)
        found, weights = trained_on(WEIGHTED, older, tmp_path, monkeypatch)
        assert weights.mean() == pytest.approx(1, abs=0.01) and weights[-1] > 3 * weights[0]
        assert found.min() < np.datetime64(START + DAY)
        assert trained_on(ALL_ROWS, older, tmp_path, monkeypatch)[1] is None


def probabilities(right: np.ndarray, noise: float, seed: int) -> np.ndarray:
    logit = np.log(right / (1 - right)) + np.random.default_rng(seed).normal(0, noise, len(right))
    p = 1 / (1 + np.exp(-logit))
    return np.stack([1 - p, p], axis=1).astype(np.float32)


def test_a_better_one_is_chosen_and_of_two_alike_the_simpler():
    rng = np.random.default_rng(0)
    right = rng.beta(2, 3, 4_000)
    labels = (rng.random(4_000) < right).astype(np.int64)
    limits = Gate(window=7 * DAY, log_loss=1, auc=0.5, calibration_error=1, recall={})
    good, alike, bad = (probabilities(right, noise, seed) for noise, seed in ((0.3, 1), (0.3, 2), (1.5, 3)))
    assert best_challenger(limits, labels, [good]) == 0
    assert best_challenger(limits, labels, [good, alike]) == 0
    assert best_challenger(limits, labels, [alike, good]) == 0
    assert best_challenger(limits, labels, [bad, good, alike]) == 1
    assert best_challenger(limits, labels, [good, bad]) == 0
    assert best_challenger(limits, labels, [good, good.copy()]) == 0


@pytest.fixture
def context(server, addresses, monkeypatch) -> ModelContext:
    """Five weeks of the pumps' readings; a training makes three challengers."""
    opened = open_model(PUMPS)
    ingest_batch(opened, START, END)
    several = replace(opened, contract=replace(contract, challengers=(ALL_ROWS, WEIGHTED, RECENT)))
    monkeypatch.setattr(flows.train, "open_model", lambda _: several)
    return several


def test_a_training_makes_and_judges_all_and_tells_which_it_chose(context, monkeypatch):
    shown = []
    monkeypatch.setattr(flows.train, "show_challengers", lambda *given: shown.append(given))
    done = train(PUMPS, release=False)
    state = context.ledger.state()
    made = [event.data for event in context.ledger.events() if isinstance(event.data, Registered)]
    assert [one.challenger for one in made] == [None, WEIGHTED.name, RECENT.name]
    assert {*state.verdicts} == {*state.versions} and len(state.versions) == 3
    assert done["version"] == state.versions[0]  # nothing drifts: the simplest
    [(_, names, verdicts, chosen)] = shown
    assert chosen == done["version"] and {*names} == {*verdicts} == {*state.versions}
    manifest = models.manifest(context.store, PUMPS, state.versions[1])
    assert manifest["challenger"]["name"] == WEIGHTED.name
    assert not list((context.run / "training").iterdir())


def test_what_one_challenger_makes_does_not_depend_on_the_others(context):
    source = data.newest(context.store, PUMPS)
    rows = preprocess_rows(context, source, code_digest(context.contract))
    versions = [save_version(context, source, rows, one) for one in (WEIGHTED, ALL_ROWS, WEIGHTED)]
    assert versions[0] == versions[2] != versions[1]
    assert "challenger" not in models.manifest(context.store, PUMPS, versions[1])
