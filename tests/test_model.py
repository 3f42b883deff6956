"""Preprocessing and booster are one object; the same bytes from the same rows; loading runs no code."""

import json
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest

from contracts.core.calibration import CALIBRATION_FILE, Calibration
from contracts.core.errors import PerennialError
from contracts.flights import contract as flights
from contracts.pumps import contract as pumps
from flows.training.dataset import read_training_set
from service.model import (
    FORMAT,
    FORMAT_WITHOUT_LAYER,
    PANDAS_ROWS,
    SERVED,
    columns_of_records,
    load_model,
    records_of_columns,
)


@pytest.fixture(scope="module")
def rows():
    return flights.source(datetime(2013, 1, 1), datetime(2013, 1, 22))


@pytest.fixture(scope="module")
def january(rows):
    return flights.columns_of(rows), flights.labels_of(rows)


@pytest.fixture(scope="module")
def model(rows, tmp_path_factory):
    return read_training_set(flights, [rows], len(rows), datetime.max,
                             tmp_path_factory.mktemp("training")).fit(12)


def saved(model, folder):
    for name, content in model.files().items():
        (folder / name).write_bytes(content)
    return folder


def some(columns, chosen):
    return {name: values[chosen] for name, values in columns.items()}


def test_saved_and_restored_it_answers_the_same_to_the_last_bit(january, model, tmp_path):
    again = load_model(flights, saved(model, tmp_path))
    assert np.array_equal(again.probabilities(january[0]), model.probabilities(january[0]))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".ubj"}


def test_one_record_and_many_go_through_the_same_code(january, model):
    columns = some(january[0], slice(0, 40))
    together = model.probabilities(columns)
    alone = np.vstack([model.probabilities(some(columns, slice(i, i + 1))) for i in range(40)])
    assert np.array_equal(together, alone) and together.dtype == np.float32


def test_records_survive_json(january, model):
    columns = some(january[0], slice(0, 300))
    records = json.loads(json.dumps(records_of_columns(flights, columns), allow_nan=False))
    back = columns_of_records(flights, records)
    assert np.array_equal(model.matrix(back), model.matrix(columns), equal_nan=True)
    assert any(record["wind_gust"] is None for record in records)


LAYER = Calibration((0.3, -0.1, -0.2), 1.2)


def test_a_layer_is_saved_beside_the_same_booster_and_restored_to_the_last_bit(january, model, tmp_path):
    recalibrated = replace(model, calibration=LAYER)
    files, before = recalibrated.files(), model.files()
    assert {*files} - {*before} == {CALIBRATION_FILE}
    assert files[f"{SERVED}.ubj"] == before[f"{SERVED}.ubj"]
    again = load_model(flights, saved(recalibrated, tmp_path))
    answers = again.probabilities(january[0])
    assert again.calibration == LAYER and np.array_equal(answers, recalibrated.probabilities(january[0]))
    assert np.array_equal(answers, LAYER.apply(model.probabilities(january[0])))
    assert np.abs(answers - model.probabilities(january[0])).max() > 0.01
    one_by_one = [again.probabilities(some(january[0], slice(i, i + 1))) for i in range(40)]
    assert np.array_equal(np.vstack(one_by_one), answers[:40]) and answers.dtype == np.float32


def test_an_older_reader_is_not_served_a_layer_that_it_would_leave_out(model):
    formats = [json.loads(one.files()[f"{SERVED}.json"])["format"]
               for one in (model, replace(model, calibration=LAYER))]
    assert formats == [FORMAT_WITHOUT_LAYER, FORMAT] and FORMAT > FORMAT_WITHOUT_LAYER


def test_unknown_and_missing_categories_are_told_apart_and_predicted(january, model):
    columns = some(january[0], slice(0, 3)) | {"carrier": np.array(["UA", "ZZ", None], dtype=object)}
    codes = model.matrix(columns)[:, [feature.name for feature in flights.features].index("carrier")]
    assert codes[0] > 0 and codes[1] == 0 and np.isnan(codes[2])
    assert np.allclose(model.probabilities(columns).sum(axis=1), 1, atol=1e-6)


def test_many_rows_have_the_codes_that_each_has_alone(january, model):
    columns = {name: values.copy() for name, values in january[0].items()}
    columns["carrier"][:4] = ["ZZ", None, np.nan, "UA"]
    parts = [model.matrix(some(columns, slice(start, start + 500)))
             for start in range(0, len(january[1]), 500)]
    assert len(january[1]) > PANDAS_ROWS
    assert np.array_equal(model.matrix(columns), np.vstack(parts), equal_nan=True)


def test_the_weights_decide_which_class_is_named(model):
    probabilities = np.array([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1]])
    assert [flights.label.classes[k] for k in model.classes(probabilities)] == ["late", "on_time"]


def test_another_contracts_model_and_a_newer_format_are_refused(model, tmp_path):
    with pytest.raises(PerennialError, match="perennial train pumps"):
        load_model(pumps, saved(model, tmp_path))
    state = json.loads((tmp_path / f"{SERVED}.json").read_bytes())
    (tmp_path / f"{SERVED}.json").write_text(json.dumps(state | {"format": FORMAT + 1}))
    with pytest.raises(PerennialError, match="upgrade perennial"):
        load_model(flights, tmp_path)


def test_more_snow_does_not_make_a_flight_more_punctual(january, model):
    columns = some(january[0], slice(0, 500))
    clear = columns | {"precip": np.zeros(500), "visib": np.full(500, 10.0)}
    storm = columns | {"precip": np.full(500, 0.4), "visib": np.full(500, 0.5)}
    assert model.probabilities(storm)[:, 0].mean() < model.probabilities(clear)[:, 0].mean()
