"""One file per model states it all; what is derived from it, and what it refuses."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from msgspec import convert
from prefect.client.schemas.schedules import CronSchedule

from contracts.core.diff import diff_contracts
from contracts.core.digests import digest_of
from contracts.core.errors import ContractError
from contracts.core.features import number
from contracts.core.gate_verdict import GateVerdict
from contracts.core.loading import load_contract
from contracts.core.policies import Rollout, Schedule, TrainingLimits
from contracts.core.schema import column
from contracts.core.verdict import as_json
from contracts.flights import contract as flights
from contracts.pumps import Pumps
from contracts.pumps import contract as pumps
from tests.verdicts import gate_verdict

AFTER = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]


def changed(description, path, value):
    """A copy of a description with the value at a dotted path replaced."""
    head, _, rest = path.partition(".")
    inner = changed(description[head], rest, value) if rest else value
    return {**description, head: inner}


def test_no_feature_of_flights_is_known_only_after_departure():
    needed = {name for feature in flights.features for name in feature.needs}
    assert needed.isdisjoint(AFTER)
    assert set(AFTER) == {name for name, spec in flights.columns.items() if spec.metadata["known"] == "after"}


@pytest.mark.parametrize("leak", AFTER)
def test_a_feature_known_only_after_the_event_is_refused_by_name(leak):
    with pytest.raises(ContractError, match=f"'{leak}', known only after the event"):
        replace(flights, features=(*flights.features, number(leak)))


def test_a_feature_of_a_column_that_the_schema_lacks_is_refused():
    with pytest.raises(ContractError, match="'shoe_size', which the schema lacks"):
        replace(flights, features=(*flights.features, number("shoe_size")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"name": "../../x"}, "name is '../../x'"), ({"name": ""}, "name is ''"),
     ({"bad_rows": 7}, "bad_rows is 7"), ({"bad_rows": -0.1}, "bad_rows is -0.1"),
     ({"stop_share": 1.0}, "stop_share is 1.0"),
     ({"label": replace(pumps.label, weights=(1.0, 2.0, 3.0))}, "one positive number for each class"),
     ({"label": replace(pumps.label, weights=(1.0, 0.0))}, "one positive number for each class"),
     ({"label": replace(pumps.label, classes=("runs", "runs"))}, "all different"),
     ({"label": replace(pumps.label, classes=("runs",))}, "two names or more"),
     ({"label": replace(pumps.label, matures=timedelta(hours=-1))}, "label.matures"),
     ({"gate": replace(pumps.gate, window=timedelta(0))}, "gate.window"),
     ({"gate": replace(pumps.gate, absolute="lenient")}, "gate.absolute is 'lenient'"),
     ({"drift": replace(pumps.drift, window=timedelta(0))}, "one or more whole minutes"),
     ({"drift": replace(pumps.drift, window=timedelta(seconds=90))}, "one or more whole minutes"),
     ({"drift": replace(pumps.drift, retrain_on=("inputdrift",))}, "out of .'decayed'"),
     ({"schedule": Schedule(data=timedelta(0))}, "schedule.data is datetime"),
     ({"schedule": Schedule(judge="hourly")}, "schedule.judge is 'hourly'"),
     ({"schedule": Schedule(time_zone="Mars/Olympus")}, "schedule.time_zone is 'Mars/Olympus'"),
     ({"schedule": Schedule(since=datetime(2024, 1, 1, tzinfo=UTC))}, "schedule.since"),
     ({"schedule": Schedule(lateness=timedelta(-1))}, "schedule.lateness"),
     ({"schedule": Schedule(stale_after=timedelta(0))}, "schedule.stale_after"),
     ({"training": TrainingLimits(memory_gb=0)}, "training.memory_gb is 0"),
     ({"training": TrainingLimits(attempts=0)}, "training.attempts is 0"),
     ({"training": TrainingLimits(time=timedelta(0))}, "training.time"),
     ({"training": TrainingLimits(start_within=timedelta(0))}, "training.start_within"),
     ({"event_time": "vibration"}, "the event time's type is 'float'")])
def test_nonsense_is_refused(changes, said):
    with pytest.raises(ContractError, match=said):
        replace(pumps, **changes)


@pytest.mark.parametrize("cron", ["0 6 * * *", "*/5 0-23/2 1,15 jan-DEC 1-5", "59 23 31 12 7",
                                  "0 0 * * sun,sat"])
def test_cron_text_that_prefect_takes_is_taken(cron):
    CronSchedule(cron=cron)
    assert replace(pumps, schedule=Schedule(data=cron)).schedule.data == cron


@pytest.mark.parametrize("cron", ["60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8",
                                  "* * * *", "*/0 * * * *", "5-1 * * * *", "a * * * *", "* * * * monday",
                                  "1,,2 * * * *", "1-2-3 * * * *", "0 6 * * * *"])
def test_cron_text_out_of_range_is_refused(cron):
    with pytest.raises(ContractError, match=r"schedule.data is .*cron text of five fields"):
        replace(pumps, schedule=Schedule(data=cron))


def test_settings_at_their_limits_are_taken():
    replace(pumps, bad_rows=0, label=replace(pumps.label, matures=timedelta(0), weights=(1.0, 2.0)),
            drift=replace(pumps.drift, window=timedelta(minutes=1), retrain_on=()))
    replace(pumps, bad_rows=1, name="pump-house_2")


@pytest.mark.parametrize(("field", "said"),
                         [(column(description="time", nullable=True), "nullability is True"),
                          (column(description="time", known="after"), "known is 'after'"),
                          (column(description="time", unique_values_eq=[1]),
                           "'unique_values_eq', which the service can't hold one record to")])
def test_an_event_time_is_there_is_sent_and_has_rules_that_the_service_can_apply(field, said):
    schema = type("Pumps", (Pumps,), {"__annotations__": {"measured_at": pd.Timestamp}, "measured_at": field})
    with pytest.raises(ContractError, match=said):
        replace(pumps, schema=schema)


def test_a_recall_limit_of_an_unknown_class_is_refused():
    with pytest.raises(ContractError, match="early"):
        replace(flights, gate=replace(flights.gate, recall={"early": 0.1}))


def test_a_cooldown_may_not_be_shorter_than_the_gates_window():
    week = timedelta(days=7)
    replace(flights, drift=replace(flights.drift, cooldown=week))
    with pytest.raises(ContractError, match="shorter than the gate's window"):
        replace(flights, drift=replace(flights.drift, cooldown=week - timedelta(hours=1)))


def test_callers_send_the_event_time_and_what_features_read():
    assert pumps.request_columns == ("measured_at", "vibration", "heat", "starts")
    assert "flight" not in flights.request_columns and flights.identifying_columns == ("flight",)


def test_windows_are_half_open_and_weeks_start_on_monday():
    start, end = flights.window_of(datetime(2013, 3, 4))
    assert (start, end) == (datetime(2013, 3, 4), datetime(2013, 3, 11))
    assert flights.window_of(end)[0] == end
    assert flights.window_of(end - timedelta(microseconds=1))[0] == start


def test_the_label_is_on_time_up_to_15_minutes_late_up_to_60_and_disrupted_beyond_or_without_arrival():
    codes = flights.label.of(np.array([-5.0, 15.0, 15.5, 60.0, 61.0, np.nan]))
    assert [flights.label.classes[code] for code in codes] == [
        "on_time", "on_time", "late", "late", "disrupted", "disrupted"]


def test_equal_contracts_have_equal_digests_and_code_is_part_of_it():
    assert flights.digest == load_contract("flights").digest == digest_of(flights.describe())
    assert replace(flights, seed=1).digest != flights.digest


def test_a_model_serves_on_while_policies_change_but_not_under_other_features():
    same = replace(flights, bad_rows=0.5, rollout=Rollout(requests=7), seed=1)
    assert same.serving_digest == flights.serving_digest
    assert replace(flights, features=flights.features[1:]).serving_digest != flights.serving_digest
    assert "arr_delay <= 60" in flights.describe()["label"]["of"]


def test_an_unknown_model_names_the_known_ones():
    with pytest.raises(ContractError, match="known: departures, flights"):
        load_contract("trains")


def test_a_verdict_survives_json():
    verdict = gate_verdict("failed", "too slow")
    assert convert(as_json(verdict), GateVerdict) == verdict


@pytest.mark.parametrize(("path", "value", "breaks"), [
    ("columns.temp.unit", "°C", True),
    ("columns.temp.nullable", False, True),
    ("columns.temp.type", "int", True),
    ("columns.temp.rules.less_than_or_equal_to.max_value", 100, True),
    ("columns.temp.rules.less_than_or_equal_to.max_value", 200, False),
    ("columns.temp.rules.less_than_or_equal_to", None, False),
    ("columns.origin.rules.isin.allowed_values", ["JFK"], True),
    ("columns.origin.rules.isin.allowed_values", ["EWR", "JFK", "LGA", "HPN"], False),
    ("columns.temp.description", "how warm it is", False),
    ("columns.arr_delay.unit", "hour", False),  # callers never send it
    ("label.classes", ["on_time", "late"], True),
    ("request", [*flights.request_columns, "flight"], True),
    ("request", list(flights.request_columns[:-1]), False),
    ("gate.auc", 0.7, False),
    ("seed", 7, False),
])
def test_a_diff_says_what_breaks_callers(path, value, breaks):
    changes = diff_contracts(flights.describe(), changed(flights.describe(), path, value))
    assert [change.path for change in changes] == [path] or path.endswith("to")
    assert bool(changes[0].breaks) == breaks


def test_equal_contracts_differ_in_nothing():
    assert diff_contracts(flights.describe(), load_contract("flights").describe()) == []
