"""A ledger of any length: the copies of its events, the snapshots of its state, and how all are verified."""

import inspect
import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import reduce
from pathlib import Path

import pytest
from msgspec import to_builtins

from contracts.core.errors import Conflict, Corrupt
from contracts.core.retraining import RefusalRule
from registry import layout
from registry import state as state_module
from registry.clock import machine_time
from registry.event_log import segments, snapshots
from registry.event_log.verification import repair, verify
from registry.events import (
    AlertOver,
    AlertRaised,
    AlertSent,
    AlertState,
    Aliased,
    Data,
    Ingested,
    Judged,
    LabelsStored,
    Noted,
    Promoted,
    Registered,
    RetrainClaimed,
    RetrainFinished,
    RetrainRefused,
    RolledBack,
    Tagged,
    WindowJudged,
)
from registry.folder_store import FolderStore
from registry.ledger import Ledger
from registry.state import State, fold
from registry.store import Store, open_store
from tests.test_registry import moto, s3, store  # noqa: F401  fixtures
from tests.verdicts import gate_verdict, window_verdict

LENGTH = 150
NOW = datetime(2024, 1, 1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Segments of 32 events and heads of 8, so that short ledgers have several."""
    for name, value in {"SEGMENT_EVENTS": 32, "HEAD_EVENTS": 8, "WITHOUT_HEAD": 6}.items():
        monkeypatch.setattr(segments, name, value)


def happened(number: int) -> Data:
    """The event of a number: of every kind that the fold knows, some about what is long ago."""
    round_, which = divmod(number, 15)
    version, window = f"v{round_}", f"w{round_}"
    return [
        Registered(version=version), Judged(version=version, against=None, verdict=gate_verdict()),
        Promoted(version=version),
        WindowJudged(key=window, verdict=window_verdict("insufficient", "few rows")),
        RetrainClaimed(key=window, now=NOW + timedelta(days=number), reason="drift"),
        AlertRaised(key=f"a{round_}", kind="x", window=window, message="m", drift_scores={"c": 1.5},
                    since=window, response="r", version=version),
        AlertSent(key=f"a{round_ // 2}", state=AlertState.RAISED),
        RetrainFinished(key=f"w{round_ // 2}", outcome="failed"),
        RetrainRefused(key=f"{window}!", now=NOW, reason="drift", why="no", rule=RefusalRule.COOLDOWN),
        AlertOver(key=f"a{round_ // 3}", ended_by=window, ended="over"),
        Noted(version="v0", text=str(number)),
        Tagged(version=f"v{round_ // 2}", key="k", value=str(number)), Aliased(name="blue", version=version),
        LabelsStored(labels=f"l{number}", rows=number),
        RolledBack(from_=version, to=f"v{max(0, round_ - 2)}", reason="slow")][which]


def filled(where: Store, length: int = LENGTH, name: str = "pumps") -> Ledger:
    ledger = Ledger(where, name)
    for number in range(length):
        ledger.record(happened(number))
    return ledger


def everything(state: State) -> dict:
    """All that a state says, as JSON values."""
    names = ("champion", "previous", "refusals", "stack", "versions", "aliases", "tags", "notes", "verdicts",
             "windows", "claims", "promoted", "alerts", "recorded", "length")
    values = {name: getattr(state, name) for name in names}
    return {name: [*value.items()] if hasattr(value, "items") else value for name, value in
            ((name, to_builtins(dict(value) if hasattr(value, "items") else value, str_keys=True))
             for name, value in values.items())}


def folded(ledger: Ledger, length: int | None = None) -> dict:
    """The state by the definition: the fold of the events themselves, without any copy."""
    events = [json.loads(ledger.store.get(layout.event("pumps", seq))) for seq in range(length or LENGTH)]
    assert [event["seq"] for event in events] == list(range(length or LENGTH))
    return everything(reduce(fold, ledger.events()[:length], State()))


class CountedStore:
    """A store that counts its requests."""

    def __init__(self, counted: Store):
        self.store, self.address, self.count = counted, counted.address, Counter()

    def __getattr__(self, name):
        def call(*arguments):
            self.count[name] += 1
            return getattr(self.store, name)(*arguments)
        return call


@pytest.fixture
def folder(tmp_path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def files(folder: FolderStore, kind: str) -> list[Path]:
    return sorted((folder.folder / "ledger" / "pumps" / kind).rglob("*.json*"))


def test_a_cold_state_is_the_fold_of_all_events_at_every_length(folder):
    ledger, expected = Ledger(folder, "pumps"), State()
    for number in range(LENGTH):
        event = ledger.record(happened(number))
        expected = fold(expected, event)
        cold = Ledger(folder, "pumps").state()
        assert everything(cold) == everything(expected) == everything(ledger.state())
    assert len(files(folder, "segments")) == 5
    assert len(files(folder, "snapshots")) == 5
    assert Ledger(folder, "pumps").events() == ledger.events()


def test_a_state_stays_what_it_was_when_more_events_come(folder):
    ledger = Ledger(folder, "pumps")
    states, expected = [ledger.state()], [everything(ledger.state())]
    for number in range(60):
        ledger.record(happened(number))
        states.append(ledger.state())
        expected.append(everything(states[-1]))
    assert [everything(state) for state in states] == expected
    assert ledger.state() is ledger.state()


def test_a_state_can_not_be_changed(folder):
    state = filled(folder, 20).state()
    with pytest.raises(TypeError):
        state.windows["w0"] = None  # type: ignore[index]
    with pytest.raises(AttributeError):
        state.champion = "x"  # type: ignore[misc]
    state.versions.append("x")  # a list of the caller's own
    state.notes["v0"].append("x")
    assert everything(state) == everything(Ledger(folder, "pumps").state())


def test_a_state_is_folded_on_once(folder):
    [event] = filled(folder, 1).events()
    first = State()
    fold(first, event)
    with pytest.raises(ValueError, match="the state after 0 events was folded up to 1"):
        fold(first, event)


def test_few_requests_start_cold_and_one_asks_for_news(store):  # noqa: F811
    writer = Ledger(store, "pumps")
    for number in range(LENGTH):
        writer.record(Noted(version="v", text=str(number)))
    counted = CountedStore(store)
    ledger = Ledger(counted, "pumps")
    assert ledger.state().champion is None
    # The head, its newest event's own object, the newest snapshot, and two questions whether there is more.
    assert counted.count.total() == 5 and "list" not in counted.count
    counted.count.clear()
    ledger.state()
    assert counted.count == {"get": 1}
    notes = ledger.state().notes
    assert counted.count == {"get": 2 + 4}  # what is older is in the snapshots of the full segments
    counted.count.clear()
    assert [event.data.text for event in ledger.events()] == notes["v"] == [*map(str, range(LENGTH))]
    assert counted.count == {"get": 1 + 5}
    for more in range(1, 9):
        writer.record(Noted(version="v", text="more"))
        counted.count.clear()
        assert Ledger(counted, "pumps").length == LENGTH + more
        assert counted.count.total() <= 4 + segments.EVERY


def test_an_append_costs_as_many_requests_as_the_first(folder):
    counted = CountedStore(folder)
    ledger, costs = Ledger(counted, "pumps"), []
    for number in range(320):
        counted.count.clear()
        ledger.record(LabelsStored(labels=str(number), rows=1), once=("labels",))
        costs.append(counted.count.total())
    assert sum(costs[256:]) <= 1.1 * sum(costs[64:128])
    assert ledger.record(LabelsStored(labels="7", rows=1), once=("labels",)) is None
    assert Ledger(folder, "pumps").record(LabelsStored(labels="7", rows=1), once=("labels",)) is None
    assert ledger.record(LabelsStored(labels="7", rows=2), once=("labels", "rows")) is not None


def test_of_another_writer_only_the_new_events_are_read(folder):
    one = filled(folder, 40)
    other = Ledger(folder, "pumps")
    assert everything(other.state()) == everything(one.state())
    for number in range(40, 100):
        (one if number % 3 else other).record(happened(number))
    assert everything(other.state()) == everything(one.state()) == folded(other, 100)
    far = Ledger(folder, "pumps")
    far.state()
    for number in range(100, 140):  # more than are asked for one by one
        one.record(happened(number))
    assert everything(far.state()) == everything(one.state()) and far.length == 140


class PowerFails(BaseException):
    pass


@pytest.mark.parametrize("first", [0, 23, 31, 64])
def test_a_crash_after_any_write_leaves_a_ledger_that_goes_on(tmp_path, monkeypatch, first):
    """Each write in turn is the last one of a process; others go on with what is there."""
    left = [float("inf")]

    def failing(write):
        def limited(*arguments):
            if left[0] < 1:
                raise PowerFails
            left[0] -= 1
            return write(*arguments)
        return limited

    for name in ("create", "swap"):
        monkeypatch.setattr(FolderStore, name, failing(getattr(FolderStore, name)))
    (tmp_path / "before").mkdir()
    filled(FolderStore(tmp_path / "before"), first)
    for writes in range(16):
        folder = FolderStore(tmp_path / str(writes))
        shutil.copytree(tmp_path / "before", folder.folder, dirs_exist_ok=True)
        left[0] = writes
        with pytest.raises(PowerFails):
            ledger = Ledger(folder, "pumps")
            for number in range(first, LENGTH):
                ledger.record(happened(number))
        left[0] = float("inf")
        survivor = Ledger(folder, "pumps")
        kept = survivor.length
        assert everything(survivor.state()) == everything(reduce(fold, survivor.events(), State()))
        for number in range(kept, kept + 12):
            survivor.record(happened(number))
        assert everything(Ledger(folder, "pumps").state()) == everything(survivor.state())
        assert verify(folder, "pumps").faults == []


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_racing_writers_leave_one_chain_and_right_copies(kind, tmp_path, request):
    address = str(tmp_path / "store") if kind == "folder" else request.getfixturevalue("s3")

    def write(writer: int) -> None:
        ledger = Ledger(open_store(address), "pumps")
        for number in range(15):
            ledger.record(LabelsStored(labels=f"{writer} {number}", rows=1), once=("labels",))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    shared = open_store(address)
    ledger = Ledger(shared, "pumps")
    assert ledger.length == 60 and len({event.data.labels for event in ledger.events()}) == 60
    found = verify(shared, "pumps")
    assert found.faults == [] and found.events == 60
    assert found.segments == len(shared.list("ledger/pumps/segments/"))
    assert everything(ledger.state()) == everything(reduce(fold, ledger.events(), State()))


def test_one_ledger_may_be_used_by_threads(folder):
    ledger = Ledger(folder, "pumps")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: (ledger.record(Noted(version="v", text=str(n))), ledger.state().notes),
                      range(80)))
    assert sorted(map(int, ledger.state().notes["v"])) == list(range(80))
    assert verify(folder, "pumps").faults == []


HARMS = {"removed": lambda _: None, "cut off": lambda whole: whole[:len(whole) // 2], "empty": lambda _: b"",
         "changed": lambda whole: whole.replace(b"v1", b"v2"), "text": lambda _: b"\xff\xfe\n\x00"}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize("kind", ["head.json", "segments", "snapshots"])
def test_a_copy_that_is_not_right_is_not_believed(folder, kind, harm):
    expected = everything(filled(folder).state())
    copies = files(folder, kind) or [folder.folder / "ledger/pumps" / kind]
    for copy in copies:
        content = harm(copy.read_bytes())
        copy.unlink()
        if content is not None:
            copy.write_bytes(content)
    ledger = Ledger(folder, "pumps")
    events = [event.seq for event in ledger.events()]
    assert everything(ledger.state()) == expected and events == list(range(LENGTH))
    for number in range(LENGTH, LENGTH + 40):
        ledger.record(happened(number))
    again = Ledger(folder, "pumps")
    assert everything(again.state()) == everything(ledger.state())
    found = verify(folder, "pumps")
    assert {fault.key.split("/")[2] for fault in found.faults} <= {kind} - {"head.json"}
    assert repair(folder, found) == [] and verify(folder, "pumps").faults == []
    assert everything(Ledger(folder, "pumps").state()) == everything(ledger.state())


def test_a_snapshot_of_another_fold_is_not_used(folder, monkeypatch):
    expected = everything(filled(folder).state())
    for name in ("registry.event_log.snapshots.fold_version", "registry.event_log.verification.fold_version"):
        monkeypatch.setattr(name, lambda: "another")
    ledger = Ledger(folder, "pumps")
    assert everything(ledger.state()) == expected
    ledger.record(happened(LENGTH))  # writes those of this fold, beside the others
    assert len(folder.list(layout.snapshots("pumps", "another"))) == 5
    assert len(files(folder, "snapshots")) == 10 and verify(folder, "pumps").snapshots == 5
    counted = CountedStore(folder)
    assert everything(Ledger(counted, "pumps").state()) == everything(ledger.state())
    assert counted.count.total() <= 12


def test_a_snapshot_of_another_chain_is_not_used(folder, tmp_path):
    expected = everything(filled(folder).state())
    other = FolderStore(tmp_path / "other")
    stranger = Ledger(other, "pumps")
    for number in range(LENGTH):
        stranger.record(Noted(version="v", text=str(number)))
    for theirs in files(other, "snapshots"):
        (folder.folder / theirs.relative_to(other.folder)).write_bytes(theirs.read_bytes())
    assert everything(Ledger(folder, "pumps").state()) == expected


@pytest.mark.parametrize("times", [1, 9])
def test_copies_that_are_written_while_they_are_read(folder, monkeypatch, times):
    """A head is read, then others append: the snapshot that is read after it is of more events."""
    writer = filled(folder, 80)
    stale = segments.read_head(folder, "pumps")
    for number in range(80, LENGTH):
        writer.record(happened(number))
    reads = [stale] * times

    def read_head(*arguments):
        return reads.pop() if reads else segments.read_head(*arguments)

    for segment in stale[0].segments[-1:]:  # it has grown since
        assert segment.end - segment.first < segments.SEGMENT_EVENTS
    monkeypatch.setattr(snapshots, "read_head", read_head)
    assert everything(Ledger(folder, "pumps").state()) == everything(writer.state())


def test_a_head_of_another_chain_is_not_used(folder, tmp_path):
    expected = everything(filled(folder).state())
    other = FolderStore(tmp_path / "other")
    filled(other)
    theirs, ours = (one.folder / "ledger/pumps/head.json" for one in (other, folder))
    ours.write_bytes(theirs.read_bytes())
    assert everything(Ledger(folder, "pumps").state()) == expected


def test_a_head_that_is_ahead_of_the_events_is_an_event_lost(folder):
    filled(folder)
    head = segments.read_head(folder, "pumps")[0]
    for seq in range(head.end - 2, LENGTH):
        folder.remove(layout.event("pumps", seq))
    with pytest.raises(Corrupt, match=rf"event {head.end - 1} is missing .*from a backup"):
        Ledger(folder, "pumps").state()
    whats = [fault.what for fault in verify(folder, "pumps").faults]
    assert whats == [f"event {seq} is missing" for seq in (head.end - 2, head.end - 1)]


def test_an_event_that_is_missing_behind_the_head_is_noticed(folder):
    filled(folder, LENGTH + 2)
    assert segments.read_head(folder, "pumps")[0].end == LENGTH
    folder.remove(layout.event("pumps", LENGTH))
    with pytest.raises(Corrupt, match=f"event {LENGTH} is missing"):
        Ledger(folder, "pumps").state()


def rewritten(folder: FolderStore, seq: int, change: dict, is_digest_right: bool = False) -> None:
    from contracts.core.digests import canonical_json, digest_of

    file = folder.folder / layout.event("pumps", seq)
    stored = json.loads(file.read_bytes()) | change
    if is_digest_right:
        hashed = {name: value for name, value in stored.items() if name not in ("format", "digest")}
        stored["digest"] = digest_of(hashed)
    file.write_bytes(canonical_json(stored))


def test_an_event_changed_under_a_snapshot_is_found_by_verify(folder):
    filled(folder)
    assert verify(folder, "pumps").faults == []
    rewritten(folder, 10, {"data": {"version": "v0", "text": "another"}})
    Ledger(folder, "pumps").state()  # which reads the copies
    [fault] = verify(folder, "pumps").faults
    assert fault.key == layout.event("pumps", 10) and "is not the one that was appended" in fault.what
    assert "a copy of event 10 with its digest is line 11 of ledger/pumps/segments/0" in fault.remedy
    assert fault.repair is None


def test_an_event_changed_with_its_digest_is_found_by_the_one_after_it(folder):
    filled(folder)
    rewritten(folder, 70, {"by": "somebody"}, is_digest_right=True)
    found = verify(folder, "pumps").faults
    assert found[0].key == layout.event("pumps", 71)
    assert "names" in found[0].what and "one of the two was changed" in found[0].what


def test_a_snapshot_changed_with_its_sum_is_found_by_verify(folder):
    filled(folder)
    [first, *_] = files(folder, "snapshots")
    stored = snapshots.unsealed(first.read_bytes(), snapshots.Snapshot, snapshots.FORMAT)
    entries = stored.entries | {"aliases": {"blue": b'"v9"'}}
    forged = json.loads(first.read_bytes().split(b"\n")[1]) | {"entries": json.loads(json.dumps(
        {name: {key: json.loads(bytes(value)) for key, value in values.items()}
         for name, values in entries.items()}))}
    body = json.dumps(forged, separators=(",", ":")).encode()
    seal = {"format": 1, "sha256": __import__("hashlib").sha256(body).hexdigest()}
    first.write_bytes(json.dumps(seal).encode() + b"\n" + body)
    found = verify(folder, "pumps")
    [fault] = found.faults
    assert "is not what the events amount to" in fault.what and "perennial verify --repair" in fault.remedy
    assert repair(folder, found) == [] and verify(folder, "pumps").faults == []


def test_verify_tells_how_far_it_is(folder):
    filled(folder)
    told = []
    verify(folder, "pumps", lambda done, of: told.append((done, of)))
    assert told[-1] == (LENGTH, LENGTH)
    assert verify(folder, "nobody").events == 0


def test_a_ledger_without_copies_gets_them_with_its_next_event(folder):
    filled(folder)
    for kind in ("segments", "snapshots"):
        for file in files(folder, kind):
            file.unlink()
    folder.remove(layout.head("pumps"))
    ledger = Ledger(folder, "pumps")
    ledger.record(happened(LENGTH))
    assert len(files(folder, "segments")) == len(files(folder, "snapshots")) == 5
    counted = CountedStore(folder)
    Ledger(counted, "pumps").state()
    assert counted.count.total() <= 7 and verify(folder, "pumps").faults == []


def test_events_go_on_to_the_segments_by_their_size(folder, monkeypatch):
    monkeypatch.setattr(segments, "HEAD_BYTES", 3_000)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 9_000)
    monkeypatch.setattr(segments, "HEAD_EVENTS", 1_000)
    ledger = Ledger(folder, "pumps")
    for number in range(60):
        ledger.record(Noted(version="v", text="x" * (500 + number)))
    sizes = [file.stat().st_size for file in files(folder, "segments")]
    assert len(sizes) > 3 and max(sizes) < 9_000 + 1_000
    assert everything(Ledger(folder, "pumps").state()) == everything(ledger.state())
    assert verify(folder, "pumps").faults == []


def test_a_copy_that_can_not_be_written_costs_no_event(folder, monkeypatch, caplog):
    ledger = filled(folder, 20)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments, "write_head", full)
    for number in range(20, 40):
        assert ledger.record(happened(number)).seq == number
    assert "the copies of the ledger's events were not written" in caplog.text
    monkeypatch.undo()
    assert everything(Ledger(folder, "pumps").state()) == folded(ledger, 40)


def test_the_state_at_a_time_is_right_in_segments_and_after(folder, monkeypatch):
    clock = [machine_time()]

    def tick():
        clock[0] += timedelta(seconds=-30 if clock[0].second % 5 == 3 else 7)
        return clock[0]

    monkeypatch.setattr("registry.ledger.machine_time", tick)
    events = filled(folder).events()
    cold, warm = Ledger(folder, "pumps"), Ledger(folder, "pumps")
    warm.state()
    for event in events[::7]:
        until = max(n for n, one in enumerate(events, 1) if one.at <= event.at)
        expected = everything(reduce(fold, events[:until], State()))
        assert everything(cold.state(at=event.at)) == everything(warm.state(at=event.at)) == expected
    assert cold.state(at="2000-01-01T00:00").length == 0


def test_a_page_of_events_reads_only_what_holds_it(folder):
    events = filled(folder).events()
    counted = CountedStore(folder)
    ledger = Ledger(counted, "pumps")
    ledger.state()
    counted.count.clear()
    assert ledger.events(40, 50) == events[40:50]
    assert counted.count.total() == 2  # what came since, and one segment
    assert ledger.events(30, 70) == events[30:70] and ledger.events(140) == events[140:]
    assert ledger.events(148, 900) == events[148:] and ledger.events(900) == []


def test_events_are_found_by_what_they_name(folder):
    ledger = filled(folder)
    named = ledger.events_with("v3", "l13")
    assert {event.seq for event in named} >= {13, 45, 46, 47}
    assert all("v3" in json.dumps(to_builtins(event)) or "l13" in json.dumps(to_builtins(event))
               for event in named)
    assert ledger.events_with("never") == []


def test_the_fold_has_another_version_when_a_stored_struct_changes(monkeypatch):
    now = state_module.fold_version()
    state_module.fold_version.cache_clear()
    monkeypatch.setattr(state_module, "TYPES", state_module.TYPES | {"more": int})
    try:
        assert state_module.fold_version() != now
    finally:
        state_module.fold_version.cache_clear()


def test_all_code_that_folds_is_part_of_the_folds_version():
    own = {Path(inspect.getfile(used)) for used in vars(state_module).values()
           if inspect.isfunction(used) or inspect.ismodule(used)}
    here = Path(state_module.__file__).parent.parent
    assert {file for file in own if file.is_relative_to(here) and ".venv" not in file.parts} - {
        here / "registry/event_log/entries.py"} == {*map(Path, state_module.FOLDING)}


def test_an_older_releases_view_of_the_folder_is_as_before(folder):
    """It lists the keys of events, and passes over all others."""
    filled(folder, 40)
    listed = [layout.event_number(key) for key in folder.list("ledger/pumps/")]
    assert [number for number in listed if number is not None] == list(range(40))
    assert layout.event_number("ledger/pumps/100000000.json") == 100_000_000
    with pytest.raises(Conflict):
        folder.create(layout.event("pumps", 0), b"")
    assert Ingested.__struct_config__.tag == "ingested"
