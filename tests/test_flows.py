"""The flows on a real Prefect server: the whole loop on a
second model, killed anywhere, asked twice, told late."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import psutil
import pytest
from msgspec import convert
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from contracts.core.verdict import Action
from contracts.pumps import contract, readings
from deployments import processes, replicas
from flows.ingest import ingest
from flows.monitoring.alerts import AlertMessage, record_alerts, unsent
from flows.monitoring.alerts import send as send_alerts
from flows.monitoring.decision import decided
from flows.monitoring.notifications import notify_through, to_pagerduty, to_webhook
from flows.orchestration.clock import move_clock
from flows.reconcile import reconcile
from flows.releasing.rollback import roll_back
from flows.releasing.rollout import is_served
from flows.releasing.rollout_lock import is_under_way
from flows.train import train
from registry.clock import set_clock
from registry.context import open_model
from service.model import records_of_columns
from tests.conftest import PUMPS, plan_reconciler
from tests.verdicts import window_verdict

WEEK = timedelta(days=7)
START, SHIFT = datetime(2024, 1, 1), datetime(2024, 3, 4)


def until(done, seconds=180):
    """What `done` returns once it is true. Prefect's server on SQLite may let a writer wait for 60 s."""
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


@pytest.fixture(scope="module")
def hooked(servers):
    """What comes to a webhook of alerts, to PagerDuty and to a
    notification's, all played by one listener; (path, body) each."""
    posts = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            posts.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as listener:
        Thread(target=listener.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{listener.server_port}"
        for _ in range(2):  # as every start of the stack does
            to_webhook(f"{here}/webhook")
        to_pagerduty("a routing key", f"{here}/pagerduty")
        notify_through("text",
                       CustomWebhookNotificationBlock(name="text", url=f"{here}/text",
                                                      json_data={"text": "{{subject}}\n{{body}}"}))
        yield posts
        listener.shutdown()


def automations():
    with get_client(sync_client=True) as client:
        return [automation.name for automation in client.read_automations()]


def look(to: datetime, judged: datetime | None = None) -> None:
    """Have the clock reach a moment (UTC) at which data is looked for, and wait until the chain that follows
    has judged the window that starts at `judged`, and no retraining is under way."""
    context = open_model(PUMPS)
    assert move_clock([contract], to.replace(tzinfo=UTC)) == [f"ingest/{PUMPS}"]
    until(lambda: judged is None or judged.isoformat() in context.ledger.state().windows)
    time.sleep(2)
    until(lambda: not any(claim.is_granted for claim in context.ledger.state().claims.values()), 150)


def judged() -> dict[str, tuple[str, str]]:
    """Each judged window's kind and what followed from it."""
    state = open_model(PUMPS).ledger.state()
    return {window[5:10]: (str(one.verdict.kind), str(decided(state, window, contract.drift)))
            for window, one in sorted(state.windows.items())}


def runs() -> list[FlowRun]:
    """The runs of the pumps; other tests leave those of other models."""
    with get_client(sync_client=True) as client:
        return [run for run in client.read_flow_runs() if not run.state.is_scheduled()
                and run.parameters.get("model") == PUMPS]


@pytest.mark.timeout(600)
def test_the_loop_closes_by_itself(servers, hooked):
    """New rows and traffic come for six windows, and nobody calls a flow: data version, first training,
    verdicts, drift, a retraining that the gate refuses as no row of the new kind is known yet, one that is
    released."""
    context = open_model(PUMPS)
    set_clock(datetime(2024, 2, 12, 12, tzinfo=UTC))
    look(datetime(2024, 2, 12, 14))
    # The route follows the promotion.
    until(lambda: context.ledger.state().champion and not is_under_way(context))
    first = context.ledger.state().champion
    assert len(replicas.running(context.run, PUMPS)) == 2
    assert len(send(servers, datetime(2024, 2, 12, 12), SHIFT)) == 8_200 + 200 - len(
        readings(datetime(2024, 2, 12), datetime(2024, 2, 12, 12)))
    look(SHIFT + timedelta(hours=14), SHIFT - WEEK)
    send(servers, SHIFT, SHIFT + WEEK)
    look(SHIFT + WEEK + timedelta(hours=14), SHIFT)
    assert judged()["03-04"][1] == "retrain" and context.ledger.state().champion == first
    send(servers, SHIFT + WEEK, SHIFT + 3 * WEEK)
    look(SHIFT + 3 * WEEK + timedelta(hours=14), SHIFT + 2 * WEEK)
    state, found = context.ledger.state(), judged()
    assert [found[window][1] for window in ("02-12", "02-19", "02-26", "03-11", "03-18")] == [
        "fine", "fine", "fine", "wait", "retrain"]
    page = context.store.get(f"reports/pumps/{SHIFT:%Y-%m-%dT%H%M}.html")
    assert b"worse on labels than it promised" in page and b"<li>heat: distance" in page
    assert state.champion != first and state.previous == first
    outcomes = [claim.outcome for claim in state.claims.values() if claim.outcome]
    assert outcomes == ["released", "failed", "released"]
    assert httpx.get(f"{servers.url}/pumps/model").json()["version"] == state.champion
    assert {one.version for one in replicas.running(context.run, "pumps")} == {state.champion}
    assert [run.name for run in runs() if not (run.created_by or run.parent_task_run_id)] == []


def test_a_page_says_what_started_its_run_and_what_it_started(servers):
    monitor_run = next(run for run in runs()
                       if run.parameters.get("cause") and "window" not in run.parameters)
    with get_client(sync_client=True) as client:
        pages = {artifact.key or "": artifact.data for artifact in client.read_artifacts(limit=200)}
    cause = pages[f"{monitor_run.id}-cause"]
    assert "new data is judged by: pumps" in cause and monitor_run.parameters["cause"] in cause
    assert any(key.startswith(f"{monitor_run.parameters['cause']}-started-") and str(monitor_run.id) in text
               for key, text in pages.items())


def test_an_event_is_one_line_of_json_in_the_workers_log(servers):
    log = open_model(PUMPS).run / "logs" / "prefect-worker.log"
    [line, *_] = [line for line in log.read_text().splitlines() if "perennial.window.retrain" in line]
    told = json.loads(line)
    assert (told["model"], told["event"]) == (PUMPS, "perennial.window.retrain")
    assert told["window"] in open_model(PUMPS).ledger.state().claims and told["run"]


def test_the_same_look_again_changes_nothing(servers):
    context = open_model(PUMPS)
    events = len(context.ledger.events())
    assert ingest(PUMPS)["outcome"] == "nothing new"
    assert len(context.ledger.events()) == events


def test_a_webhook_is_told_once_of_a_cause_and_once_when_it_is_over(servers, hooked):
    """Prefect posts the same body, with the same id, once more where SQLite was locked on a busy machine:
    that counts as one."""
    def told():
        return [post for index, post in enumerate(hooked) if post not in hooked[:index]]

    def of(path, state):
        return [body for to, body in told() if to == path and state in str(body)]

    context, after = open_model(PUMPS), (SHIFT + 3 * WEEK).isoformat()
    verdict = context.ledger.state().windows[SHIFT.isoformat()].verdict
    [raised] = until(lambda: of("/webhook", "'raised'"))
    assert (raised.items()
            >= {"model": "pumps", "kind": verdict.kind, "since": SHIFT.isoformat(), "state": "raised",
                "what": "; ".join(verdict.reasons), "doing": "a retraining was started"}.items())
    assert raised["far"]["heat"] > 1

    send(servers, SHIFT + 3 * WEEK, SHIFT + 4 * WEEK)
    look(SHIFT + 4 * WEEK + timedelta(hours=14), SHIFT + 3 * WEEK)
    assert judged()["03-25"] == ("fine", "fine")
    until(lambda: len(told()) >= 6)
    alert = convert({name: value for name, value in raised.items() if name != "id"}, AlertMessage)
    # As by one that was killed before it wrote down that they were sent.
    send_alerts(context.ledger, [alert, alert])
    time.sleep(1)  # for what would be one too many
    [over] = of("/webhook", "'over'")
    assert ((over["kind"], over["state"], over["doing"])
            == (raised["kind"], "over", f"nothing more: the window {after} shows it no longer"))
    [opened], [resolved] = of("/pagerduty", "trigger"), of("/pagerduty", "resolve")
    assert opened["dedup_key"] == resolved["dedup_key"] and opened["payload"]["custom_details"] == raised
    [first], [_] = of("/text", ", raised"), of("/text", ", over")
    assert (first["text"].startswith(f"pumps: {raised['kind']}, raised\n{raised['what']}")
            and "a retraining was started" in first["text"])
    assert len(told()) == 6 and context.ledger.state().open_alerts == []


def test_without_an_address_nothing_is_passed_on(servers, hooked):
    assert automations().count("perennial alerts: webhook") == 1
    to_webhook(None)
    assert "perennial alerts: webhook" not in automations()


def trainings():
    """The trainings that a worker started."""
    with get_client(sync_client=True) as client:
        return [run for run in client.read_flow_runs() if run.deployment_id and "reason" in run.parameters]


def engines():
    """The processes in which a worker's flow runs live."""
    return [process for process in psutil.process_iter(["cmdline", "environ"])
            if "prefect.engine" in (process.info["cmdline"] or ())
            and process.info["environ"].get("PREFECT_API_URL") == os.environ["PREFECT_API_URL"]]


@pytest.mark.timeout(400)
def test_a_lost_event_and_a_killed_run_are_made_up_for(servers):
    """The reconciler starts what no event started, and again what Prefect says was killed."""
    context, window = open_model(PUMPS), (SHIFT + 5 * WEEK).isoformat()
    reason = "a cause whose event was lost"
    assert (context.ledger.claim_retraining(window, now=SHIFT + 6 * WEEK, reason=reason, drift=contract.drift,
                                            new_rows=1_000).is_granted)
    broken = window_verdict("broken contract", "its judge died here")
    assert (record_alerts(context, window, broken, Action.PAGE) == unsent("pumps", context.ledger.state())
            != [])
    before = {process.pid for process in engines()}
    assert len(reconcile([PUMPS])[PUMPS]["trainings"]) == 1
    assert unsent("pumps", context.ledger.state()) == []
    assert reconcile([PUMPS])[PUMPS]["trainings"] == []  # a run of it waits already
    [started] = until(lambda: [process for process in engines() if process.pid not in before])
    until(lambda: context.ledger.state().claims[window].run)
    started.kill()
    until(lambda: context.ledger.state().claims[window].failures == 1)
    until(lambda: context.ledger.state().claims[window].state == "finished", 150)
    claim = context.ledger.state().claims[window]
    whys = [event.data.why for event in context.ledger.events() if event.kind == "retrain_failed"]
    assert "Crashed" in whys[0] and claim.outcome in ("released", "failed")
    assert is_served(context)


def test_an_event_that_comes_again_trains_nothing(servers):
    context = open_model(PUMPS)
    versions = context.ledger.state().versions
    assert train(PUMPS, window=SHIFT.isoformat())["outcome"] == "nothing to do"
    assert context.ledger.state().versions == versions


def test_a_rollback_is_what_callers_meet_and_what_the_ledger_says(servers):
    context = open_model(PUMPS)
    now, before = context.ledger.state().champion, context.ledger.state().previous
    roll_back(PUMPS, "previous", "the test asked")
    assert (httpx.get(f"{servers.url}/pumps/model").json()["version"] == before
            == context.ledger.state().champion != now)
    told, done = context.ledger.events()[-2:]
    assert ((told.kind, told.data.reason, done.kind, done.data.version)
            == ("rolled_back", "the test asked", "released", before))


def test_a_champion_whose_replicas_died_is_brought_up_again(servers):
    context = open_model(PUMPS)
    for replica in replicas.running(context.run, "pumps"):
        processes.terminate(replica.log.__eq__, 5)
    assert not is_served(context)
    assert reconcile([PUMPS])[PUMPS]["released"]
    assert is_served(context) and httpx.get(f"{servers.url}/pumps/readyz").status_code == 200


def test_the_orchestrator_shows_what_was_done(servers):
    """Each run is named for model and window and tagged; artifacts hold what was found."""
    with get_client(sync_client=True) as client:
        runs, artifacts = client.read_flow_runs(), client.read_artifacts()
    assert {run.name for run in runs} >= {f"{PUMPS} {SHIFT.isoformat()}"}
    assert (all(f"model:{PUMPS}" in run.tags for run in runs if run.parameters.get("model") == PUMPS
                and run.state.is_completed()))
    assert ({"data-check", "gate", "window", "release"}
            <= {artifact.key.split("pumps-")[-1] for artifact in artifacts if artifact.key})
    assert any("retraining" in name for name in automations())


def test_the_reconcilers_runs_are_planned_and_the_server_has_no_fault_to_tell(servers):
    def planned():
        with get_client(sync_client=True) as client:
            reconciler = client.read_deployment_by_name("reconcile/reconcile").id
            return [run for run in client.read_flow_runs() if run.deployment_id == reconciler
                    and run.state.is_scheduled()]

    plan_reconciler(True)
    assert all(run.auto_scheduled and run.expected_start_time.minute == 17 for run in until(planned))
    log = (open_model(PUMPS).run / "logs" / "prefect-server.log").read_text()
    assert "INSERT INTO automation_bucket" not in log  # a refused write: an automation may miss an event
    # Of SQLite on a busy machine.
    faults = [fault for fault in log.split("Traceback")[1:] if "database is locked" not in fault]
    assert not faults, faults[-1][-3000:]
