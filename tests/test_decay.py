"""Checks on labels: a broken relation of features and label is found, ordinary windows are not."""

from dataclasses import replace
from datetime import timedelta

import msgspec
import numpy as np
import pytest

from contracts.core.decay import judge_outcomes
from contracts.core.decay_reasons import decay_reasons, missing_evidence
from contracts.core.loading import load_contract
from contracts.core.ordinary import OutcomeBaseline, decode_baseline, encode_baseline, expected_loss
from contracts.core.outcome_baseline import learn_baseline
from contracts.core.outcome_measures import (
    BLOCKS,
    BLOCKS_A_WINDOW,
    areas,
    block_length,
    block_of,
    calibration_bins,
    measures,
)
from contracts.core.outcome_sums import OutcomeSums, SlicedSums
from contracts.core.outcome_verdict import OutcomeFigures, OutcomeMeasure
from contracts.core.policies import Drift
from flows.training.blocks import Block
from flows.training.out_of_time import OutOfTime, baseline_of

CLASSES = ("on_time", "late", "disrupted")
WEEK, MONDAY = timedelta(days=7), np.datetime64("2024-01-01", "s")
Window = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def week(seed: int, rows: int, storm: float = 0.5) -> Window:
    """Labels, probabilities, event times and carriers of one week of a sound model: on some days more rows
    are late than it knows."""
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.random(rows)) * 7 * 86_400
    times = MONDAY + np.timedelta64(seed % 50 * WEEK) + seconds.astype("timedelta64[s]")
    score = rng.normal(0, 1, rows)
    day = (times - MONDAY).astype("timedelta64[D]").astype(int) % 7
    promised = np.stack([1.5 - score, 0 * score, 0.8 * score - 0.7], axis=1)
    truth = promised + np.stack([-storm * rng.normal(0, 1, 7)[day], 0 * score, 0 * score], axis=1)
    chosen = (truth + rng.gumbel(size=truth.shape)).argmax(axis=1)
    carriers = np.array(["AA", "B6", "DL", "UA"], object)[rng.integers(0, 4, rows)]
    return chosen, softmax(promised), times, carriers


def softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


def sums(window: Window) -> SlicedSums:
    labels, probabilities, times, carriers = window
    return SlicedSums.of(labels, probabilities, {BLOCKS: block_of(times, WEEK), "carrier": carriers})


def learnt(storm: float = 0.5, weeks: int = 8, rows: int = 4_000) -> OutcomeBaseline:
    blocks = []
    for number in range(weeks):
        labels, probabilities, times, carriers = week(number, rows, storm)
        places = block_of(times, WEEK)
        blocks += [SlicedSums.of(labels[here], probabilities[here], {"carrier": carriers[here]})
                   for here in (places == place for place in np.unique(places))]
    found = learn_baseline(blocks, BLOCKS_A_WINDOW)
    assert found is not None
    return found


BASELINE, STORMY, POLICY = learnt(0.0), learnt(1.0), Drift()


def judged(window: Window, baseline: OutcomeBaseline | None = BASELINE,
           policy: Drift = POLICY) -> OutcomeFigures:
    return judge_outcomes(policy, CLASSES, sums(window), baseline)


def broken(window: Window, share: float = 1.0, where: str | None = None) -> Window:
    """The window with a share of the labels, or those of one carrier, drawn without regard to the features:
    the class shares stay."""
    labels, probabilities, times, carriers = window
    rng = np.random.default_rng(len(labels))
    chosen = rng.random(len(labels)) < share if where is None else carriers == where
    changed = labels.copy()
    changed[chosen] = rng.permutation(labels[chosen])
    return changed, probabilities, times, carriers


@pytest.mark.parametrize(("baseline", "storm"), [(BASELINE, 0.0), (STORMY, 1.0)])
def test_ordinary_weeks_are_not_decayed(baseline, storm):
    found = [judged(week(100 + seed, rows, storm), baseline).failed
             for rows in (200, 1_000, 5_000) for seed in range(40)]
    assert sum(map(bool, found)) <= 2


@pytest.mark.parametrize(("share", "rows"), [(1.0, 1_000), (1 / 3, 5_000)])
def test_a_relation_that_is_broken_or_a_third_of_it_is_found(share, rows):
    found = [judged(broken(week(200 + seed, rows, 0.0), share)) for seed in range(20)]
    assert sum(bool(figures.failed) for figures in found) >= 19
    assert not any(check.measure is OutcomeMeasure.CLASS_SHARES for figures in found
                   for check in figures.failed)


