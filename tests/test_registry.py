"""The store, the ledger, data versions and model versions, on a folder and on a real S3 protocol."""

import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import boto3
import httpx
import pandas as pd
import pytest

from contracts.core import errors
from contracts.core.errors import (
    Conflict,
    Corrupt,
    NotAllowed,
    NotFound,
    PerennialError,
    Unavailable,
    UnsafeStore,
)
from contracts.core.retraining import RefusalRule
from contracts.core.validation import check_batch
from contracts.pumps import contract as pumps
from contracts.pumps import readings
from flows.ingest import ingest_batch
from flows.monitoring.decision import record_and_decide
from flows.monitoring.evaluation import evaluate_window
from flows.monitoring.windows import known_labels
from flows.training.judging import judge
from flows.training.version import fit_version
from registry import bad_rows, data, models
from registry.context import open_model
from registry.events import Noted, Registered, WindowJudged
from registry.folder_store import FolderStore
from registry.ledger import Ledger
from registry.store import open_store
from tests.conftest import PUMPS
from tests.verdicts import gate_verdict, window_verdict

PASSED, FAILED = gate_verdict(), gate_verdict("failed", "no")
A, B, C = "a" * 64, "b" * 64, "c" * 64
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest", "AWS_DEFAULT_REGION": "us-east-1"}


