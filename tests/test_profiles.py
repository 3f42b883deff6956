"""Profiles of the traffic: exact counts, windows of event time, whole files, and what a crash can cost."""

import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest

from contracts.core.binning import NEW, Bins, monitored_columns
from contracts.core.classification import Label
from contracts.core.contract import Contract
from contracts.core.features import number
from contracts.core.policies import Drift, Gate
from contracts.core.reference import learn_reference
from contracts.core.schema import column
from contracts.core.window_verdict import drift
from contracts.core.windows import by_window
from contracts.flights import contract as flights
from contracts.flights import source
from service import profiles
from service.profiler import MAX_WINDOWS_AWAY, Profiler
from service.profiles import merge
from tests.left_by_replicas import collect, windows

DAY = datetime(2024, 5, 6)


class Doors(pa.DataFrameModel):
    seen: pd.Timestamp = column(description="time")
    force: float = column(description="pull", unit="N", nullable=True)
    opened: int = column(description="times opened")
    locked: bool = column(description="locked at night")
    broke: bool = column(description="broke within a day", known="after")


doors = Contract(
    name="doors", schema=Doors, event_time="seen", label=Label(
        classes=("holds", "breaks"), needs=("broke",), of=lambda broke: broke, matures=timedelta(days=1)),
    features=(number("force"), number("opened"), number("locked"),
              number("often", "opened", compute=lambda opened: np.nan_to_num(opened).astype(np.int64)),
              number("pulled", "force", compute=lambda force: force > 5)), xgboost={},
    gate=Gate(window=timedelta(days=1), log_loss=1, auc=0.5, calibration_error=1, recall={}),
    drift=Drift(window=timedelta(days=1), min_rows=50))


def traffic(n: int = 1_000, start: datetime = DAY, days: float = 1.0, seed: int = 0, shift: float = 0.0):
    """Columns, probabilities and classes of `n` made-up doors."""
    rng = np.random.default_rng(seed)
    force = rng.normal(5 + shift, 1, n)
    force[rng.random(n) < 0.1] = np.nan
    columns = {"seen": np.datetime64(start, "s")
               + rng.integers(0, int(days * 86_400), n).astype("timedelta64[s]"), "force": force,
               "opened": rng.integers(0, 50, n).astype(float), "locked": rng.integers(0, 2, n).astype(float)}
    breaks = rng.random(n).astype(np.float32)
    probabilities = np.stack([1 - breaks, breaks], axis=1)
    return columns, probabilities, probabilities.argmax(axis=1)


BINS = {name: Bins.of(*one) for name, one in monitored_columns(doors, *traffic(5_000)).items()}


def profile(columns, probabilities, classes):
    return profiles.profile_rows(doors, BINS, columns, probabilities, classes)


def times(*texts):
    return np.array(texts, "datetime64[s]")


def take(rows, chosen):
    columns, probabilities, classes = rows
    return {name: values[chosen] for name, values in columns.items()}, probabilities[chosen], classes[chosen]


def counts(view, name):
    found = view.get_column(name).get_metric("counts")
    return found.n.value, found.null.value


def quantile(view, name, q):
    return view.get_column(name).get_metric("distribution").get_quantile(q)


def named(view, name):
    return {item.value: item.est for item in view.get_column(name).get_metric("frequent_items").strings}


def until(true, seconds=10.0):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.01)


def test_numbers_of_every_type_and_missing_values():
    columns, probabilities, classes = traffic(2_000)
    view = profile(columns, probabilities, classes)
    assert (set(view.get_columns())
            == {"force", "opened", "locked", "often", "pulled", "prediction", "probability.holds",
                "probability.breaks"})
    assert counts(view, "force") == (2_000, np.isnan(columns["force"]).sum())
    assert counts(view, "often") == counts(view, "pulled") == counts(view, "opened") == (2_000, 0)
    pulled = view.get_column("pulled").get_metric("distribution")
    assert pulled.avg == pytest.approx(np.mean(columns["force"] > 5))
    assert (view.get_column("force").get_metric("distribution").avg
            == pytest.approx(np.nanmean(columns["force"])))
    assert named(view, "prediction") == {"holds": (classes == 0).sum(), "breaks": (classes == 1).sum()}
    assert quantile(view, "probability.breaks", 0.5) == pytest.approx(0.5, abs=0.05)
    assert profiles.rows(view) == 2_000 and profiles.bad_inputs(view) == 0


