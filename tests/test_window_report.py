"""The report of a judged window: what it says, that it opens offline, and that callers' text stays text."""

import re
import shutil
from datetime import datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pytest
from msgspec.structs import replace
from prefect.states import Completed, Failed
from typer.testing import CliRunner

from contracts.core.binning import MAX_BINS, Bins
from contracts.core.errors import PerennialError
from contracts.core.outcome_verdict import OutcomeFigures
from contracts.core.reference import BinnedComparison, Reference
from contracts.core.retraining import RefusalRule
from contracts.core.verdict import Action, Estimate, Performance
from contracts.core.window_verdict import drift
from contracts.pumps import contract
from flows import monitor
from flows.cli import app
from flows.monitor import draw_window
from flows.monitoring.decision import record_and_decide
from flows.monitoring.evaluation import evaluate_window
from flows.monitoring.windows import known_labels
from flows.reporting import artifacts, pages, window_report
from flows.reporting.charts import MAX_BARS, bars
from flows.reporting.pages import report
from registry.context import ModelContext, fetch_version, open_model
from registry.events import AlertRaised, Registered, RetrainRefused, WindowJudged
from registry.store import put
from registry.traffic import ship
from service import profiles
from tests.conftest import PUMPS
from tests.test_monitor import LAST, WEEK, leave, profile, trained  # noqa: F401  a fixture
from tests.verdicts import outcome_check, window_verdict

EVIL = "<script>alert(1)</script>\"' & ‮{{ 777 * 777 }}"


@pytest.fixture
def context(trained, tmp_path, addresses) -> ModelContext:  # noqa: F811
    shutil.copytree(trained[0].store.folder, tmp_path / "store")
    return open_model(PUMPS)


@pytest.fixture
def first(trained) -> str:  # noqa: F811
    return trained[1]


@pytest.fixture
def second(trained) -> str:  # noqa: F811
    return trained[2]


class Page(HTMLParser):
    """Every tag with its attributes, and all the text outside of the style."""

    def __init__(self, content: bytes):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""
        self.feed(content.decode())
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        self.text += f" {data} " if self.inside != "style" else ""


def judge(context: ModelContext, version: str, start: datetime = LAST, **traffic) -> str:
    """Judge a window of a replica's traffic; what was decided."""
    leave(context, version, profile(context, version, start, **traffic), start)
    ship(context)
    return record_and_decide(context, start, evaluate_window(context, start), known_labels(context))


def shown(context: ModelContext, start: datetime = LAST) -> Page:
    return Page(report(context, start.isoformat()))


def test_a_drifted_window_says_what_moved_how_far_and_what_is_done(context, first):
    assert judge(context, first, LAST - WEEK) == "fine" and judge(context, first, hotter=40) == "retrain"
    page = shown(context)
    assert (re.search(r"drifted from the training data, heat the most, [\d.]+ times its threshold: a "
                      r"retraining was granted\.", page.text))
    assert "v1 · " + first[:12] in page.text and "heat: distance" in page.text and "2,800" in page.text
    assert page.text.index("heat") < page.text.index("vibration") and "distance of values" in page.text
    assert (page.text.index("Columns by drift score") < page.text.index("The windows before")
            < page.text.index("Scores"))
    labels = profiles.bins_in(fetch_version(context, first))["heat"].labels
    assert all(label in page.text for label in labels if len(label) <= 20)
    assert "retrain claimed" in page.text and "log loss" in page.text and "limit" in page.text


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(context, first):
    judge(context, first, hotter=40)
    content = report(context, LAST.isoformat())
    page = Page(content)
    assert (b"://" not in content
            and not {"script", "link", "iframe", "img", "object", "use"} & {tag for tag, _ in page.tags})
    assert (not [name for _, attrs in page.tags for name in attrs if name in ("src", "href", "xlink:href")
                 or name.startswith("on")])
    assert b"prefers-color-scheme: dark" in content and len(content) < 100_000
    assert report(context, LAST.isoformat()) == content


@pytest.mark.parametrize(
    ("end", "said"),
    [(lambda ledger, version: None, "a retraining was granted."),
     (lambda ledger, version: ledger.retrain_failed(LAST.isoformat(), "no disk", 3),
      "granted, and 1 of its runs failed."),
     (lambda ledger, version: [ledger.retrain_failed(LAST.isoformat(), "no disk", 3) for _ in range(3)],
      "and failed (3 runs failed, the last: no disk)"),
     (lambda ledger, version: ledger.retrain_finished(LAST.isoformat(), "failed", version),
      "made v2, which the gate refused."),
     (lambda ledger, version: ledger.retrain_finished(LAST.isoformat(), "released", version),
      "made v2, which was released.")])