def served(command: list[str], port: int):
    """A server process, answering on its port."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=1)
            break
        except httpx.TransportError:
            time.sleep(0.1)
    return process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def moto():
    port = free_port()
    process = served([sys.executable, "-m", "tests.s3_server", str(port)], port)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture
def s3(moto, monkeypatch) -> str:
    """The address of an empty bucket."""
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": moto}).items():
        monkeypatch.setenv(name, value)
    bucket = f"b{uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/team"


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    return open_store(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3"))


@pytest.fixture
def ledger(store):
    made = Ledger(store, "pumps")
    for version in (A, B, C):
        made.registered(Registered(version=version))
    return made


def test_a_key_is_created_once_and_swapped_only_by_who_read_it(store):
    store.create("x/1", b"one")
    with pytest.raises(Conflict):
        store.create("x/1", b"two")
    content, tag = store.read("x/1")
    assert content == store.get("x/1") == b"one"
    store.swap("x/1", b"three", tag)
    with pytest.raises(Conflict):
        store.swap("x/1", b"four", tag)
    assert store.get("x/1") == b"three"
    with pytest.raises(NotFound, match="x/2"):
        store.get("x/2")


def test_keys_are_listed_in_order_by_prefix(store):
    for key in ("a/2", "a/1", "ab/1", "b"):
        store.create(key, b"")
    assert store.list("a/") == ["a/1", "a/2"] and store.list("nothing/") == []


def test_of_many_racing_creators_exactly_one_wins(store):
    def won(n):
        try:
            store.create("race", b"%d" % n)
        except Conflict:
            return 0
        return 1
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(won, range(16))) == 1


def test_a_store_that_ignores_conditions_is_refused(tmp_path, monkeypatch):
    port = free_port()
    (tmp_path / "bucket").mkdir()
    rclone = str(Path(sys.executable).parent / "rclone")
    process = served([rclone, "serve", "s3", str(tmp_path), "--addr", f"127.0.0.1:{port}", "--auth-key",
                      "test,testtest"], port)
    try:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UnsafeStore,
                           match=r"s3://bucket/x ignores write conditions.*use a store that honours"):
            open_store("s3://bucket/x")
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("address", ["ftp://somewhere", "s3://", "s3:///team", ""])
def test_an_unknown_kind_of_store_is_refused(address):
    with pytest.raises(PerennialError, match=r"name a folder or s3://"):
        open_store(address)


def test_a_store_that_cannot_be_written_is_the_users_mistake(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": "nonsense"}).items():
        monkeypatch.setenv(name, value)
    for address in ("/proc/nope", str(tmp_path / "file"), "s3://bucket", "http://["):
        with pytest.raises(PerennialError, match=r"can't be used as the store.*PERENNIAL_STORE") as refused:
            open_store(address)
        assert refused.value.exit_code == 2 and address in str(refused.value)


def test_a_store_without_credentials_is_the_users_mistake_and_one_away_a_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PerennialError, match=r"credentials.*AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match=r"'s3://bucket' does not answer.*is it up"):
        open_store("s3://bucket")


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(Unavailable, match=r"'s3://nowhere' does not answer.*bucket"):
        open_store("s3://nowhere")


def test_opening_a_store_leaves_nothing_in_it(store):
    open_store(store.address)
    assert store.list("") == []


def test_champion_and_previous_follow_from_events(ledger):
    for version, before in ((A, None), (B, A), (C, B)):
        ledger.judged(version, PASSED, before)
        ledger.promote(version, expect=before)
    assert ledger.promote(C, expect=B) is None  # said twice, done once
    state = ledger.state()
    assert (state.champion, state.previous) == (C, B)
    ledger.roll_back("slow")
    assert ledger.state().champion == B
    ledger.roll_back("slow too")
    assert (ledger.state().champion, ledger.state().previous) == (A, None)
    with pytest.raises(NotFound):
        ledger.roll_back("further")


def test_what_served_at_a_time(ledger):
    ledger.judged(A, PASSED, None)
    first = ledger.promote(A, expect=None)
    ledger.judged(B, PASSED, A)
    second = ledger.promote(B, expect=A)
    assert ledger.state(at=first.at).champion == A and ledger.state(at=second.at).champion == B
    assert ledger.state(at="2000-01-01T00:00:00").champion is None


def test_what_served_at_a_time_though_a_writers_clock_was_ahead(ledger, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("registry.ledger.machine_time", lambda: datetime.now(UTC) + timedelta(hours=2))
        ahead = ledger.judged(A, PASSED, None)
    promoted = ledger.promote(A, expect=None)
    assert promoted.at < ahead.at
    assert ledger.state(at=promoted.at).champion == A


def test_a_promotion_in_place_of_a_champion_that_is_not_there_is_lost(ledger):
    ledger.judged(A, PASSED, B)
    with pytest.raises(Conflict, match=r"there is no champion; run: perennial train pumps"):
        ledger.promote(A, expect=B)


def test_only_a_passing_verdict_against_the_champion_promotes(ledger):
    with pytest.raises(NotAllowed):
        ledger.promote(A, expect=None)
    ledger.judged(A, FAILED, None)
    with pytest.raises(NotAllowed, match="is failed"):
        ledger.promote(A, expect=None)
    ledger.judged(A, PASSED, None)
    ledger.promote(A, expect=None)
    ledger.judged(B, PASSED, None)
    with pytest.raises(NotAllowed):
        ledger.promote(B, expect=A)


def test_of_two_racing_promotions_one_wins_and_the_other_learns_who(store, ledger):
    for version in (A, B):
        ledger.judged(version, PASSED, None)

    def promoted(version):
        try:
            return Ledger(store, "pumps").promote(version, expect=None).data.version
        except Conflict as error:
            return error
    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(pool.map(promoted, (A, B)), key=lambda one: isinstance(one, Conflict))
    assert (ledger.state().champion == first and first[:12] in str(second)
            and "judge it against" in str(second))


def test_many_writers_leave_one_unbroken_chain(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Ledger(store, "pumps").record(Noted(version="v", text=str(n))), range(40)))
    events = Ledger(store, "pumps").events()
    assert sorted(int(event.data.text) for event in events) == list(range(40))
    assert all(after.prev == before.digest for before, after in pairwise(events))


@pytest.mark.parametrize("harm", ["changed", "removed"])
def test_a_changed_or_removed_event_is_noticed(tmp_path, harm):
    store = FolderStore(tmp_path)
    ledger = Ledger(store, "pumps")
    for n in range(3):
        ledger.record(Noted(version="v", text=str(n)))
    file = tmp_path / "ledger/pumps/00000001.json"
    if harm == "removed":
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"data": {"version": "v", "text": "7"}}))
    with pytest.raises(Corrupt, match="event 1"):
        Ledger(store, "pumps").events()


@pytest.mark.parametrize("harm",
                         [lambda whole: whole[:50], lambda _: b"", lambda _: b"[]", lambda _: b"5",
                          lambda _: b"\xff\xfe", lambda whole: whole.replace(b'"format":2,', b""),
                          lambda whole: whole.replace(b'"format":2,', b'"format":2,"x":2,'),
                          lambda whole: whole.replace(b'"text":"1"', b'"text":NaN'),
                          lambda whole: whole.replace(b'"seq":1', b'"seq":"1"')],
                         ids=["torn", "empty", "list", "number", "bytes", "no format", "a field more",
                              "not a number", "text"])
def test_a_file_that_is_no_event_is_named_with_the_remedy(tmp_path, harm):
    for n in range(3):
        Ledger(FolderStore(tmp_path), "pumps").record(Noted(version="v", text=str(n)))
    file = tmp_path / "ledger/pumps/00000001.json"
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(Corrupt, match=r"event 1 .*ledger/pumps/00000001\.json in .*from a backup"):
        Ledger(FolderStore(tmp_path), "pumps").events()


def claim(ledger, key, day, drift=pumps.drift, new_rows=500):
    return ledger.claim_retraining(key, now=datetime(2024, 1, day), reason="drift", drift=drift,
                                   new_rows=new_rows)


def test_a_retraining_is_granted_once_one_at_a_time_and_after_the_cooldown(ledger):
    # A killed run takes it up again.
    assert claim(ledger, "one", 1).is_granted and claim(ledger, "one", 1).is_granted
    assert "in flight" in claim(ledger, "two", 20).why
    ledger.retrain_finished("one", "passed", A)
    assert claim(ledger, "one", 1).state == "finished"
    assert "cooldown until 2024-01-15" in claim(ledger, "three", 14).why
    assert claim(ledger, "four", 15).is_granted
    assert "in flight" in claim(ledger, "two", 20).why  # refused once, refused for good
    assert [event.kind for event in ledger.events()].count("retrain_claimed") == 2


def test_a_retraining_whose_runs_fail_is_over_after_three(ledger):
    claim(ledger, "one", 1)
    for failures in (1, 2):
        ledger.retrain_failed("one", "no disk", 3)
        assert claim(ledger, "one", 1).is_granted and ledger.state().claims["one"].failures == failures
    ledger.retrain_failed("one", "no disk", 3)
    over = ledger.state().claims["one"]
    assert ((over.state, over.outcome) == ("finished", "gave up")
            and "3 runs failed, the last: no disk" in over.why)
    assert (ledger.retrain_failed("one", "late", 3) is None
            and ledger.retrain_failed("never claimed", "?", 3) is None)
    assert claim(ledger, "two", 15).is_granted


def test_the_same_verdict_on_more_labels_is_recorded_so_that_the_window_is_not_due_again(ledger):
    verdict = window_verdict("insufficient", "few rows")
    for labels in ("first", "first", "second", "second"):
        ledger.window_judged(WindowJudged(key="w", verdict=verdict, labels=labels), lambda earlier: True)
    judged = [event.data.labels for event in ledger.events() if isinstance(event.data, WindowJudged)]
    assert judged == ["first", "second"]
    ledger.window_judged(WindowJudged(key="w", verdict=verdict, labels="third"), lambda earlier: False)
    assert ledger.state().windows["w"].labels == "second"


def test_the_weekly_budget(ledger):
    free = type(pumps.drift)(cooldown=timedelta(0), weekly_budget=2)
    for key, day in (("one", 1), ("two", 2)):
        assert claim(ledger, key, day, free).is_granted
        ledger.retrain_finished(key, "passed", A)
    assert "budget of 2" in claim(ledger, "three", 7, free).why
    assert claim(ledger, "four", 8, free).is_granted


def test_a_retraining_needs_new_labelled_rows(ledger):
    assert "499 labelled rows are new" in claim(ledger, "one", 1, new_rows=499).why
    assert claim(ledger, "two", 1, new_rows=500).is_granted


def test_after_refusals_in_a_row_a_person_must_look_until_a_challenger_is_promoted(ledger):
    eager = type(pumps.drift)(cooldown=timedelta(0), weekly_budget=99, refusals=2)
    for key, outcome in (("one", "failed"), ("two", "refused")):
        assert claim(ledger, key, 1, eager).is_granted
        ledger.retrain_finished(key, outcome, B)
    refused = claim(ledger, "three", 2, eager)
    assert refused.rule is RefusalRule.CIRCUIT_BREAKER and "2 challengers in a row" in refused.why
    ledger.registered(Registered(version=A))
    ledger.judged(A, PASSED, ledger.state().champion)
    ledger.promote(A, expect=ledger.state().champion)
    assert claim(ledger, "four", 3, eager).is_granted


def test_aliases_tags_and_notes(ledger):
    ledger.alias("blue", A)
    ledger.tag(A, "team", "ops")
    ledger.note(A, "looks fine")
    state = ledger.state()
    assert (state.aliases, state.tags[A], state.notes[A]) == ({"blue": A}, {"team": "ops"}, ["looks fine"])
    assert (models.resolve(ledger, "blue") == models.resolve(ledger, "1") == models.resolve(ledger, "aaaaaa")
            == A)
    with pytest.raises(PerennialError, match="follows from promotions"):
        ledger.alias("champion", A)
    for mark in (lambda: ledger.alias("red", "f" * 64), lambda: ledger.tag("f" * 64, "team", "ops"),
                 lambda: ledger.note("f" * 64, "?")):
        with pytest.raises(PerennialError, match=r"is registered; see: perennial history pumps"):
            mark()
    for ref in ("aaaaa", "9", "green"):
        with pytest.raises(errors.NotFound, match="there are: champion"):
            models.resolve(ledger, ref)
    with pytest.raises(errors.NoChampion, match="perennial train pumps"):
        models.resolve(ledger, "champion")


def take(store, first, last, month=1):
    start, end = datetime(2024, month, first), datetime(2024, month, last)
    return data.append(store, pumps, check_batch(pumps, readings(start, end)).good, start, end)


def test_a_batch_is_appended_once_and_old_versions_read_back_equal(store):
    one = take(store, 1, 3)
    before = data.read(store, one)
    two = take(store, 3, 5)
    assert take(store, 1, 3) == one and data.versions(store, "pumps") == [one, two]
    assert (one.rows, two.rows, data.newest(store, "pumps")) == (800, 1600, two)
    assert data.read(store, one).equals(before) and one.digest != two.digest
    part = data.read(store, two, datetime(2024, 1, 2), datetime(2024, 1, 4))
    assert len(part) == 800 and part["measured_at"].is_monotonic_increasing


def test_a_version_knows_the_newest_end_of_all_it_holds(store):
    take(store, 5, 7)
    older = take(store, 1, 5)
    assert (older.start, older.end) == ("2024-01-01T00:00:00", "2024-01-07T00:00:00")
    assert (older.batch_start, older.batch_end) == ("2024-01-01T00:00:00", "2024-01-05T00:00:00")
    assert take(store, 1, 5) == older
    newer = take(store, 7, 8)
    assert newer.end == newer.batch_end == "2024-01-08T00:00:00"


def test_a_version_stored_without_its_batchs_window_is_read(tmp_path):
    known = take(open_store(str(tmp_path)), 1, 3)
    stored = {name: value for name, value in known.as_json().items() if not name.startswith("batch_")}
    assert data.DataVersion.from_json(stored) == known


def test_the_same_batch_from_many_at_once_is_there_once(tmp_path):
    store = open_store(str(tmp_path))
    take(store, 1, 3)
    with ThreadPoolExecutor(4) as pool:
        assert len({one.digest for one in pool.map(lambda _: take(store, 3, 5), range(4))}) == 1
    assert data.newest(store, "pumps").rows == 1600


def test_of_many_that_make_the_table_at_once_one_succeeds(store):
    for month in range(1, 13):
        model = replace(pumps, name=f"pumps-{month}")
        start, end = datetime(2024, month, 1), datetime(2024, month, 3)
        rows = check_batch(pumps, readings(start, end)).good
        with ThreadPoolExecutor(4) as pool:
            made = {*pool.map(lambda _: data.append(store, model, rows, start, end), range(4))}  # noqa: B023
        assert made == {*data.versions(store, model.name)} and len(made) == 1
        version = data.append(store, model, rows.assign(measured_at=rows["measured_at"] + timedelta(days=3)),
                              start + timedelta(days=3), end + timedelta(days=3))
        assert len(data.read(store, version)) == version.rows == 1600


def test_bad_rows_are_kept_once_with_their_reasons(tmp_path):
    store = open_store(str(tmp_path))
    rows = readings(datetime(2024, 1, 1), datetime(2024, 1, 2))
    rows.loc[5, "vibration"] = 500.0
    bad = check_batch(pumps, rows).bad
    for _ in range(2):
        bad_rows.set_aside(store, pumps, bad, datetime(2024, 1, 1), datetime(2024, 1, 2))
    kept = bad_rows.read(store, "pumps")
    assert len(kept) == 1 and "vibration" in kept["reasons"][0] and kept["vibration"][0] == 500


def spoiled_readings(spoiled: range, until: int) -> pd.DataFrame:
    """The bad rows of the readings of January's first days; some of them have no time, or no heat."""
    rows = readings(datetime(2024, 1, 1), datetime(2024, 1, until)).head(until * 200)
    rows["vibration"] = rows["vibration"].mask(rows.index.isin(spoiled), 500.0)
    rows["heat"] = rows["heat"].mask(rows.index.isin([*spoiled][::2]))
    rows["measured_at"] = rows["measured_at"].mask(rows.index == spoiled[0])
    return check_batch(pumps, rows).bad


