"""What Prometheus is told: the exporter as a process of its
own, and that dashboard and rules name only what is there."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from contracts.core.verdict import Action, ColumnCheck, Performance
from contracts.pumps import contract
from deployments.processes import available_port
from flows.ingest import ingest_batch
from flows.monitoring.alerts import record_alerts
from flows.reporting.exporter import GAUGES, samples
from registry.context import open_model
from registry.events import Registered, WindowJudged
from tests.conftest import PUMPS
from tests.verdicts import gate_verdict, window_verdict

ROOT = Path(__file__).parent.parent
GRAFANA = ROOT / "deployments" / "grafana"
WEEK, START = timedelta(days=7), datetime(2024, 1, 1)
SCORES = Performance(log_loss=0.4, low=0.35, high=0.45, gap=0.03, coverage=0.9, rows=2_800)
HEAT = {"values": ColumnCheck(effect=0.3, threshold=0.1, p_value=0.0, drifted=True)}
DRIFTED = window_verdict("input drift", "heat moved", performance=SCORES, checks={"heat": HEAT})
FINE, BROKEN = window_verdict("fine"), window_verdict("broken contract", "gone")


@pytest.fixture
def context(addresses):
    """A champion, labels of three weeks, traffic of the fourth,
    and three windows: broken, watched, and one that retrains."""
    context = open_model(PUMPS)
    ingest_batch(context, START, START + 3 * WEEK)
    context.ledger.registered(Registered(version="v1"))
    context.ledger.judged("v1", gate_verdict(), None)
    context.ledger.promote("v1", expect=None)
    context.store.create(f"profiles/pumps/v1/{START + 3 * WEEK:%Y-%m-%dT%H%M}/one.bin", b"")
    for at, verdict, action in ((0, BROKEN, "page"), (1, DRIFTED, "watch"), (2, DRIFTED, "retrain")):
        window = (START + at * WEEK).isoformat()
        context.ledger.window_judged(WindowJudged(key=window, verdict=verdict), lambda _: False)
        if action == "retrain":
            context.ledger.claim_retraining(window, now=START + 3 * WEEK, reason="heat", drift=contract.drift,
                                            new_rows=1_000)
        record_alerts(context, window, verdict, Action(action))
    return context


def test_the_gauges_say_what_ledger_and_store_hold(context):
    now = START + 4 * WEEK
    found = {(name.removeprefix("perennial_"), *labels): value
             for name, labels, value in samples(context, now)}
    assert (found
            == {("champion_info", "v1", "1"): 1, ("drift_score", "heat"): pytest.approx(3),
                ("log_loss",): 0.4, ("log_loss_low",): 0.35, ("log_loss_high",): 0.45, ("label_gap",): 0.03,
                ("label_coverage",): 0.9, ("newest_profile_age_seconds",): WEEK.total_seconds(),
                ("newest_label_age_seconds",): WEEK.total_seconds() + 47,
                ("labels_behind_traffic_seconds",): 47.0,  # the newest reading came 47 s before midnight
                ("open_alerts", "broken contract"): 0, ("open_alerts", "input drift"): 1,
                ("windows", "page"): 1, ("windows", "watch"): 1, ("windows", "retrain"): 1})


def test_of_a_model_that_nobody_trained_there_is_nothing_but_that_it_can_be_read(addresses):
    assert list(samples(open_model(PUMPS), START)) == []


@pytest.fixture
def exporter(context):
    """`perennial metrics` for this store; what a scrape finds, and the process."""
    port = available_port(9464)
    # Where tests.pumps is.
    process = subprocess.Popen([Path(sys.executable).parent / "perennial", "metrics", PUMPS, "flights",
                                "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def scrape():
        reply = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20)
        assert reply.status_code == 200
        found = [one for family in text_string_to_metric_families(reply.text) for one in family.samples]
        return {(one.name, one.labels.pop("model"), *one.labels.values()): one.value for one in found}

    assert f"http://127.0.0.1:{port}/metrics" in process.stdout.readline()
    yield scrape, process, port
    process.kill()
    process.communicate()


def test_the_exporter_outlives_a_store_that_cant_be_read_and_ends_at_ctrl_c(context, exporter):
    scrape, process, port = exporter
    first = scrape()
    assert first["perennial_up", PUMPS] == first["perennial_up", "flights"] == 1
    assert first["perennial_open_alerts", PUMPS, "input drift"] == 1

    window = (START + 3 * WEEK).isoformat()
    context.ledger.window_judged(WindowJudged(key=window, verdict=FINE), lambda _: False)
    record_alerts(context, window, FINE, Action.FINE)
    assert scrape()["perennial_open_alerts", PUMPS, "input drift"] == 0  # read anew

    event = context.store.folder / "ledger" / "pumps" / f"{len(context.ledger.events()):08d}.json"
    event.write_bytes(b"torn")
    broken = scrape()
    assert broken["perennial_up", PUMPS] == 0 and broken["perennial_up", "flights"] == 1
    assert not [name for name, *labels in broken if labels[0] == PUMPS and name != "perennial_up"]
    event.unlink()
    assert scrape()["perennial_up", PUMPS] == 1

    second = subprocess.run([Path(sys.executable).parent / "perennial", "metrics", PUMPS, "--port",
                             str(port)], cwd=ROOT, capture_output=True, text=True, timeout=60,
                            env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (second.returncode == 2 and "choose another port" in second.stderr
            and len(second.stderr.splitlines()) == 1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    assert len(said.splitlines()) == 1 and f"{PUMPS} can't be read, its gauges are missing: Corrupt: " in said


def named(text: str) -> set[str]:
    return set(re.findall(r"\bperennial_\w+", text))


def panels() -> list[str]:
    """Every query of the dashboard's panels."""
    board = json.loads((GRAFANA / "dashboard.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def expressions() -> list[str]:
    """Every query of the dashboard and of the rules."""
    board = json.loads((GRAFANA / "dashboard.json").read_text())
    rules = yaml.safe_load((GRAFANA / "rules.yaml").read_text())
    return panels() + [variable["definition"] for variable in board["templating"]["list"]
                       if variable["type"] == "query"] + [rule["expr"] for group in rules["groups"]
                                                          for rule in group["rules"]]


def test_dashboard_and_rules_name_only_what_the_exporter_and_the_service_give(exporter):
    given = {name for name, *_ in exporter[0]()}
    assert given == set(GAUGES)
    counted = set(re.findall(r'metrics\.Counter\("(\w+)"', (ROOT / "service" / "app.py").read_text()))
    asked = [named(one) for one in expressions()]
    assert all(asked) and len(asked) > 15
    assert set().union(*asked) <= given | counted
    assert ({"perennial_drift_score", "perennial_label_coverage", "perennial_predictions_total"}
            <= set().union(*asked))


def promtool(*words) -> str:
    program = shutil.which("promtool")
    if not program and "CI" not in os.environ:
        pytest.skip("no promtool; it is in Debian's package `prometheus`")
    said = subprocess.run([program or "promtool", *map(str, words)], capture_output=True, text=True,
                          timeout=60)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


def test_prometheus_reads_the_rules_and_the_dashboards_queries(tmp_path):
    assert "rules found" in promtool("check", "rules", GRAFANA / "rules.yaml")
    recorded = [{"record": f"panel_{index}", "expr": one.replace("$model", "pumps|flights")}
                for index, one in enumerate(panels())]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    assert f"{len(recorded)} rules found" in promtool("check", "rules", tmp_path / "panels.yaml")


def test_the_rules_ring_for_what_is_open_and_for_nothing_else(tmp_path):
    """A page for a broken contract, a ticket for drift, nothing for what is over."""
    def alert(kind, severity):
        return {"exp_labels": {"model": "pumps", "kind": kind, "severity": severity}, "exp_annotations": {
            "summary": f"pumps: {kind}", "description": "What, how much, since when and what is being done: perennial status pumps"}}  # noqa: E501

    series = [{"series": f'perennial_open_alerts{{model="pumps", kind="{kind}"}}', "values": values}
              for kind, values in (("broken contract", "0 1 1"), ("input drift", "0 1 1"),
                                   ("stale", "1 0 0"))]
    rings = {"eval_time": "2m", "alertname": "PerennialAlertOpen",
             "exp_alerts": [alert("broken contract", "page"), alert("input drift", "ticket")]}
    test = {"rule_files": [str(GRAFANA / "rules.yaml")], "evaluation_interval": "1m",
            "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": [rings]}]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "test.yaml")