def test_columns_that_are_wholly_missing():
    columns, probabilities, classes = traffic(10)
    view = profiles.from_bytes(profiles.to_bytes(profile(columns | {"force": np.full(10, np.nan)},
                                                         probabilities, classes)))
    assert (counts(view, "force") == (10, 10)
            and profiles.read_counts(profiles.to_bytes(view)).counts["force"].tolist()[0] == 10)


@pytest.fixture(scope="module")
def january():
    """Two weeks of flights, made-up answers, and the bins of both."""
    columns = flights.columns_of(source(datetime(2013, 1, 1), datetime(2013, 1, 15)))
    probabilities = np.random.default_rng(0).dirichlet([4, 2, 1], len(columns["carrier"]))
    rows = (columns, probabilities, probabilities.argmax(axis=1))
    return rows, {name: Bins.of(*one) for name, one in monitored_columns(flights, *rows).items()}


def test_text_with_missing_values(january):
    rows, bins = january
    few, probabilities, classes = take(rows, slice(0, 500))
    few["carrier"], few["dest"] = few["carrier"].copy(), few["dest"].copy()
    few["carrier"][:7] = None
    few["dest"][0] = "x" * 5_000
    view = profiles.profile_rows(flights, bins, few, probabilities, classes)
    assert counts(view, "carrier") == (500, 7)
    assert sum(named(view, "carrier").values()) == 493
    assert (named(view, "carrier")["UA"] == (few["carrier"] == "UA").sum()
            == by_label(view, bins, "carrier")["UA"])
    assert max(map(len, named(view, "dest"))) <= 128 and by_label(view, bins, "dest")[NEW] == 1
    assert "departs" not in view.get_columns()


def tallied(view,
            read=lambda view: profiles.read_counts(profiles.to_bytes(view)).counts) -> dict[str, list[int]]:
    return {name: found.tolist() for name, found in read(view).items()}


def by_label(view, bins, name) -> dict[str, int]:
    return dict(zip(bins[name].labels, profiles.read_counts(profiles.to_bytes(view)).counts[name].tolist(),
                    strict=True))


def test_merged_replicas_equal_one_profile_of_all(january):
    """In any order, through bytes, windows of windows: the counts are exact."""
    rows, bins = january
    n = len(rows[2])
    whole = profiles.profile_rows(flights, bins, *rows)
    pieces = [profiles.to_bytes(profiles.profile_rows(flights, bins, *take(rows, np.arange(n) % 3 == part)))
              for part in range(3)]
    parts = merge([profiles.to_bytes(merge(pieces[1:])), pieces[0]])
    assert profiles.rows(parts) == profiles.rows(whole) == n
    exact = {name: bins[name].count(one.values).tolist()
             for name, one in monitored_columns(flights, *rows).items()}
    for view in (whole, parts, merge(pieces[::-1])):
        assert (tallied(view) == exact
                and tallied(view,
                            lambda view: {name: column.get_metric("bins").counts.value
                                          for name, column in view.get_columns().items()}) == exact)
    assert ({name: found.tolist()
             for name, found in sum(map(profiles.read_counts, pieces), profiles.NO_TRAFFIC).counts.items()}
            == exact)
    for name in whole.get_columns():
        assert counts(parts, name) == counts(whole, name)
    for name in ("carrier", "dest", "prediction"):
        assert named(parts, name) == named(whole, name)
    for name in ("temp", "distance", "probability.late"):
        values = rows[1][:, 1] if name == "probability.late" else rows[0][name][~np.isnan(rows[0][name])]
        for q in (0.1, 0.5, 0.9):
            found = quantile(parts, name, q)
            assert np.mean(values < found) - 0.015 <= q <= np.mean(values <= found) + 0.015


def test_counts_under_the_bins_of_two_versions_are_not_added():
    shifted = monitored_columns(doors, *traffic(5_000, shift=9.0))
    other = {name: Bins.of(*column) for name, column in shifted.items()} | {"force": Bins("number", (1.0,))}
    parts = [profiles.to_bytes(profiles.profile_rows(doors, bins, *traffic(50))) for bins in (BINS, other)]
    for add in (merge, lambda parts: sum(map(profiles.read_counts, parts), profiles.NO_TRAFFIC)):
        with pytest.raises(ValueError, match="they are of two versions"):
            add(parts)