def test_a_bad_row_that_is_found_again_beside_others_is_stored_once(tmp_path):
    store, span = open_store(str(tmp_path)), (datetime(2024, 1, 1), datetime(2024, 1, 9))
    for count, until in ((1, 2), (3, 2), (6, 3), (6, 3), (2, 3)):
        bad_rows.set_aside(store, pumps, spoiled_readings(range(5, 5 + count), until), *span)
    kept = bad_rows.read(store, "pumps")
    assert sorted(kept["starts"]) == sorted(spoiled_readings(range(5, 11), 3)["starts"])
    other_reason = spoiled_readings(range(5, 6), 3).assign(reasons="another rule")
    bad_rows.set_aside(store, pumps, other_reason, *span)
    assert len(bad_rows.read(store, "pumps")) == 7


def test_the_same_bad_rows_of_many_writers_are_stored_once(tmp_path):
    store, span = open_store(str(tmp_path)), (datetime(2024, 1, 1), datetime(2024, 1, 3))
    for rows in (3, 6):
        bad = spoiled_readings(range(5, 5 + rows), 3)
        with ThreadPoolExecutor(4) as pool:
            [*pool.map(lambda _: bad_rows.set_aside(store, pumps, bad, *span), range(4))]  # noqa: B023
        assert len(bad_rows.read(store, "pumps")) == rows