def test_what_became_of_the_retraining(context, first, second, end, said):
    judge(context, first, hotter=40)
    end(context.ledger, second)
    assert said in shown(context).text


def test_a_refused_retraining_says_why_and_the_trend_who_answered(context, first, second):
    assert judge(context, first, LAST - WEEK, hotter=40) == "retrain"
    context.ledger.retrain_finished((LAST - WEEK).isoformat(), "released", second)
    context.ledger.promote(second, expect=first)
    assert judge(context, second, hotter=40) == "wait"
    page = shown(context)
    assert "in every window since 2024-01-29: no retraining was granted (0 labelled rows are new" in page.text
    assert f"v2 · {second[:12]}" in page.text and "answered by v2" in page.text
    assert "v1 · " in Page(report(context, (LAST - WEEK).isoformat())).text


def test_a_breaker_that_stops_retraining_says_so(context, first):
    refused = RetrainRefused(key=LAST.isoformat(), now=LAST, reason="drift", why="five in a row: look",
                             rule=RefusalRule.CIRCUIT_BREAKER)
    context.ledger.record(refused)
    assert judge(context, first, hotter=40) == "page"
    page = shown(context)
    assert ("no retraining was granted (five in a row: look)." in page.text
            and "input drift → page" in page.text)


def test_alerts_and_slow_drift_are_told_where_there_are_some(context, first):
    for window, doing in ((LAST.isoformat(), "a retraining was started"),
                          ("2024-01-01T00:00:00", "of another window")):
        context.ledger.record(AlertRaised(key=f"input drift {window}", kind="input drift", window=window,
                                          message="heat moved", drift_scores={}, since=window, response=doing,
                                          version=first))
    page = judged_by_hand(context, first, cumulative={"vibration": 0.9, "heat": 2.54, "starts": 3.0})
    assert (f"alert raised v1 · {first[:12]}; input drift; a retraining was started" in page.text
            and "of another window" not in page.text)
    assert "the first champion: starts 3.0, heat 2.5 times" in page.text


@pytest.mark.parametrize(
    ("kind", "figures", "action", "said"),
    [("fine", {}, "fine", "like the training data: nothing is to be done."),
     ("broken contract", {}, "page", "breaks its contract (heat: missing): a person must look"),
     ("input drift", {}, "noted", "under this contract that starts no retraining"),
     ("input drift", {}, "watch", "once 1 of 1 windows show it"),
     ("worse on labels", {"performance": Performance(rows=900, log_loss=0.5, gap=0.05),
                          "outcomes": OutcomeFigures(rows=900, checks=[outcome_check("class shares", 0.05)])},
      "noted", "by 0.050 nats, the limit is 0.02"),
     ("decayed", {"outcomes": OutcomeFigures(rows=900, checks=[
         outcome_check("AUC below promised", 0.12), outcome_check("class shares", 0.01)])}, "noted",
      "than it did at training: AUC below promised by 0.120 more than is ordinary"),
     ("training/serving skew", {}, "page", "Callers send other values than training reads (heat: missing)")])
def test_one_sentence_for_whoever_is_on_call(context, kind, figures, action, said):
    verdict = window_verdict(kind, "heat: missing", **figures)
    context.ledger.window_judged(WindowJudged(key=LAST.isoformat(), verdict=verdict), lambda _: False)
    assert (said in window_report.headline(context.ledger.state(), LAST.isoformat(), Action(action),
                                           contract.drift))


def test_a_window_of_too_few_records_is_shown_as_such(context, first):
    assert judge(context, first, rows=10) == "insufficient"
    page = shown(context)
    assert ("too few records or labels to judge: it is judged again" in page.text
            and "10 records of traffic, 200 are needed" in page.text)


def test_a_window_without_traffic_has_no_pictures(context):
    assert record_and_decide(context, LAST, evaluate_window(context, LAST),
                             known_labels(context)) == "insufficient"
    page = shown(context)
    assert "No column was judged" in page.text and "Scores" in page.text


def test_a_window_judged_with_those_before_it_says_so(context, first):
    for back in (2, 1):
        leave(context, first, profile(context, first, LAST - back * WEEK, rows=90, hotter=40),
              LAST - back * WEEK)
    judge(context, first, rows=90, hotter=40)
    page = shown(context)
    assert ("judged together with those since 2024-01-22" in page.text
            and "The pictures count" not in page.text)


def test_without_labels_there_is_no_score_and_an_estimate_is_marked(context, first):
    told = judged_by_hand(context, first, performance=None, estimate=Estimate(rows=90, log_loss=0.51234))
    assert ("no score" in told.text and "estimate of the performance" in told.text
            and "log loss 0.512" in told.text)
    tags = Page(report(context, LAST.isoformat())).tags
    assert ("p", {"class": "estimate"}) in tags