def test_what_storms_do_is_ordinary_where_there_were_storms_and_decay_where_there_were_none():
    stormy = [week(300 + seed, 5_000, 1.0) for seed in range(10)]
    assert sum(bool(judged(window, BASELINE).failed) for window in stormy) >= 5
    assert sum(bool(judged(window, STORMY).failed) for window in stormy) <= 1
    assert sum(bool(judged(broken(window), STORMY).failed) for window in stormy) >= 9


def test_a_relation_broken_for_one_carrier_alone_names_it():
    figures = judged(broken(week(400, 8_000, 0.0), where="B6"))
    assert figures.failed and figures.slice == "carrier B6"
    assert all(check.slice in ("", "carrier B6") for check in figures.failed)
    assert "carried by carrier B6" in decay_reasons(figures)[0]


def test_since_when_is_told():
    whole, half = week(500, 8_000, 0.0), week(500, 8_000, 0.0)
    late = whole[2] >= whole[2].min() + np.timedelta64(4, "D")
    labels = np.where(late, broken(half)[0], whole[0])
    figures = judged((labels, *whole[1:]))
    since = np.datetime64(figures.since)
    assert abs(since - (whole[2].min() + np.timedelta64(4, "D"))) <= np.timedelta64(18, "h")


def test_the_figures_are_those_of_the_rows():
    window = week(600, 20_000, 0.0)
    figures = judged(window)
    assert figures.rows == 20_000 and figures.windows == 1
    assert figures.loss == pytest.approx(figures.loss_promised, abs=0.02)
    assert figures.loss_trained == pytest.approx(figures.loss, abs=0.02)
    assert figures.loss < figures.naive_loss
    assert set(figures.auc) == set(CLASSES)
    for name, area in figures.auc.items():
        assert area == pytest.approx(figures.auc_promised[name], abs=0.02)
    inside = [bin.low <= bin.observed <= bin.high for bins in figures.calibration.values() for bin in bins]
    assert len(inside) == 30 and sum(inside) >= 25
    assert msgspec.convert(msgspec.to_builtins(figures), OutcomeFigures) == figures


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    labels, probabilities, _, _ = week(700, 5_000)
    found = areas(OutcomeSums.of(labels, probabilities))
    for index, (area, _) in found.items():
        assert area == pytest.approx(roc_auc_score(labels == index, probabilities[:, index]), abs=0.002)


@pytest.mark.parametrize(("rows", "coverage", "why"), [
    (199, None, "199 labelled rows, 200 are needed"), (0, None, "0 labelled rows, 200 are needed"),
    (200, None, None),
    (300, 0.79, "labels of 79% of the logged predictions"), (300, 0.8, None)])
def test_checks_that_cannot_run_say_why(rows, coverage, why):
    figures = judge_outcomes(POLICY, CLASSES, sums(week(800, rows)), BASELINE, coverage=coverage)
    if why:
        assert not figures.checks and all(why in check.why for check in figures.not_run)
        assert {check.measure for check in figures.not_run} == {*OutcomeMeasure}
        assert missing_evidence(figures)[0].endswith("no check of them could run")
    else:
        assert {check.measure for check in figures.checks if not check.slice} == {*OutcomeMeasure}
        assert not missing_evidence(figures)


def test_a_class_with_few_rows_has_no_area_and_one_class_alone_none_at_all():
    labels, probabilities, times, carriers = week(900, 1_000)
    one_class = (np.zeros_like(labels), probabilities, times, carriers)
    figures = judged(one_class)
    assert not figures.auc
    without = {check.measure: check.why for check in figures.not_run}
    assert "too few rows by class: on_time 1000, late 0, disrupted 0" in without[OutcomeMeasure.AUC_PROMISED]
    few = labels.copy()
    few[np.flatnonzero(labels == 2)[9:]] = 0
    assert set(judged((few, probabilities, times, carriers)).auc) == {"on_time", "late"}


def test_a_version_without_a_baseline_is_held_to_its_promises_alone():
    figures = judged(week(1_000, 3_000, 0.0), None)
    assert not figures.failed
    assert {check.measure for check in figures.not_run} == {
        OutcomeMeasure.LOSS_TRAINED, OutcomeMeasure.AUC_TRAINED, OutcomeMeasure.NAIVE}
    assert judged(broken(week(1_000, 3_000, 0.0)), None).failed


def test_a_model_no_better_than_the_class_shares_is_not_fine():
    labels, _, times, carriers = week(1_100, 250, 0.0)
    scores = np.random.default_rng(0).normal(0, 0.3, (250, 3))
    worse = softmax(scores + np.log(BASELINE.shares))
    figures = judged((labels, worse, times, carriers))
    naive = next(check for check in figures.checks if check.measure is OutcomeMeasure.NAIVE)
    assert naive.effect > 0 and not naive.failed
    assert "no better than that of the class shares" in missing_evidence(figures)[0]
    inverted = judged((labels, softmax(-3 * worse), times, carriers))
    assert any(check.measure is OutcomeMeasure.NAIVE for check in inverted.failed)


