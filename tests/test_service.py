"""The bento, served in its own process: what a caller can send, and what it gets."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from unittest.mock import MagicMock

import httpx
import numpy as np
import psutil
import pytest

from contracts.core.features import category, number
from contracts.core.schema import FIELD_RULES, column
from contracts.flights import contract as flights
from contracts.pumps import Pumps
from contracts.pumps import contract as pumps
from deployments import fleet, processes, replicas
from flows.releasing.replica_check import answers_like_trainer
from registry.context import fetch_version
from service import profiles
from service.app import AnsweringVersion, PredictionApi
from service.limits import MAX_WAITING
from service.model import load_model
from service.schema import BAD_BODY, BOUNDS, PREDICATES, RequestSchema
from tests.left_by_replicas import collect, windows

GOOD = {"departs": "2013-01-15T17:30:00", "arrives": 1200, "carrier": "UA", "origin": "EWR", "dest": "ORD",
        "distance": 719}


@pytest.fixture(scope="module")
def samples(flights_version):
    return json.loads((fetch_version(*flights_version) / "samples.json").read_bytes())


def ask(replica, body, path="/predict"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(replica.url + path, content=content, timeout=20)


def rows_of(replica, records):
    reply = ask(replica, {"records": records})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_answers_are_the_trainers_to_the_last_bit(replica, flights_version, samples):
    answer = rows_of(replica, samples["records"])
    assert answer["version"] == flights_version[1]
    got = [[one["probabilities"][name] for name in flights.label.classes] for one in answer["predictions"]]
    assert got == samples["probabilities"]


def test_each_record_gets_a_class_by_name_every_probability_and_an_id_of_its_own(replica, samples):
    predictions = rows_of(replica, samples["records"])["predictions"] + rows_of(replica,
                                                                                [GOOD])["predictions"]
    assert len({one["id"] for one in predictions}) == len(predictions)
    for one in predictions:
        assert (set(one) == {"id", "class", "probabilities"}
                and list(one["probabilities"]) == list(flights.label.classes))
        weighted = np.array(list(one["probabilities"].values())) * flights.label.class_weights
        assert one["class"] == flights.label.classes[weighted.argmax()]


def test_what_is_asked_together_is_answered_apart(replica, samples):
    records = samples["records"][:40]
    alone = [rows_of(replica, [record])["predictions"][0]["probabilities"] for record in records]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda record: rows_of(replica, [record]), records * 4))
    assert [answer["predictions"][0]["probabilities"] for answer in together] == alone * 4


def test_unknown_categories_and_missing_optional_fields_are_predictions(replica):
    strange = GOOD | {"carrier": "Z9", "origin": "LHR", "dest": "XXX"}
    assert len(rows_of(replica, [GOOD, strange, GOOD | {"temp": None}])["predictions"]) == 3


def test_every_fault_of_every_bad_record_is_named(replica):
    late = GOOD | {"departs": "1850-01-01T00:00:00"}
    reply = ask(replica,
                {"records": [GOOD, GOOD | {"temp": 400, "carrier": "united"}, {"departs": "tomorrow"}, 7,
                             late]})
    assert reply.status_code == 400
    faults = [(fault["record"], fault["field"]) for fault in reply.json()["errors"]]
    assert (faults
            == [(1, "carrier"), (1, "temp"), (2, "departs"), (2, "arrives"), (2, "carrier"), (2, "origin"),
                (2, "dest"), (2, "distance"), (3, None), (4, "departs")])
    hot = next(fault for fault in reply.json()["errors"] if fault["field"] == "temp")
    assert hot["value"] == 400 and "<= 130" in hot["rule"]


@pytest.mark.parametrize(("field", "inside", "outside"),
                         [("temp", -40, -40.1), ("temp", 130, 130.1), ("arrives", 0, -1),
                          ("arrives", 1439.9, 1440), ("distance", 10, 9.9), ("carrier", "9E", "9e"),
                          ("departs", "2000-01-01T00:00:00", "1999-12-31T23:59:59"),
                          ("departs", "2099-12-31T23:59:59", "2100-01-01T00:00:00")])
def test_both_sides_of_a_fields_limits(replica, field, inside, outside):
    rows_of(replica, [GOOD | {field: inside}])
    reply = ask(replica, {"records": [GOOD | {field: outside}]})
    assert reply.status_code == 400 and [fault["field"] for fault in reply.json()["errors"]] == [field]


@pytest.mark.parametrize("body",
                         [b"", b"{", b"null", b"[]", b"7", b'"records"', b"\xff\xfe", b'{"records": null}',
                          b'{"records": {}}', b'{"records": []}', b'{"records": [null]}',
                          b'{"records": [[]]}', b'{"records": [{}]}', b'{"record": []}',
                          b'{"records": [{"temp": NaN}]}',
                          json.dumps({"records": [GOOD | {"temp": 10**400}]}).encode(),
                          json.dumps({"records": [GOOD | {"distance": "719"}]}).encode(),
                          json.dumps({"records": [GOOD | {"departs": "2013-01-15T17:30:00+02:00"}]}).encode(),
                          json.dumps({"records": [GOOD | {"departs": 1358271000}]}).encode(),
                          json.dumps({"records": [GOOD | {"carrier": None}]}).encode(),
                          json.dumps({"records": [GOOD | {"carrier": ["UA"]}]}).encode(),
                          b'{"records": ' + b"[" * 3000 + b"]" * 3000 + b"}",
                          json.dumps({"records": [GOOD | {"carrier": "\ud800"}]}).encode(),
                          json.dumps({"records": [GOOD] * 10_001}).encode()])
def test_no_body_makes_the_service_fail(replica, body):
    reply = ask(replica, body)
    assert reply.status_code == 400 and reply.json()["errors"], reply.text
    assert all(fault["rule"] for fault in reply.json()["errors"])


class Parcels(Pumps):
    starts: int = column(description="any whole number")
    heat: float = column(description="not five", ne=5, notin=[6])
    door: int = column(description="one of two", isin=[1, 2], nullable=True)
    code: str = column(description="rules of text", str_startswith="A", str_endswith="Z", str_contains="q",
                       str_matches="A[a-z]")
    exact: str = column(description="three", str_length={"exact_value": 3}, str_matches="^a|^b", isin=["abc"])


PARCEL = {"measured_at": "2024-02-12T00:00:00", "starts": 1, "heat": 4.0, "door": 1, "code": "AqZ",
          "exact": "abc"}
parcels = replace(pumps, schema=Parcels,
                  features=(number("starts"), number("heat"), number("door"), category("code"),
                            category("exact")))


@pytest.mark.parametrize(("field", "inside", "outside"),
                         [("starts", 2**63 - 1, 2**63), ("starts", -2**63, -2**63 - 1),
                          ("starts", 0, 10**310), ("heat", 5.1, 5), ("heat", 6.1, 6.0), ("door", 2, 3),
                          ("code", "AqqZ", "BqZ"), ("code", "AqZ", "AqY"), ("code", "AaqZ", "AaZ"),
                          ("code", "AqZ", "A1qZ"), ("exact", "bcd", "abcd"), ("exact", "axx", "cab"),
                          ("door", None, 0)])
def test_callers_are_held_to_every_rule_of_one_value(field, inside, outside):
    requests = RequestSchema(parcels)
    requests.columns(requests.parse(json.dumps({"records": [PARCEL, PARCEL | {field: inside}]}).encode()))
    body = json.dumps({"records": [PARCEL, PARCEL | {field: outside}]}).encode()
    with pytest.raises(BAD_BODY) as refusal:
        requests.parse(body)
    [fault] = requests.faults(body, refusal.value)
    assert (fault["record"], fault["field"]) == (1, field) and fault["rule"]


def test_every_rule_that_a_contract_may_hold_is_held_against_callers():
    checks = {check.name for spec in parcels.columns.values() for check in spec.checks}
    assert (set(BOUNDS) | {"in_range", "isin", "str_matches", "str_length"} == FIELD_RULES
            and checks <= FIELD_RULES)
    assert set(BOUNDS.values()) <= set(PREDICATES)


@pytest.mark.parametrize(("body", "record"),
                         [(json.dumps({"records": [GOOD]})[:-3] + ', "temp": "x", "temp": 1}]}', 0),
                          (json.dumps({"records": [GOOD, GOOD]})[:-3]
                           + ', "temp": "x", "temp": 1}], "records": [' + json.dumps(GOOD) + "]}", 1),
                          ('{"records": "x", "records": [' + json.dumps(GOOD) + "]}", None)])
def test_a_key_that_is_there_twice_is_a_fault_that_is_named(replica, body, record):
    reply = ask(replica, body.encode())
    assert reply.status_code == 400
    [fault] = reply.json()["errors"]
    assert fault["record"] == record and "Expected" in fault["rule"]


def test_a_refused_record_says_when_it_was_where_that_can_be_read():
    requests = RequestSchema(flights)
    records = [GOOD | {"departs": departs}
               for departs in ("2013-01-15T17:30:00Z", "1066-10-14T09:00:00", "soon", 7)]
    found = requests.event_times(json.dumps({"records": [*records, 7, {}]}).encode(), range(6))
    assert [str(time) for time in found] == ["2013-01-15T17:30:00", "1066-10-14T09:00:00"] + ["NaT"] * 4
    assert np.isnat(requests.event_times(b"{", [None])).all()


def test_one_request_that_cannot_be_scored_fails_alone(flights_version):
    """Whatever its fault is: the requests that came in the same turn of the event loop are answered."""
    context, version = flights_version
    api = PredictionApi(flights, fetch_version(context, version), {"version": version})
    api.predicted = MagicMock()
    model = Fussy(load_model(flights, fetch_version(context, version)))
    api.answering = AnsweringVersion({"version": version}, model, api._score)

    async def turn():
        bodies = [json.dumps({"records": [GOOD | {"carrier": carrier}]}).encode()
                  for carrier in ("UA", "ZZ", "AA")]
        return await asyncio.gather(*(api.predict(body, False) for body in bodies), return_exceptions=True)

    first, guilty, last = asyncio.run(turn())
    assert first[0] == last[0] == 200 and isinstance(guilty, OverflowError)


class Fussy:
    """A model that fails on one carrier."""

    def __init__(self, model):
        self.model, self.classes = model, model.classes

    def probabilities(self, columns):
        if "ZZ" in columns["carrier"]:
            raise OverflowError
        return self.model.probabilities(columns)


def test_ten_thousand_records_are_one_request(replica):
    assert len(rows_of(replica, [GOOD] * 10_000)["predictions"]) == 10_000


def test_a_body_beyond_all_measure_is_413(replica):
    reply = ask(replica, b'{"records": [' + b" " * (33 * 2**20) + b"]}")
    assert reply.status_code == 413 and "larger than" in reply.json()["errors"][0]["rule"]


def test_a_caller_that_hangs_up_harms_nobody(replica):
    host, port = replica.url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as half:
            half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
    rows_of(replica, [GOOD])


@contextmanager
def callers(replica, count, hang_up=False):
    """Connections that have asked for one record each, all while
    the replica was stopped; it wakes up to all of them."""
    host, port = replica.url.removeprefix("http://").split(":")
    body = json.dumps({"records": [GOOD]}).encode()
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with ExitStack() as held:
        connections = [held.enter_context(socket.create_connection((host, int(port)), timeout=20))
                       for _ in range(count)]
        for each in connections:  # an answer each: all are accepted
            each.sendall(request)
            assert each.recv(65_536).startswith(b"HTTP/1.1 200 ")
        with stopped(replica):
            for each in connections:
                each.sendall(request)
                hang_up and each.close()
        yield connections


@contextmanager
def stopped(replica):
    server = psutil.Process(replica.pid)
    held = [server, *server.children(recursive=True)]
    for process in held:
        process.suspend()
    try:
        # The signal is only sent so far; on a busy machine they go on for a while.
        assert processes.wait_until(lambda: {each.status() for each in held} == {psutil.STATUS_STOPPED}, 10)
        yield
    finally:
        for process in held:
            process.resume()


def test_beyond_what_may_wait_the_answer_is_503_and_when_to_come_back(replica):
    with callers(replica, 2 * MAX_WAITING) as connections:
        heads = [each.recv(65_536).split(b"\r\n\r\n")[0].decode() for each in connections]
    refused = [head for head in heads if head.startswith("HTTP/1.1 503 ")]
    assert refused and all("retry-after: 1" in head for head in refused)
    assert (len([head for head in heads if head.startswith("HTTP/1.1 200 ")]) == len(heads) - len(refused)
            >= MAX_WAITING)
    assert counted(replica, "bentoml_service_request_total", 'http_response_code="503"') >= len(refused)
    rows_of(replica, [GOOD])


def test_who_gave_up_is_not_scored(replica):
    before = counted(replica, "perennial_predictions_total")
    with callers(replica, 100, hang_up=True):
        pass
    assert processes.wait_until(lambda: fleet.is_idle(replica), 5)
    assert counted(replica, "perennial_predictions_total") - before == 100  # those answered while connecting


@pytest.mark.parametrize("begun", [b"", b"{"])
def test_a_body_that_never_ends_is_408(replica, begun):
    host, port = replica.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n" + begun)
        head, _, answer = slow.recv(65_536).partition(b"\r\n\r\n")
        assert (head.startswith(b"HTTP/1.1 408 ")
                and "within 5 seconds" in json.loads(answer)["errors"][0]["rule"])
        assert slow.recv(1) == b""


def counted(replica, name, label=""):
    lines = httpx.get(replica.url + "/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and label in line)


def test_the_documentation_describes_each_field_with_range_and_unit(replica):
    spec = httpx.get(replica.url + "/docs.json").json()
    fields = spec["components"]["schemas"]["Record"]["properties"]
    assert set(fields) == set(flights.sent_columns)
    assert (fields["distance"]["unit"] == "mile"
            and (fields["distance"]["minimum"], fields["distance"]["maximum"]) == (10, 6000))
    assert (fields["origin"]["known_values"] == ["EWR", "JFK", "LGA"]
            and "airport" in fields["origin"]["description"])
    assert "/predict" in spec["paths"]


def test_the_model_its_health_and_its_counts_can_be_asked(replica, flights_version):
    about = httpx.get(replica.url + "/model").json()
    assert (about["version"] == flights_version[1] and about["data"]["rows"] > 20_000
            and about["metrics"]["rounds"] > 0)
    judged = about["metrics"]["newest_window"]
    assert (judged["rows"] > 5_000 and 0.5 < judged["auc"] < 1 and judged["log_loss"] < 1.05
            and judged["calibration_error"] < 0.2)
    assert set(judged["recall"]) == set(flights.label.classes)
    assert all(httpx.get(replica.url + path).status_code == 200 for path in ("/readyz", "/livez"))
    assert httpx.get(replica.url + "/predict").status_code == 405

    names = ("perennial_predictions_total", 'perennial_bad_inputs_total{field="temp"',
             "bentoml_service_request_total", "bentoml_service_request_duration_seconds_count")
    before = [counted(replica, name) for name in names]
    rows_of(replica, [GOOD] * 3)
    ask(replica, {"records": [GOOD | {"temp": 400}]})
    after = [counted(replica, name) for name in names]
    assert (after[0] - before[0] == 3 and after[1] - before[1] == 1 and after[2] - before[2] >= 2
            and after[3] > before[3])


@pytest.mark.parametrize("records", [[GOOD], []])
def test_head_and_body_of_an_answer_are_one_write(replica, records):
    """Else a replica killed between the two leaves half an answer, which the balancer can't repeat."""
    host, port = replica.url.removeprefix("http://").split(":")
    body = json.dumps({"records": records}).encode()
    with socket.create_connection((host, int(port)), timeout=10) as caller:
        for _ in range(20):
            caller.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
                           + body)
            head, _, answer = caller.recv(65_536).partition(b"\r\n\r\n")
            assert f"content-length: {len(answer)}".encode() in head and json.loads(answer)