def test_intervals_and_coverage_are_shown_where_there_are_some(context, first):
    performance = Performance(
        rows=900, log_loss=0.5, low=0.4571, high=0.5429, gap=0.001, coverage=0.875,
        observed={"stops": 0.25, "runs": 0.75}, expected={"stops": 0.2, "runs": 0.8})
    told = judged_by_hand(context, first, performance=performance)
    assert "with 95 % confidence from 0.4571 to 0.5429" in told.text and "Coverage: 87.5%" in told.text
    assert "estimate" not in told.text and "80.0% → 75.0%" in told.text
    assert told.text.index("runs: 80.0%") < told.text.index("stops: 20.0%")


def judged_by_hand(context: ModelContext, version: str, **figures) -> Page:
    leave(context, version, profile(context, version))
    ship(context)
    verdict = evaluate_window(context, LAST)
    record_and_decide(context, LAST, replace(verdict, figures=replace(verdict.figures, **figures)),
                      known_labels(context))
    return shown(context)


def test_text_from_the_data_stays_text(context):
    """A category's name, a reason and a column: none of them becomes markup, or a template."""
    bins = Bins("category", (), (EVIL, "plain"), ())
    reference = {EVIL: Reference(bins, np.array([0, 0, 0, 900, 100]),
                                 {"values": 0.0, "missing": 0.0, "new": 0.0})}
    verdict = drift(contract, reference, {EVIL: np.array([0, 0, 0, 100, 900])}, rows=1_000)
    verdict = replace(verdict, figures=replace(verdict.figures, version="v", since=LAST.isoformat()))
    compared = BinnedComparison(reference, {EVIL: np.array([0, 0, 0, 100, 900])}, 1_000, LAST)
    context.ledger.window_judged(WindowJudged(key=LAST.isoformat(), verdict=verdict), lambda _: False)
    context.ledger.registered(Registered(version="v"))
    content = pages.render_window(window_report.window_report(context, LAST.isoformat(), Action.NOTED,
                                                              compared))
    page = Page(content)
    assert (b"<script" not in content and EVIL.replace("‮", "") in page.text.replace("‮", "")
            and "603729" not in page.text)
    assert "90.0% → 10.0%" in page.text


@pytest.mark.parametrize("kind", ["number", "category"])
@pytest.mark.parametrize("many", [MAX_BARS - 1, MAX_BARS, MAX_BINS, 5_000])
def test_many_bins_stay_few_bars_and_lose_no_record(kind, many):
    rng = np.random.default_rng(many)
    edges = tuple(np.sort(rng.normal(size=many)).tolist())
    bins = (Bins("number", edges) if kind == "number"
            else Bins("category", (), tuple(f"c{at:05}" for at in range(many)), ()))
    before, now = (rng.integers(0, 100, len(bins.labels)) for _ in range(2))
    found = bars(Reference(bins, before, {}), now)
    assert len(found) <= MAX_BARS and len({bar.label for bar in found}) == len(found)
    assert np.isclose(sum(bar.before for bar in found), 1) and np.isclose(sum(bar.now for bar in found), 1)
    changed = np.abs(before / before.sum() - now / now.sum())
    if kind == "category":
        assert bins.labels[2 + changed[2:].argmax()] in [bar.label for bar in found]
    else:
        assert found[1].label.startswith(("[-inf", "-inf")) and "inf" in found[-1].label


def test_few_bins_are_shown_as_they_are():
    bins = Bins("number", (1.0, 2.0))
    found = bars(Reference(bins, np.array([0, 1, 2, 1]), {}), np.array([0, 0, 0, 4]))
    assert ([bar[:3] for bar in found]
            == [("[-inf, 1)", 0.25, 0.0), ("[1, 2)", 0.5, 0.0), ("[2, inf)", 0.25, 1.0)])
    assert (bars(Reference(bins, np.array([1, 0, 0, 0]), {}), np.array([4, 0, 0, 0]))[0][:3]
            == ("(missing)", 1.0, 1.0))
    empty = np.append(9, np.zeros(41, int))
    assert (bars(Reference(Bins("number", tuple(map(float, range(40)))), empty, {}), empty)[0][:3]
            == ("(missing)", 1.0, 1.0))


def test_profiles_that_are_gone_are_an_error_and_those_that_grew_are_told(context, first):
    judge(context, first)
    leave(context, first, profile(context, first, rows=100), replica="late")
    ship(context)
    assert "The pictures count 2,900 records, the verdict was given on 2,800" in shown(context).text
    shutil.rmtree(context.store.folder / "profiles")
    with pytest.raises(
            PerennialError,
            match="2024-02-05T00:00:00 on was judged and is gone; restore profiles/pumps/") as gone:
        report(context, LAST.isoformat())
    assert gone.value.exit_code == 2