def test_a_threshold_set_by_hand_holds_and_chance_is_allowed_for():
    window = week(1_200, 4_000, 0.0)
    shifted = np.where(np.arange(4_000) % 12 == 0, 2, window[0])
    failed = [{check.measure for check in judged((shifted, *window[1:]), BASELINE, replace(
        POLICY, label_gap=gap)).failed} for gap in (0.005, 0.5)]
    assert [OutcomeMeasure.CLASS_SHARES in measures_ for measures_ in failed] == [True, False]


def test_the_smallest_effect_that_counts_is_the_contracts():
    window = broken(week(1_300, 20_000, 0.0), 0.1)
    assert judged(window, policy=replace(POLICY, min_decay=0.01)).failed
    assert not [check for check in judged(window, policy=replace(POLICY, min_decay=0.3)).failed
                if check.measure is not OutcomeMeasure.CALIBRATION]


def test_a_baseline_needs_two_windows_and_survives_json():
    labels, probabilities, times, carriers = week(1, 2_000)
    places = block_of(times, WEEK)
    blocks = [SlicedSums.of(labels[here], probabilities[here], {"carrier": carriers[here]})
              for here in (places == place for place in np.unique(places))]
    assert learn_baseline(blocks, BLOCKS_A_WINDOW) is None
    assert decode_baseline(encode_baseline(STORMY)) == STORMY
    calm, stormy = (found.whole[OutcomeMeasure.LOSS_PROMISED].spread for found in (BASELINE, STORMY))
    assert stormy > 2 * calm
    assert sum(STORMY.shares) == pytest.approx(1)


def test_blocks_without_a_row_are_a_part_of_their_window():
    """Of a shop that is open from 9 to 17: its weeks are as long as others."""
    contract, rng = load_contract("flights"), np.random.default_rng(0)
    days = np.repeat(np.arange(56), 100)
    seconds = np.sort(days * 86_400 + (9 + 8 * rng.random(len(days))) * 3_600).astype(int)
    labels, probabilities, _, _ = week(1, len(days), 0.0)
    block = Block(np.zeros((len(days), 1), np.float32), labels.astype(np.float32),
                  MONDAY + seconds.astype("timedelta64[s]"))
    found = baseline_of(contract, block, OutOfTime(np.arange(len(days)), probabilities), {})
    # From the block that starts at 6 on the first day to that from 12 on the last.
    assert found.whole[OutcomeMeasure.LOSS_PROMISED].windows == 55 / 2
    assert len(found.estimate_errors) == 7
    assert baseline_of(contract, block, OutOfTime(np.zeros(0, int), probabilities[:0]), {}) is None


@pytest.mark.parametrize(("window", "length"), [
    (timedelta(days=7), timedelta(hours=6)), (timedelta(hours=1), timedelta(minutes=2)),
    (timedelta(minutes=5), timedelta(minutes=1))])
def test_a_windows_blocks_are_whole_minutes_and_begin_where_windows_do(window, length):
    assert block_length(window) == length
    start = np.datetime64("2024-01-01T00:00:00")
    times = start + np.array([0, 1, length.seconds - 1, length.seconds], "timedelta64[s]")
    assert (block_of(times, window) - start).tolist() == [timedelta(0)] * 3 + [length]


def test_probabilities_of_nought_and_one_and_few_rows_give_finite_figures():
    labels = np.array([0, 1, 2] * 100)
    sure = np.eye(3, dtype=np.float32)[(labels + (np.arange(300) % 10 == 0)) % 3]
    found = measures(SlicedSums.of(labels, sure, {}))
    assert all(np.isfinite([value.value, value.error, value.skewness]).all() for value in found.values())
    assert calibration_bins(OutcomeSums.of(labels, sure), 0)
    assert measures(SlicedSums.empty(3)) == {}


def test_the_interval_of_an_estimate_is_that_of_its_own_errors():
    from scipy.stats import t

    errors = [0.02, -0.01, 0.05, 0.0, 0.03]
    low, high = expected_loss(0.5, errors)
    margin = t.isf(0.025, 4) * np.std(errors, ddof=1) * np.sqrt(1 + 1 / 5)
    assert (low, high) == (pytest.approx(0.518 - margin, abs=1e-3), pytest.approx(0.518 + margin, abs=1e-3))
    assert expected_loss(0.5, errors[:2]) is None and expected_loss(0.01, errors)[0] == 0