def test_a_caller_that_waits_to_be_asked_for_its_body_is_asked(replica):
    host, port = replica.url.removeprefix("http://").split(":")
    body = json.dumps({"records": [GOOD]}).encode()
    with socket.create_connection((host, int(port)), timeout=10) as caller:
        caller.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: "
                       b"%d\r\n\r\n" % len(body))
        assert caller.recv(65_536).startswith(b"HTTP/1.1 100 ")
        caller.sendall(body)
        assert caller.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_a_bento_holds_what_the_service_imports_and_the_model_and_nothing_else(flights_bento):
    held = {path.relative_to(flights_bento / "src").as_posix()
            for path in (flights_bento / "src").rglob("*.py")}
    assert {path.split("/")[0] for path in held} == {"service", "contracts"}
    assert ({path for path in held if path.count("/") == 1 and path.startswith("contracts")}
            == {"contracts/__init__.py", "contracts/flights.py"})
    assert ("contracts/core/binning.py" in held
            and not held & {"contracts/core/canary.py", "contracts/core/window_verdict.py"})
    assert (flights_bento / "src" / "model" / "manifest.json").exists()


def test_the_bento_serves_in_a_clean_environment(flights_bento, samples, tmp_path):
    """Installed from the bento's own hash-locked requirements
    and nothing else, far from this project's folder."""
    venv.create(tmp_path / "clean")
    python, port = str(tmp_path / "clean" / "bin" / "python"), processes.free_ports(1)[0]
    requirements = flights_bento / "env" / "python" / "requirements.txt"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile", "--no-deps",
               "--require-hashes"]
    subprocess.run([*install, "-r", requirements], check=True)
    command = [python, "-m", "bentoml", "serve", str(flights_bento), "--host", "127.0.0.1", "--port",
               str(port)]
    with (tmp_path / "log").open("w") as log:
        serving = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env={
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "BENTOML_HOME": str(tmp_path / "bentoml")})
    try:
        assert processes.wait_until(lambda: processes.is_answering(f"http://127.0.0.1:{port}/readyz"),
                                    60), (tmp_path / "log").read_text()
        reply = httpx.post(f"http://127.0.0.1:{port}/predict", json={"records": samples["records"]}).json()
    finally:
        serving.terminate()
        serving.wait()
    assert [list(one["probabilities"].values()) for one in reply["predictions"]] == samples["probabilities"]