def test_nothing_to_ingest_and_nothing_ingested_say_what_to_do(tmp_path):
    store = open_store(str(tmp_path))
    with pytest.raises(errors.NotFound, match="perennial ingest pumps"):
        data.newest(store, "pumps")
    with pytest.raises(errors.NotFound, match="no row"):
        data.append(store, pumps, readings(datetime(2024, 1, 1), datetime(2024, 1, 2)).head(0),
                    datetime(2024, 1, 1), datetime(2024, 1, 2))


def test_a_version_is_its_content_and_is_checked_when_fetched(store, tmp_path):
    version = models.save(store, "pumps", {"model.ubj": b"bytes"}, {"seed": 1})
    assert models.save(store, "pumps", {"model.ubj": b"bytes"}, {"seed": 1}) == version
    assert models.save(store, "pumps", {"model.ubj": b"other"}, {"seed": 1}) != version
    place = models.fetch(store, "pumps", version, tmp_path / "here")
    assert ((place / "model.ubj").read_bytes() == b"bytes"
            and models.fetch(store, "pumps", version, tmp_path / "here") == place)
    _, tag = store.read(f"models/pumps/{version}/model.ubj")
    store.swap(f"models/pumps/{version}/model.ubj", b"evil", tag)
    with pytest.raises(errors.Corrupt, match=r"model\.ubj"):
        models.fetch(store, "pumps", version, tmp_path / "there")
    with pytest.raises(errors.NotFound):
        models.manifest(store, "pumps", A)


