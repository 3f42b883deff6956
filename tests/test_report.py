"""The report: a true headline both ways, one file that needs nothing else, every part of a replay in it."""

import copy
import json
import re
from datetime import date, timedelta
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pytest

from flows.demo import plots, report
from flows.demo.report import render

INPUTS = ("arrives", "built", "carrier", "departs", "dest", "dewp", "distance", "flight", "humid", "origin",
          "precip", "pressure", "seats", "temp", "visib", "wind_dir", "wind_gust", "wind_speed")
OUTPUTS = ("prediction", "probability.on_time", "probability.late", "probability.disrupted")
BETTER = {"frozen": 0.032, "calendar": 0.012}


def scores(rng, n: int, hard: float, season: float, better: dict) -> dict:
    """Scores of the three models; the distance between them grows with the season, 0 to 1."""
    live = 0.66 + hard - 0.01 * season
    losses = {"live": live} | {name: live + gap * season + rng.normal(0, 0.004)
                               for name, gap in better.items()}
    return {"n": n} | {f"logloss_{name}": loss for name, loss in losses.items()} | {
        f"auc_{name}": 0.72 - (loss - live) for name, loss in losses.items()}


def distances(rng, season: float) -> dict:
    moved = {"temp": 3.2 * season, "dewp": 2.9 * season, "pressure": 0.4, "humid": 0.3, "wind_gust": 0.22,
             "visib": 0.15}
    return {name: float(moved.get(name, 0.02) * rng.lognormal(0, 0.4)) for name in INPUTS} | {
        name: float(0.05 * rng.lognormal(0, 0.9)) for name in OUTPUTS}


def week(rng, start: date, better: dict, retrain: bool) -> dict:
    season = float(np.sin(np.pi * min((start - date(2013, 2, 20)).days, 300) / 300))
    found = distances(rng, season)
    reasons = [f"{name}: distance (PSI) {value:.3f}, limit 0.25" for name, value in found.items()
               if value > 0.25]
    if retrain:
        reasons.insert(0,
                       "labels: on_time 81.2%, late 10.9%, disrupted 7.9% for on_time 73.0%, late 15.1%, "
                       "disrupted 11.9% expected, on 6812 rows: gap 0.0243, limit 0.02")
    kind = "worse on labels" if retrain else "input drift" if reasons else "fine"
    return {"start": start.isoformat(), "kind": kind, "action": "retrain" if retrain else "fine",
            "distances": found, "reasons": reasons,
            **scores(rng, int(rng.integers(5800, 7100)), rng.normal(0, 0.07), season, better)}


def days(rng, first: date, until: date, retrains: list) -> list[dict]:
    found = []
    for at in range((until - first).days):
        day = first + timedelta(at)
        busy = any(0 <= (day - start).days - 8 < 1 for start in retrains)
        found.append({"day": day.isoformat(), "requests": 10 + busy * int(rng.integers(80, 240)), "failed": 0,
                      "p50_ms": float(rng.normal(8, 0.5)),
                      "p99_ms": float(22 * rng.lognormal(busy * 1.2, 0.2))})
    return found


def curve(rng, reach: int) -> dict:
    expected = [(bin + 0.5) / 10 if bin < reach else None for bin in range(10)]
    return {"expected": expected,
            "n": [int(90_000 / (bin + 1) ** 1.6) if bin < reach else 0 for bin in range(10)],
            "observed": [None if one is None else float(np.clip(one * 0.95 + rng.normal(0, 0.02), 0, 1))
                         for one in expected]}