def test_a_stopped_replica_leaves_all_its_traffic_in_profiles_and_no_sample(flights_version, flights_bento):
    context, version = flights_version
    spool = context.run / "stopped"
    started = replicas.start(flights_bento, version, 1, context.run, context.name,
                             {"PERENNIAL_PROFILES": str(spool), "PERENNIAL_PROFILE_SECONDS": "600"})
    fleet.wait_ready(started)
    answers_like_trainer(context, started[0])
    rows_of(started[0], [GOOD] * 7)
    rows_of(started[0], [GOOD | {"departs": "2013-01-22T10:00:00"}] * 2)
    replicas.stop(started, context.run, context.name)
    starts = windows(spool, "flights", version)
    assert starts == [datetime(2013, 1, 14), datetime(2013, 1, 21)]
    assert [profiles.rows(collect(spool, "flights", version, start)) for start in starts] == [7, 2]


class Numbered(Pumps):
    pump: int = column(description="number of the pump")


def test_what_identifies_an_event_is_logged_exactly():
    """Features read floats, and times in seconds."""
    numbered = replace(pumps, schema=Numbered, key=("measured_at", "starts", "pump"))
    requests = RequestSchema(numbered)
    record = {"measured_at": "2024-02-12T00:00:00.000001", "vibration": 1.0, "heat": None,
              "starts": 2**53 + 1, "pump": 2**63 - 1}
    before = {**record, "measured_at": "1969-12-31T23:59:59.999999"}

    def columns(*records):
        return requests.columns(requests.parse(json.dumps({"records": records}).encode()))

    found = columns(record, before)
    assert found["measured_at"].astype(str).tolist() == ["2024-02-12T00:00:00", "1969-12-31T23:59:59"]
    assert found["measured_at.exact"].astype(str).tolist() == [
        "2024-02-12T00:00:00.000001", "1969-12-31T23:59:59.999999"]
    assert found["starts"].dtype == np.float64 and found["starts.exact"].tolist() == [2**53 + 1] * 2
    assert found["pump"].tolist() == [2**63 - 1] * 2 and "pump.exact" not in found
    some = columns(record, {name: value for name, value in record.items() if name != "pump"})
    assert some["pump"].tolist() == [2**63 - 1, None]
    without_key = RequestSchema(pumps)
    parsed = without_key.parse(json.dumps({"records": [record]}).encode())
    assert {*without_key.columns(parsed)} == {"measured_at", "vibration", "heat", "starts"}