def test_a_profile_of_free_text_stays_small(january):
    """A category with more values than rows that anybody could keep."""
    rows, bins = january
    columns, probabilities, classes = take(rows, slice(0, 5_000))
    texts = {seed: columns | {"dest": np.array([f"{seed}-{index}" * 9 for index in range(5_000)], object)}
             for seed in range(20)}
    views = [profiles.to_bytes(profiles.profile_rows(flights, bins, text, probabilities, classes))
             for text in texts.values()]
    assert len(profiles.to_bytes(merge(views))) < 100_000


def test_windows_agree_with_the_contract():
    for contract in (doors, flights):
        seconds = np.random.default_rng(1).integers(-40 * 86_400, 40 * 86_400, 500)
        times = np.datetime64(DAY, "s") + seconds.astype("timedelta64[s]")
        times[:3] = [np.datetime64(t) for t in (DAY, DAY - timedelta(seconds=1), datetime(1969, 12, 31))]
        seen = np.zeros(len(times), int)
        for start, end, here in by_window(contract.drift.window, times):
            assert all(contract.window_of(moment.item()) == (start, end) for moment in times[here])
            seen += here
        assert (seen == 1).all()


def test_rows_go_to_the_window_of_their_event_time(tmp_path):
    on_time, late = traffic(300, DAY + timedelta(days=1)), traffic(40, DAY - timedelta(days=20), seed=1)
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=0.02)
    profiler.add(*traffic(200, DAY))
    profiler.add(*on_time)
    until(lambda: len(windows(tmp_path, "doors", "v1")) == 2)
    profiler.add(*late)
    profiler.bad(times(None, None, "2024-05-07T09:00:00", "0001-01-01", "9999-12-31"))
    profiler.close()
    starts = windows(tmp_path, "doors", "v1")
    assert starts == [DAY - timedelta(days=20), DAY, DAY + timedelta(days=1)]
    views = [collect(tmp_path, "doors", "v1", start) for start in starts]
    assert [profiles.rows(view) for view in views] == [40, 200, 300]
    # Of their own, else the one that grew last.
    assert [profiles.bad_inputs(view) for view in views] == [0, 0, 5]
    assert counts(views[0], "force") == (40, np.isnan(late[0]["force"]).sum())
    facts = views[2].metadata
    assert (facts["model"], facts["version"]) == ("doors", "v1")
    assert (facts["start"], facts["end"]) == ("2024-05-07T00:00:00", "2024-05-08T00:00:00")
    assert (windows(tmp_path, "doors", "v2") == []
            and collect(tmp_path, "doors", "v1", datetime(2000, 1, 1)) is None)


def test_close_flushes_and_replicas_merge(tmp_path):
    replicas = [Profiler(doors, BINS, "v1", tmp_path, seconds=1_000) for _ in range(2)]
    for seed, replica in enumerate(replicas):
        for part in range(5):
            replica.add(*take(traffic(100, seed=seed), slice(part * 20, part * 20 + 20)))
    assert windows(tmp_path, "doors", "v1") == []
    for replica in replicas:
        replica.close()
        replica.close()
    assert len(list(tmp_path.rglob("*.bin"))) == 2
    assert profiles.rows(collect(tmp_path, "doors", "v1", DAY)) == 200


def test_enough_rows_are_written_before_their_time(tmp_path):
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=1_000, rows=100)
    profiler.add(*traffic(99))
    time.sleep(0.2)
    assert windows(tmp_path, "doors", "v1") == []
    profiler.add(*traffic(1))
    until(lambda: windows(tmp_path, "doors", "v1") == [DAY])
    assert profiles.rows(collect(tmp_path, "doors", "v1", DAY)) == 100
    profiler.close()


def test_a_caller_whose_every_record_is_refused_is_found(tmp_path):
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=0.01)
    profiler.bad(times(*["2024-05-06T12:00:00"] * 5))
    until(lambda: windows(tmp_path, "doors", "v1") == [DAY])
    profiler.add(*traffic(10))
    profiler.bad(times(None, None))
    profiler.close()
    seen = collect(tmp_path, "doors", "v1", DAY)
    assert (profiles.rows(seen), profiles.bad_inputs(seen)) == (10, 7)


