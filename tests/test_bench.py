"""How benchmarks are run, and the page of them all, drawn from small files that were made up."""

import json
import os
import re
import signal
import sys
from threading import Thread

import msgspec
import pytest

from deployments.processes import Process, wait_until
from tests.bench.__main__ import run
from tests.bench.page import BENCHMARKS, found, met, render

FIGURE = {"what": "requests <b>at once</b>", "asked": 3_000, "sense": "at least", "unit": "times",
          "measured": 3_100.0, "low": 2_950.0, "high": 3_300.0}
FILES = {
    "serve": {
        "at": "2026-01-02T03:04:05+00:00", "git": "0123abcd", "cores": 2, "processor": "a <fast> one",
        "python": "3.11.2", "figures": [
            FIGURE,
            FIGURE
            | {"what": "waits", "asked": 1.0, "sense": "at most", "unit": "times the median",
               "measured": 1.4}, FIGURE | {"what": "speed", "unit": "requests/s", "measured": 2_000.0}],
        "peers": {"slow & old": {"requests_per_second": [90.0, 110.0], "p50_ms": 300.0, "p99_ms": 420.0},
                  "Perennial": {"requests_per_second": [3_000.0, 3_300.0], "p50_ms": 9.0, "p99_ms": 20.0},
                  "broken": {"failed": "ImportError: <module>"}}},
    "train": {"figures": [FIGURE | {"what": "memory", "sense": "at most"}
                          | dict.fromkeys(("measured", "low", "high"))],
              "by_rows": [{"rows": 3_000_000, "seconds": 30.0, "peak_mb": 900.0},
                          {"rows": 30_000_000, "seconds": 320.0, "peak_mb": 950.0}]},
    "loop": {"figures": [], "rounds": [{"seconds": 3.0, "parts": {"trained": 2.0, "canary": 1.0}}]},
    "startup": {"figures": [], "commands": {"python -c pass": [0.02, 0.03], "perennial --help": [0.15, 0.2]}},
    "run": {"benchmarks": {"serve": {"outcome": "done", "seconds": 200.0},
                           "check": {"outcome": "failed: no <program> wrk", "seconds": 0.5}}}}


@pytest.fixture
def folder(tmp_path):
    for name, held in FILES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(held))
    (tmp_path / "profile.json").write_text('{"figures": [')  # of one that was killed while it wrote
    return tmp_path


def rows(page):
    """The text of each table row."""
    return [" ".join(re.sub("<[^>]+>", " ", row).split())
            for row in re.findall(r"<tr[^>]*>(?:(?!<tr|</table).)*", page, re.DOTALL)]


def test_a_figure_is_met_or_missed_by_its_median(folder):
    page = render(found(folder))
    assert ("1 of 3 ratios are met, 1 missed, 1 not measured; not measured: check, profile, monitor, flows, "
            "ledger." in page)
    [good], [bad], [none], [slow] = ([row for row in rows(page) if row.startswith(what)]
                                     for what in ("requests", "waits", "memory", "speed"))
    assert "at least 3,000 3,100 2,950 to 3,300" in good and " met " in good and "MISSED" not in good
    assert "at most 1 1.4" in bad and "MISSED" in bad and "tests.bench.serve" in bad
    assert "–" in none and "not measured" in none and "MISSED" not in none
    # A machine's speed fails no benchmark.
    assert "2,000" in slow and "slower here" in slow and "MISSED" not in slow


@pytest.mark.parametrize(("sense", "measured", "expected"),
                         [("at least", 10, True), ("at least", 9.99, False), ("at most", 10, True),
                          ("at most", 10.01, False), ("at least", None, False)])
def test_the_limit_itself_is_met(sense, measured, expected):
    assert met({"asked": 10, "sense": sense, "measured": measured}) is expected


def test_what_others_wrote_stays_text(folder):
    page = render(found(folder))
    assert ("requests &lt;b&gt;at once" in page and "no &lt;program&gt; wrk" in page
            and "a &lt;fast&gt; one" in page)
    assert "slow &amp; old" in page and "ImportError: &lt;module&gt;" in page
    assert not re.findall(r"<b>at once|<program>|<fast>|<module>|<script|(?:href|src)=.?http", page)


def test_a_file_that_is_missing_or_torn_is_named_and_the_others_are_shown(folder):
    page = render(found(folder))
    assert "no build/bench/check.json: run .venv/bin/python -m tests.bench.check" in page
    assert "serve" not in page[page.index("<h1>"):page.index("</h1>")]  # it ran to its end
    [torn] = [row for row in rows(page) if row.startswith("profile ")]
    assert "JSONDecodeError" in torn
    assert page.count("<svg") == 6 and "failed: no &lt;program&gt; wrk" in page


def test_nothing_measured_is_a_page_all_the_same(tmp_path):
    page = render(found(tmp_path))
    assert "Nothing was measured yet" in page and "<svg" not in page
    assert all(f"no build/bench/{name}.json" in page for name in BENCHMARKS)


def test_a_benchmark_that_fails_says_why_by_its_last_line(capsys):
    assert run([sys.executable, "-c", "pass"])["outcome"] == "done"
    assert (run([sys.executable, "-c", "import sys; sys.exit('no program wrk')"])["outcome"]
            == "failed: no program wrk")


def test_a_long_one_says_that_it_still_runs(capsys):
    assert run([sys.executable, "-c", "import time; time.sleep(1)"], tell=0.2)["outcome"] == "done"
    assert "... 0 s" in capsys.readouterr().out


@pytest.mark.parametrize("then", ["time.sleep(60)", "os._exit(3)"], ids=["ended by Ctrl-C", "died"])
def test_of_a_benchmark_that_is_ended_or_dies_nothing_is_left(then, tmp_path):
    """Its servers live in sessions of their own."""
    told = tmp_path / "server.json"
    program = f"""
import msgspec, os, pathlib, sys, tempfile, time
from deployments.processes import spawn
log = pathlib.Path(tempfile.mkdtemp()) / "server.log"
server = spawn([sys.executable, "-c", "import time; time.sleep(60)"], log, {{}})
pathlib.Path({str(told)!r}).write_bytes(msgspec.json.encode(server))
{then}
"""
    if "sleep" in then:
        Thread(target=lambda: wait_until(told.exists, 30) and os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            run([sys.executable, "-c", program])
    else:
        assert run([sys.executable, "-c", program])["outcome"] == "failed"
    assert not msgspec.json.decode(told.read_bytes(), type=Process).is_alive