def example(seed: int = 0, better: dict = BETTER) -> dict:
    """A year's report as a replay writes it."""
    rng, first, until = np.random.default_rng(seed), date(2013, 3, 1), date(2014, 1, 1)
    starts = [date(2013, 2, 25) + timedelta(7 * at) for at in range(44)]
    retrains = starts[5:44:5]
    digest = [sha256(f"{seed} {at}".encode()).hexdigest() for at in range(9)]
    served, refused = [0, 1, 2, 4, 5, 7, 8], [3, 6]
    promoted = [first, *(start + timedelta(8) for start in retrains)]
    months = [f"2013-{month:02}" for month in range(3, 13)]
    return {"model": "flights", "classes": ["on_time", "late", "disrupted"], "until": until.isoformat(),
            "seconds": 512.3, "requests_sent": 4120, "requests_failed": 0, "records_scored": 285_000,
            "retrains_triggered": len(retrains), "promotions": len(served), "refusals": len(refused),
            "drift_events": 39,
            "months": [{"month": month} | scores(rng, 28_500, rng.normal(0, 0.05), at / 9, better)
                       for at, month in enumerate(months)],
            "total": scores(np.random.default_rng(1), 285_000, 0.0, 0.9, better),
            "weeks": [week(rng, start, better, start in retrains) for start in starts],
            "versions": [{"version": digest[at], "number": at + 1, "promoted": promoted[at].isoformat(),
                          "rows": 51_955 + 33_000 * at, "rounds": 68 + 9 * at} for at in served],
            "refused": [{"version": digest[at], "at": promoted[at].isoformat(),
                         "reasons": ["log loss +0.0031 against the champion [+0.0007, +0.0055] on 6,912 "
                                     "rows; at most 0.0000 is allowed",
                                     "slice carrier = HA: 0.1132 behind the champion on 212 rows; margin "
                                     "0.08"]} for at in refused],
            "calibration": {name: curve(rng, reach)
                            for name, reach in (("on_time", 10), ("late", 5), ("disrupted", 9))},
            "days": days(rng, first, until, retrains), "runs": 210, "started_by_hand": [],
            "chains": {"flights": [chain(digest[1], "worse on labels")],
                       "departures": [chain(None, "temp <drifts> past its threshold")]},
            "faults": [{"name": "temperature in <Celsius>", "from": "2013-05-10", "named": True,
                        "said": ["2013-05-06: broken contract: temp"]},
                       {"name": "labels twice", "from": "2013-07-29", "named": False, "said": []}]}


def chain(version: str | None, reason: str) -> dict:
    """A retraining and the runs that led to it."""
    links = [{"flow": flow, "by": by, "at": "2026-01-01 00:00:00", "seconds": 2.5} for flow, by in (
        ("ingest", "CronSchedule"), ("monitor", "new data is judged by: flights"),
        ("train", "a window asks for a retraining: flights"))]
    return {"window": "2013-04-08T00:00:00", "reason": reason, "outcome": "released" if version else "failed",
            "version": version, "links": links}


def short() -> dict:
    """Two months of one version: no refusal, a week without profiles, a week and a month without scores."""
    year = example()
    nothing = dict.fromkeys(f"{figure}_{name}" for figure in ("logloss", "auc")
                            for name in ("live", "frozen", "calendar"))
    weeks = year["weeks"][:8]
    weeks[1] |= {"n": 0, **nothing}
    weeks[2] |= {"distances": {}, "kind": "insufficient", "action": "insufficient", "reasons": []}
    del weeks[3]["distances"]["temp"]
    return year | {"until": "2013-05-01", "weeks": weeks, "versions": year["versions"][:1], "refused": [],
                   "refusals": 0, "faults": [], "months": [year["months"][0], year["months"][1] | nothing],
                   "days": year["days"][:61]}