def test_a_model_lives_on_s3_alone(s3, tmp_path, monkeypatch):
    """Ingest, train, judge, promote and a window's verdict with no folder but the run's own."""
    monkeypatch.setenv("PERENNIAL_STORE", f"{s3}/team")
    monkeypatch.setenv("PERENNIAL_RUN", str(tmp_path / "run"))
    context = open_model(PUMPS)
    version = ingest_batch(context, datetime(2024, 1, 1), datetime(2024, 1, 22))[0]
    assert ingest_batch(context, datetime(2024, 1, 1), datetime(2024, 1, 22))[0] == version
    trained = fit_version(context)
    assert fit_version(context) == trained and judge(context, trained).passed
    context.ledger.promote(trained, expect=None)
    verdict = evaluate_window(open_model(PUMPS), datetime(2024, 1, 15))
    assert verdict.kind == "insufficient" and verdict.figures.performance.rows == 7 * 400
    assert record_and_decide(context, datetime(2024, 1, 15), verdict, known_labels(context)) == "insufficient"
    assert (models.lineage(context.store, context.ledger, trained)["manifest"]["data"]["digest"]
            == version.digest)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_rollback_forward_again_keeps_what_lies_below(tmp_path):
    ledger = Ledger(FolderStore(tmp_path), "m")
    for version, before in (("a", None), ("b", "a")):
        ledger.registered(Registered(version=version))
        ledger.judged(version, PASSED, before)
        ledger.promote(version, expect=before)
    ledger.roll_back("bad", to="a")
    ledger.roll_back("not bad", to="b")
    assert (ledger.state().champion, ledger.state().previous) == ("b", "a")
    ledger.roll_back("bad after all")
    assert ledger.state().champion == "a"