def test_a_window_of_refused_records_alone_is_a_broken_contract(tmp_path):
    profiler = Profiler(doors, BINS, "v1", tmp_path)
    profiler.bad(times(*["2024-05-06T12:00:00"] * 60))
    profiler.close()
    seen = collect(tmp_path, "doors", "v1", DAY)
    reference = learn_reference(monitored_columns(doors, *traffic()), traffic()[0]["seen"],
                                doors.drift.window, 0.005)
    counts = profiles.read_counts(profiles.to_bytes(seen)).counts
    verdict = drift(doors, reference, counts, rows=profiles.rows(seen), bad=profiles.bad_inputs(seen))
    assert verdict.kind == "broken contract" and "60 of 60 records were refused" in verdict.reasons[0]


def test_refused_records_without_any_time_count_by_the_clock(tmp_path):
    profiler = Profiler(doors, BINS, "v1", tmp_path)
    profiler.bad(times(None, None, None))
    profiler.close()
    [start] = windows(tmp_path, "doors", "v1")
    assert (abs(start - datetime.now()) < timedelta(days=2)
            and profiles.bad_inputs(collect(tmp_path, "doors", "v1", start)) == 3)


@pytest.mark.parametrize("strange", ["0001-01-01", "1066-10-14", "1969-12-31", "9999-12-31T23:59:59", "NaT"])
def test_no_event_time_ends_the_profiler_or_costs_others_their_profile(tmp_path, strange):
    columns, probabilities, classes = traffic(20)
    columns["seen"][0] = np.datetime64(strange)
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=0.01)
    profiler.add(*take((columns, probabilities, classes), slice(0, 1)))
    profiler.bad(times(strange))
    until(lambda: not profiler._batches)
    for _ in range(2):
        profiler.add(columns, probabilities, classes)
    until(lambda: DAY in windows(tmp_path, "doors", "v1"))
    assert profiler._thread.is_alive()
    profiler.close()
    assert profiles.rows(collect(tmp_path, "doors", "v1", DAY)) == 38
    views = [collect(tmp_path, "doors", "v1", start) for start in windows(tmp_path, "doors", "v1")]
    assert sum(map(profiles.rows, views)) + sum(map(profiles.unprofiled, views)) == 41


def test_a_profile_before_1970_can_be_written():
    view = profile(*traffic(10, datetime(1950, 1, 1)))
    assert profiles.rows(profiles.from_bytes(profiles.to_bytes(view))) == 10


def test_a_wrong_clock_does_not_fill_the_disk_and_its_rows_are_counted(tmp_path, caplog):
    """Five thousand days in one request, three times, beside a
    replay of four months in which every other clock is right."""
    wrong = traffic(5_000)
    wrong[0]["seen"][:] = np.datetime64(DAY, "s") + 10 * np.arange(5_000) * np.timedelta64(1, "D")
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=1_000, rows=5_000)
    days = [DAY + timedelta(days=day) for day in range(0, 120, 2)]
    for index, day in enumerate(days):
        profiler.add(*traffic(50, day, seed=index))
        if index % 20 == 10:
            profiler.add(*wrong)
            until(lambda: not profiler._batches)
    profiler.close()
    files = list(tmp_path.rglob("*.bin"))
    assert len(files) < 2 * len(days) and len(files) == len(windows(tmp_path, "doors", "v1"))
    views = [collect(tmp_path, "doors", "v1", start) for start in windows(tmp_path, "doors", "v1")]
    assert sum(map(profiles.rows, views)) + sum(map(profiles.unprofiled, views)) == 3 * 5_000 + len(days) * 50
    assert all(profiles.rows(collect(tmp_path, "doors", "v1", day)) >= 50 for day in days)
    assert "counted, not profiled" in caplog.text


def test_both_sides_of_the_reach(tmp_path):
    profiler = Profiler(doors, BINS, "v1", tmp_path)
    noon = DAY + timedelta(hours=12)
    near, far = (np.datetime64(noon, "s") + np.timedelta64(MAX_WINDOWS_AWAY * 86_400 + more, "s")
                 for more in (0, 1))
    for day in (np.datetime64(noon, "s"), near, far, np.datetime64(noon, "s"), np.datetime64(noon, "s")):
        columns, probabilities, classes = traffic(1)
        profiler.add(columns | {"seen": np.array([day])}, probabilities, classes)
    profiler.close()
    assert windows(tmp_path, "doors", "v1") == [DAY, DAY + MAX_WINDOWS_AWAY * timedelta(days=1)]
    assert (sum(profiles.unprofiled(collect(tmp_path, "doors", "v1", day))
                for day in windows(tmp_path, "doors", "v1")) == 1)