def test_a_window_that_nobody_judged_is_refused(context, first):
    with pytest.raises(PerennialError,
                       match=r"none is; .*perennial monitor pumps --window 2024-02-05T00:00:00"):
        report(context, (LAST + timedelta(days=1)).isoformat())
    with pytest.raises(PerennialError, match=r"no window of pumps was judged in .*perennial monitor pumps"):
        window_report.newest(context)
    for start in (LAST, LAST - WEEK):
        judge(context, first, start)
    assert window_report.newest(context) == LAST.isoformat()
    with pytest.raises(PerennialError, match="2 are, the last 2024-02-05T00:00:00"):
        report(context, (LAST + WEEK).isoformat())


def test_the_store_keeps_the_newest_page_whole(context, first):
    judge(context, first, rows=10)
    address = draw_window.fn(PUMPS, LAST.isoformat())
    assert address == f"{context.store.address}/reports/pumps/2024-02-05T0000.html"
    before = context.store.get("reports/pumps/2024-02-05T0000.html")
    judge(context, first)
    draw_window.fn(PUMPS, LAST.isoformat())
    after = context.store.get("reports/pumps/2024-02-05T0000.html")
    assert (b"too few records or labels" in before and b"like the training data" in after
            and after == report(context, LAST.isoformat()))


def test_put_takes_the_place_of_what_another_writer_put_in_between(context, monkeypatch):
    real = type(context.store).create

    def beaten(store, key, content):
        monkeypatch.undo()
        real(store, key, b"the other's")
        real(store, key, content)

    monkeypatch.setattr(type(context.store), "create", beaten)
    put(context.store, "reports/x", b"mine")
    assert context.store.get("reports/x") == b"mine"


def test_the_command_draws_the_newest_window_or_the_one_named(context, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for start, hotter in ((LAST - WEEK, 40), (LAST, 0)):
        judge(context, first, start, hotter=hotter)
    said = CliRunner().invoke(app, ["report", PUMPS])
    assert ((said.exit_code, said.output)
            == (0, f"{PUMPS}: window 2024-02-05T00:00:00: build/reports/pumps/2024-02-05T0000.html\n"))
    assert "like the training data" in Page((tmp_path
                                             / "build/reports/pumps/2024-02-05T0000.html").read_bytes()).text
    assert (CliRunner().invoke(app,
                               ["report", PUMPS, "--window", "2024-01-29", "--out", "one.html"]).exit_code
            == 0)
    assert "heat the most" in Page((tmp_path / "one.html").read_bytes()).text
    refused = CliRunner().invoke(app, ["report", PUMPS, "--window", "2024-03-04"])
    assert (isinstance(refused.exception, PerennialError)
            and not (tmp_path / "build/reports/pumps/2024-03-04T0000.html").exists())


def test_a_report_that_can_not_be_drawn_loses_neither_the_event_nor_the_verdict(monkeypatch):
    """It fails the run all the same, and the artifact says that there is none."""
    done = []
    for name in ("begin_run", "announce", "show_window", "ask_for_first_training"):
        monkeypatch.setattr(monitor, name, lambda *arguments, name=name: done.append((name, *arguments[2:])))
    monkeypatch.setattr(monitor, "judge_window", lambda *_: ({"kind": "fine"}, "fine"))
    monkeypatch.setattr(monitor, "draw_window",
                        lambda *_, return_state: Failed(data=ZeroDivisionError("no ink")))
    with pytest.raises(ZeroDivisionError, match="no ink"):
        monitor.monitor.fn(PUMPS, LAST.isoformat())
    assert (done
            == [("begin_run",), ("announce", {"kind": "fine"}, "fine"),
                ("show_window", {"kind": "fine"}, "fine", None)])
    monkeypatch.setattr(monitor, "draw_window", lambda *_, return_state: Completed(data="somewhere"))
    window = LAST.isoformat()
    assert monitor.monitor.fn(PUMPS, window)[window]["action"] == "fine" and done[-2][-1] == "somewhere"


@pytest.mark.parametrize(("address", "said"),
                         [("s3://bucket/x.html", "Report: `s3://bucket/x.html`"),
                          (None, "none could be drawn")])
def test_the_artifact_names_the_report(context, first, monkeypatch, address, said):
    judge(context, first)
    kept = []
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda text, key: kept.append(text))
    artifacts.show_window(PUMPS, LAST.isoformat(), window_report.judged(context, LAST.isoformat()),
                          Action.FINE, address)
    assert said in kept[0] and f"perennial report {PUMPS} --window 2024-02-05T00:00:00" in kept[0]