class Tags(HTMLParser):
    """Every tag with its attributes, and all the text outside of styles."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        self.text += data if self.inside != "style" else ""


@pytest.fixture(scope="module")
def year():
    return example()


@pytest.fixture(scope="module")
def html(year):
    return report.render(year)


def with_losses(live: float | None, frozen: float | None, calendar: float | None) -> str:
    return report.headline({"total": {"logloss_live": live, "logloss_frozen": frozen,
                                      "logloss_calendar": calendar}})


def test_headline_says_it_when_live_is_better():
    assert (with_losses(0.672, 0.704, 0.686) == ("The loop beat both rivals: its log loss is 4.5% lower than "
                                                 "the frozen model’s and 2.0% lower than the monthly "
                                                 "calendar’s."))


def test_headline_says_it_when_live_is_not_better():
    assert (with_losses(0.71, 0.70, 0.68) == ("The loop did not pay: its log loss is 1.4% higher than the "
                                              "frozen model’s and 4.4% higher than the monthly calendar’s."))


@pytest.mark.parametrize("losses, lead", [
    ((0.69, 0.70, 0.68), "The loop beat only the frozen model: its log loss is 1.4% lower than"),
    ((0.69, 0.68, 0.70), "The loop beat only the monthly calendar: its log loss is 1.5% higher than"),
    ((0.7, 0.7, 0.7), "The loop did not pay: its log loss is level with the frozen model’s and level with"),
    ((0.69966, 0.7, 0.7), "The loop did not pay: its log loss is level with"),  # 0.049 %
    ((0.69964, 0.7, 0.7), "The loop beat both rivals: its log loss is 0.1% lower"),  # 0.051 %
    ((None, None, None), "No verdict"),
])
def test_headline_in_between(losses, lead):
    assert with_losses(*losses).startswith(lead)


def test_page_asks_nothing_of_the_network_and_runs_no_script(html):
    parsed = Tags(html)
    assert "http://" not in html and "https://" not in html
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in parsed.tags}
    targets = [value for _, attrs in parsed.tags for name, value in attrs.items()
               if name in ("src", "href", "xlink:href")]
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_every_part_of_a_year_is_there(html, year):
    text = Tags(html).text
    assert report.headline(year) in text
    assert html.count("<svg") == 7
    for version in year["versions"]:
        assert f"v{version['number']} · {version['version'][:6]} · {version['rows']:,} rows" in text
        assert f">v{version['number']}</text>" in html, "marked in the plot of log loss"
    for one in year["refused"]:
        assert one["version"][:12] in text and "; ".join(one["reasons"]) in text
    for row in (*year["months"], year["total"]):
        assert f"{row['logloss_live']:.4f}" in text and f"{row['auc_calendar']:.4f}" in text
    for row in year["weeks"]:
        assert row["start"] in text and "; ".join(row["reasons"]) in text
    assert all(f">{name}</text>" in html for name in INPUTS + OUTPUTS)
    assert "most: temp, dewp, pressure" in text and "limit 0.25" in text


def test_no_two_plots_share_an_id(html):
    ids = [attrs["id"] for _, attrs in Tags(html).tags if "id" in attrs]
    assert ids and len(ids) == len(set(ids))


def test_same_report_gives_the_same_page(html, year):
    assert report.render(year) == html


def test_text_is_escaped_in_tables_and_in_plots(year):
    evil = "<script>alert(1)</script> $x_$ -->"
    report = copy.deepcopy(year)
    report["weeks"][0]["reasons"] = report["refused"][0]["reasons"] = [evil]
    report["weeks"][0]["kind"] = report["model"] = evil
    report["weeks"][0]["action"] = '"><script>'
    report["weeks"][0]["distances"][evil] = 9.0
    report["calibration"][evil] = report["calibration"].pop("late")
    html = render(report)
    assert "<script" not in html
    assert Tags(html).text.count(evil) >= 6


@pytest.mark.parametrize("failed, mark", [(0, 0), (1, 1)])
def test_failed_requests_stand_out(year, failed, mark):
    report = copy.deepcopy(year) | {"requests_failed": failed}
    report["days"][40]["failed"] = failed
    assert render(report).count('<div class="bad"') == mark


def test_limit_of_the_report_goes_before_the_usual_one(year):
    assert ">limit 0.1</text>" in plots.drawing(plots.drift_by_week, year | {"distance_limit": 0.1})


@pytest.mark.parametrize(
    "plot", [plots.log_loss_by_week, plots.gain_by_month, plots.drift_by_week, plots.requests_by_day])
def test_time_runs_in_months(year, plot):
    assert re.search(">(Oct|Nov)<", plots.drawing(plot, year))


def test_short_replay_renders():
    text = Tags(report.render(short())).text
    assert "v1" in text and "v2" not in text and "none refused" in text and "Refusals2" not in text
    assert "insufficient" in text and "–" in text


def test_replay_without_a_closed_week_renders():
    nothing = dict.fromkeys(short()["total"])
    report = short() | {"weeks": [], "months": [], "days": [], "total": nothing | {"n": 0},
                        "until": "2013-03-03"}
    report["calibration"] = {"on_time": {"expected": [None] * 10, "observed": [None] * 10, "n": [0] * 10}}
    html = render(report)
    assert "No verdict" in html and "most: none" in html


def test_write_replaces_both_files_whole(year, tmp_path):
    report.write(year, tmp_path / "replay")
    report.write(short(), tmp_path / "replay")
    assert json.loads((tmp_path / "replay" / "report.json").read_text()) == short()
    assert (tmp_path / "replay" / "report.html").read_text() == report.render(short())
    assert len(list((tmp_path / "replay").iterdir())) == 2


def test_faults_that_were_put_in_are_told_only_where_there_were_some():
    told = report.render(example())
    assert "temperature in &lt;Celsius&gt;" in told and "<td>NO<td" in told
    assert "Faults that were put in" not in report.render(short())