def test_a_window_that_returns_goes_on_in_its_file(tmp_path):
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=0.01, windows=2)
    for day in (0, 1, 2, 0):
        profiler.add(*traffic(50, DAY + timedelta(days=day), seed=day))
        until(lambda: not profiler._waiting and all(part.saved for part in list(profiler._parts.values())))
        assert len(profiler._parts) <= 2
    profiler.close()
    assert len(list(tmp_path.rglob("*.bin"))) == 3
    assert profiles.rows(collect(tmp_path, "doors", "v1", DAY)) == 100


def test_a_reader_never_sees_part_of_a_file(tmp_path):
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=0.001)
    ends, seen, sent = time.monotonic() + 1.5, [], 0
    while time.monotonic() < ends:
        profiler.add(*traffic(50, seed=sent))
        sent += 50
        for _ in range(5):
            view = collect(tmp_path, "doors", "v1", DAY)
            if view:
                assert counts(view, "opened") == (profiles.rows(view), 0)
                seen.append(profiles.rows(view))
    profiler.close()
    assert len(set(seen)) > 10 and seen == sorted(seen)
    assert profiles.rows(collect(tmp_path, "doors", "v1", DAY)) == sent
    assert not list(tmp_path.rglob(".*"))


def test_a_failure_to_write_is_logged_and_the_rows_are_kept(tmp_path, caplog):
    obstacle = tmp_path / "doors"
    obstacle.write_text("not a folder")
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=0.01)
    profiler.add(*traffic(30))
    until(lambda: "kept for the next try" in caplog.text)
    profiler.add(*traffic(20))
    obstacle.unlink()
    until(lambda: windows(tmp_path, "doors", "v1") == [DAY])
    profiler.close()
    assert profiles.rows(collect(tmp_path, "doors", "v1", DAY)) == 50


def test_what_must_be_given_up_is_logged(tmp_path, caplog):
    (tmp_path / "doors").write_text("not a folder")
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=1_000, windows=1)
    profiler.add(*traffic(60, days=2))
    profiler.close()
    assert "rows are lost to the profile" in caplog.text


def test_a_backlog_is_bounded_and_logged(tmp_path, caplog):
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=1_000, rows=10)
    with profiler._lock:
        profiler._waiting = 400  # as if the disk hung
    profiler.add(*traffic(7))
    profiler.close()
    assert "7 rows were not profiled" in caplog.text


def test_a_fault_in_profiling_is_logged_and_the_next_rows_are_profiled(tmp_path, caplog):
    columns, probabilities, classes = traffic(10)
    profiler = Profiler(doors, BINS, "v1", tmp_path, seconds=0.01)
    profiler.add(columns | {"force": np.array(["?"] * 10, object)}, probabilities, classes)
    until(lambda: "traffic was not profiled" in caplog.text)
    profiler.add(columns, probabilities, classes)
    profiler.close()
    assert profiles.rows(collect(tmp_path, "doors", "v1", DAY)) == 10


CHILD = """
import sys, time
from pathlib import Path
from service.profiler import Profiler
from tests.left_by_replicas import windows
from tests.test_profiles import BINS, doors, traffic
folder = Path(sys.argv[1])
often = Profiler(doors, BINS, "often", folder, seconds=0.2)
full = Profiler(doors, BINS, "full", folder, seconds=1_000, rows=500)
often.add(*traffic(700))
for seed in range(12):
    full.add(*traffic(100, seed=seed))
while not (windows(folder, "doors", "often") and windows(folder, "doors", "full")):
    time.sleep(0.01)
time.sleep(0.5)
often.add(*traffic(300))
print("go", flush=True)
time.sleep(60)
"""


def test_kill_9_loses_no_more_than_the_buffer(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE,
                             cwd=Path(__file__).parent.parent, env=os.environ | {"PYTHONPATH": "."})
    try:
        assert child.stdout.readline() == b"go\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert profiles.rows(collect(tmp_path, "doors", "often", DAY)) in (700, 1_000)
    assert 1_200 - 500 < profiles.rows(collect(tmp_path, "doors", "full", DAY)) <= 1_200
