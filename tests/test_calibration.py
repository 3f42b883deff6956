"""The recalibration layer: it finds what was done to probabilities, and does little on little evidence."""

import msgspec
import numpy as np
import pytest

from contracts.core.calibration import MAX_BIAS, Calibration, fit_calibration


def right_probabilities(rows: int, classes: int = 3) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.arange(classes, 0, -1) * 1.5, rows)


def labels_of(probabilities: np.ndarray) -> np.ndarray:
    chances = np.random.default_rng(1).random((len(probabilities), 1))
    return (probabilities.cumsum(axis=1) < chances).sum(axis=1).clip(max=probabilities.shape[1] - 1)


def distorted(probabilities: np.ndarray, layer: Calibration) -> np.ndarray:
    """Probabilities that become these ones by the layer."""
    scores = (np.log(probabilities) - np.asarray(layer.bias)) * layer.temperature
    return (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("layer", [Calibration((0.4, -0.1, -0.3), 1.5), Calibration((-0.5, 0.5, 0.0), 0.7),
                                   Calibration((0.3, -0.3))])
def test_it_recovers_the_bias_and_the_temperature(layer):
    right = right_probabilities(60_000, len(layer.bias))
    found = fit_calibration(labels_of(right), distorted(right, layer))
    assert np.allclose(found.bias, layer.bias, atol=0.03)
    assert found.temperature == pytest.approx(layer.temperature, rel=0.03)


def test_applied_it_undoes_what_was_done():
    layer, right = Calibration((0.4, -0.1, -0.3), 1.5), right_probabilities(100)
    applied = layer.apply(distorted(right, layer))
    assert np.allclose(applied, right, atol=1e-5) and applied.dtype == np.float32
    assert np.allclose(applied.sum(axis=1), 1, atol=1e-6)


def test_none_leaves_every_bit():
    probabilities = right_probabilities(100).astype(np.float32)
    assert Calibration.none(3).is_none and Calibration.none(3).apply(probabilities) is probabilities
    assert not Calibration((0.0, 0.1, 0.0)).is_none and not Calibration((0.0, 0.0, 0.0), 1.1).is_none


def test_few_rows_change_little_and_many_what_they_show():
    layer = Calibration((0.6, -0.1, -0.5), 1.0)
    right = right_probabilities(40_000)
    labels, answered = labels_of(right), distorted(right, layer)
    of_few, of_many = (fit_calibration(labels[:n], answered[:n], shrinkage=1_000) for n in (20, 40_000))
    assert max(map(abs, of_few.bias)) < 0.05 and abs(of_few.temperature - 1) < 0.05
    assert np.allclose(of_many.bias, layer.bias, atol=0.06)
    sizes = [np.abs(fit_calibration(labels[:2_000], answered[:2_000], shrinkage=shrinkage).bias).max()
             for shrinkage in (0, 1_000, 10_000, 100_000)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 10 * sizes[-1]


def test_shrinkage_is_counted_in_rows():
    """As many rows as speak for a change speak against it: about half of it is made."""
    answered = np.tile(np.array([0.55, 0.45]), (100_000, 1))
    labels = (np.arange(100_000) % 2).astype(np.int64)
    free, half = (fit_calibration(labels, answered, shrinkage=rows).bias[0] for rows in (0, 100_000))
    assert free < -0.05 and 0.4 < half / free < 0.75


def test_no_rows_make_no_layer():
    empty = np.zeros(0, np.int64), np.zeros((0, 3))
    assert fit_calibration(*empty).is_none and fit_calibration(*empty, shrinkage=10).is_none


def test_an_absent_class_is_rarer_and_stays_possible():
    probabilities = np.tile(np.array([0.6, 0.3, 0.1], np.float32), (1_000, 1))
    labels = np.arange(1_000) % 3 // 2  # of the first two classes alone
    free, shrunk = (fit_calibration(labels, probabilities, shrinkage=shrinkage) for shrinkage in (0, 1_000))
    assert all(map(np.isfinite, free.bias)) and abs(min(free.bias)) <= 2 * MAX_BIAS
    rarer = shrunk.apply(probabilities)[0, 2]
    assert 0.01 < rarer < 0.1 and free.apply(probabilities)[0, 2] < 0.001


def test_extreme_probabilities_stay_probabilities():
    extreme = np.array([[1, 0, 0], [0, 1, 0], [1 - 1e-7, 1e-7, 0], [1 / 3, 1 / 3, 1 / 3]], np.float32)
    found = fit_calibration(np.array([1, 1, 0, 2]), extreme, shrinkage=1)
    for layer in (found, Calibration((9.0, 0.0, -9.0), 0.1), Calibration((0.0, 0.0, 1.0), 10.0)):
        applied = layer.apply(extreme)
        assert np.isfinite(applied).all() and (applied >= 0).all()
        assert np.allclose(applied.sum(axis=1), 1, atol=1e-6)
    assert np.isnan(found.apply(np.full((1, 3), np.nan, np.float32))).all()


def test_weights_count_as_repetitions():
    right = right_probabilities(400)
    labels, answered = labels_of(right), distorted(right, Calibration((0.4, 0.0, -0.4)))
    weights = np.arange(400) % 3
    by_weight = fit_calibration(labels, answered, weights, shrinkage=50)
    repeated = fit_calibration(np.repeat(labels, weights), np.repeat(answered, weights, axis=0), shrinkage=50)
    assert np.allclose(by_weight.bias, repeated.bias, atol=1e-5)


def test_the_same_rows_give_the_same_layer_and_json_keeps_it():
    right = right_probabilities(500)
    layers = {fit_calibration(labels_of(right), right, shrinkage=10) for _ in range(3)}
    [layer] = layers
    assert msgspec.json.decode(msgspec.json.encode(layer), type=Calibration) == layer
