"""The flows on a real Prefect server: the whole loop on a second model, killed anywhere, asked twice, told late."""

import time
from datetime import datetime, timedelta

import httpx

from deployments import replicas
from flows.ingest import ingest
from flows.memory import remember
from flows.monitor import due, monitor, ship
from flows.train import train
from service.model import records_of_columns
from tests.conftest import PUMPS
from tests.pumps import contract, readings

WEEK = timedelta(days=7)
START, SHIFT = datetime(2024, 1, 1), datetime(2024, 3, 4)


def until(done, seconds=90):
    deadline = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert found, f"not within {seconds} s"
    return found


def send(servers, start, end):
    """The readings of [start, end) as a caller would send them; what was answered."""
    records = records_of_columns(contract, contract.columns_of(readings(start, end)))
    predictions = []
    for at in range(0, len(records), 500):
        reply = httpx.post(f"{servers.url}/pumps/predict", json={"records": records[at:at + 500]}, timeout=20)
        assert reply.status_code == 200, reply.text
        predictions += reply.json()["predictions"]
    return predictions


def test_the_loop_closes_by_itself_on_a_second_contract(servers):
    """Ingest, train, gate, release, predict, drift, event, automation, retraining, release: nobody lends a hand."""
    version = ingest(PUMPS, START, datetime(2024, 2, 12))
    assert ingest(PUMPS, START, datetime(2024, 2, 12)) == version
    first = train(PUMPS)
    assert first["outcome"] == "passed"
    assert train(PUMPS)["version"] == first["version"]
    memory = remember(PUMPS)
    assert len(replicas.running(memory.run, "pumps")) == 2
    assert len(send(servers, datetime(2024, 2, 12), datetime(2024, 2, 19))) == 7 * 400

    ingest(PUMPS, datetime(2024, 2, 12), SHIFT + 2 * WEEK)  # the gate judges on the newer of two weeks
    time.sleep(1)
    calm = monitor(PUMPS, "2024-02-12T00:00:00")
    assert (calm["verdict"]["kind"], calm["action"]) == ("fine", "fine")

    send(servers, SHIFT, SHIFT + WEEK)
    time.sleep(1)
    ship(memory)
    assert SHIFT in due(memory)
    moved = monitor(PUMPS, SHIFT.isoformat())
    assert moved["action"] == "retrain" and any("heat" in reason for reason in moved["verdict"]["reasons"])
    monitor(PUMPS, SHIFT.isoformat())  # the same window again: no second retraining
    until(lambda: memory.ledger.state().claims[SHIFT.isoformat()]["state"] == "finished", 120)
    state = memory.ledger.state()
    assert state.champion != first["version"] and state.previous == first["version"]
    assert [event.kind for event in memory.ledger.events()].count("retrain_claimed") == 1
    assert httpx.get(f"{servers.url}/pumps/model").json()["version"] == state.champion
    assert {one.version for one in replicas.running(memory.run, "pumps")} == {state.champion}
