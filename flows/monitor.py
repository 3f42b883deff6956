"""traffic profiles + matured labels → verdict → event → train."""

import json
import logging
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pandas as pd
from prefect import flow, task
from prefect.deployments import run_deployment
from prefect.events import emit_event

from contracts.bins import REFERENCE, watched
from contracts.contract import Drift, PerennialError, Verdict, known_models
from contracts.drift import Scores, crept, drift, estimated, pages, persists, scored, waits, wants_retraining
from contracts.reference import Compared, from_bytes, together
from contracts.skew import Skew, answers_apart, misplaced, skewed
from contracts.trace import Rows
from flows import window_page, window_report
from flows.alerts import tell
from flows.artifacts import show_window, tag_run
from flows.memory import Memory, remember
from flows.predictions import LATER, Outcomes, ingested, outcomes, probabilities_of, shifted, ship_predictions
from flows.release import release_version
from flows.rollout import served
from flows.train import fetched
from registry import data, models
from registry.ledger import BROKEN, State
from registry.store import NotThere, Taken, put
from service import profiles
from service.model import SERVED, Model, restore
from service.profiles import NOTHING, Tally

WIDEST = 4  # windows that are judged together where one has too few rows
PATIENCE = timedelta(minutes=10)  # longer than a training takes

log = logging.getLogger("perennial.monitor")


class NoProfile(PerennialError):
    """Bytes that are no profile."""


class NoTraffic(PerennialError):
    """The profiles that a window was judged by are gone."""


@flow(name="monitor", flow_run_name="{model} {window}")
def monitor(model: str, window: str) -> dict[str, Any]:
    """Judge the window of traffic that starts at `window` (ISO time); one event says what should follow."""
    tag_run(model)
    verdict, action = judge_window(model, window)
    announce(model, window, verdict, action)
    tell(remember(model), window, verdict, action)
    drawn = draw_window(model, window, return_state=True)
    show_window(model, window, verdict, action, drawn.result() if drawn.is_completed() else None)
    drawn.result()  # a report that was not drawn fails the run, now that all else is done
    return {"verdict": verdict, "action": action}


@task(task_run_name="judge window {window} of {model}")
def judge_window(model: str, window: str) -> tuple[dict[str, Any], str]:
    """What the ledger holds of the window, judged now where it holds no answer yet; and what follows."""
    memory = remember(model)
    ship(memory)
    start = closed(memory, window)
    held = memory.ledger.state().windows.get(window, {}).get("verdict")
    answered = held and not waits(Verdict.from_json(held), memory.contract.drift)
    action = act(memory, start, Verdict.from_json(held) if answered else watch(memory, start))
    return memory.ledger.state().windows[window]["verdict"], action


@task(task_run_name="draw window {window} of {model}")
def draw_window(model: str, window: str) -> str:
    """Keep the window's report in the store, in place of an earlier one; gives its address."""
    memory = remember(model)
    key = window_report.key(memory, window)
    put(memory.store, key, report(memory, window))
    return f"{memory.store.address}/{key}"


def report(memory: Memory, window: str) -> bytes:
    """A judged window as one HTML page, from what the ledger and the store hold now."""
    verdict, start = window_report.judged(memory, window), datetime.fromisoformat(window)
    action = decided(memory.ledger.state(), window, memory.contract.drift)
    return window_page.render(window_report.gather(memory, window, action, seen_again(memory, start, verdict)))


def closed(memory: Memory, window: str) -> datetime:
    """The window's start; refuses what starts no window, and a window whose labels are not all in."""
    contract, name = memory.contract, memory.name
    try:
        start, end = contract.window_of(datetime.fromisoformat(window))
    except (ValueError, TypeError, OverflowError):  # no time, one with a zone, or one at the end of all times
        raise PerennialError(f"{window!r} starts no window of {name}; name its start without a zone, as 2013-07-01T00:00:00") from None
    if start.isoformat() != window:
        raise PerennialError(f"{window} starts no window of {name}; the one around it starts at {start.isoformat()}: name that")
    if end > (labelled := labelled_until(memory)):
        last = contract.window_of(labelled)[0] - contract.drift.window
        raise PerennialError(f"the window {window} of {name} is open: it ends at {end}, labels are in up to {labelled}; name "
                             f"{last.isoformat()} or an earlier one, or first run: perennial ingest {name}")
    return start


def labelled_until(memory: Memory) -> datetime:
    return datetime.fromisoformat(data.newest(memory.store, memory.name).end)


def announce(model: str, window: str, verdict: dict[str, Any], action: str) -> None:
    """Emit the window's event; its id is the window's and the action's, so that Prefect keeps one of many."""
    emit_event(
        event=f"perennial.window.{action}", resource={"prefect.resource.id": f"perennial.model.{model}"},
        id=uuid5(NAMESPACE_URL, f"perennial/{model}/{window}/{action}"),
        payload={"model": model, "window": window, "kind": verdict["kind"], "reason": "; ".join(verdict["reasons"])})


def ship(memory: Memory, patient: bool = False) -> int:
    """Copy the replicas' profiles and predictions from this machine's spool to the store, newer over older; how many were new.

    What is no profile is set aside as a `.junk` file beside it, for a person to look at.
    """
    shipped, junk = ship_predictions(memory, patient), []
    for path in sorted(memory.spool.glob(f"{memory.name}/*/*/*.bin")):
        try:
            shipped += _replace(memory, f"profiles/{path.relative_to(memory.spool).as_posix()}", path.read_bytes())
        except NoProfile:
            junk.append(str(path.replace(path.with_suffix(".junk"))))
    if junk:
        log.warning("%d files are no profiles and were set aside; look at them: %s", len(junk), ", ".join(junk))
    return shipped


def ship_until_told(memory: Memory, seconds: float) -> int:
    """Ship every so often; SIGTERM and SIGINT end it after a last time, when the replica beside it has written all."""
    told, shipped = Event(), 0
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: told.set())
    while not told.wait(seconds):
        shipped += ship(memory, patient=True)
    return shipped + ship(memory)


def _replace(memory: Memory, key: str, content: bytes) -> bool:
    """Put a profile in the store unless as much is there already; once more where another monitor came first."""
    while True:
        try:
            there, tag = memory.store.read(key)
        except NotThere:
            there, tag = None, ""
        if there == content or _records(content) <= (_records(there) if there else -1):  # a replica's profile only grows
            return False
        with suppress(Taken):
            memory.store.swap(key, content, tag) if tag else memory.store.create(key, content)
            return True


def _records(content: bytes) -> int:
    """All that a profile counts; raises NoProfile."""
    try:
        seen = profiles.tally(content)
        return seen.rows + seen.bad + seen.elsewhere
    except Exception as error:  # whylogs raises of all kinds on bytes that are not its own
        raise NoProfile(f"{len(content)} bytes are no profile: {error}; remove them") from error


def watch(memory: Memory, start: datetime) -> Verdict:
    """The window's Verdict: its traffic against the training data of the version that answered most of it, and that version's
    score on matured labels. The figures name the version; without traffic it is the champion.

    Where the window has too few rows it is widened by those before it, of the same version, WIDEST windows in all.
    """
    contract, (version, seen, others) = memory.contract, _served(memory, start)
    events = ingested(memory, start)
    model, found = restore(contract, fetched(memory, version)), outcomes(memory, version, start, events)
    scores, skew, logged = score(memory, model, found, events), skew_of(memory, model, found, events), rows_of(memory, model, found)
    started = first_traffic(memory)
    expected = started and started <= start and start + contract.drift.window <= labelled_until(memory)
    before = memory.ledger.state().windows.get((start - contract.drift.window).isoformat(), {"verdict": {"figures": {}}})["verdict"]["figures"]
    for compared in _ever_wider(memory, start, version, seen, others):
        verdict = drift(contract, compared.reference, compared.counts, rows=compared.rows, bad=seen.bad, scores=scores, skew=skew,
                        seen=logged, at_fault=seen.at_fault, events=len(events) if expected else None,
                        before=before.get("checks", {}))
        if verdict.outcome != "insufficient":
            break
    return replace(verdict, figures={
        **verdict.figures, "version": version, "since": compared.since.isoformat(), "crept": _crept(memory, version, compared),
        "estimate": estimated(probabilities_of(contract, found.logged)) if len(found.logged) else None})


def seen_again(memory: Memory, start: datetime, verdict: Verdict) -> Compared:
    """What a window's Verdict was given on, counted anew; raises NoTraffic where its profiles are gone."""
    version, since = verdict.figures["version"], datetime.fromisoformat(verdict.figures["since"])
    others = {other: _traffic(memory, other, start) for other in champions(memory) if other != version}
    others = {other: seen for other, seen in others.items() if seen.rows}
    for compared in _ever_wider(memory, start, version, _traffic(memory, version, start), others):
        if compared.since <= since:
            break
    if verdict.figures["rows"] and not compared.rows:
        raise NoTraffic(f"the traffic of {memory.name} from {since.isoformat()} on was judged and is gone; restore "
                        f"profiles/{memory.name}/{version}/ in {memory.store.address} from a backup, or name another window; "
                        f"what was judged is in: perennial history {memory.name}")
    return compared


def _ever_wider(memory: Memory, start: datetime, version: str, seen: Tally, others: Mapping[str, Tally]) -> Iterator[Compared]:
    """The version's training data with what was `seen` of the window, by it and by `others`; then with windows before it."""
    reference = from_bytes((fetched(memory, version) / REFERENCE).read_bytes())
    for since in (start - back * memory.contract.drift.window for back in range(WIDEST)):
        seen = seen if since == start else _traffic(memory, version, since) + seen
        counts, compared = seen.counts, reference
        for other, theirs in others.items():  # a week whose first days another champion answered is a week all the same
            compared, counts = together(compared, counts, profiles.bins_of(fetched(memory, other)), theirs.counts)
        yield Compared(compared, counts, max((int(now.sum()) for now in counts.values()), default=0), since)


def _crept(memory: Memory, version: str, compared: Compared) -> dict[str, float]:
    first = champions(memory)[:1]
    if not compared.counts or first == [version]:
        return {}
    references = from_bytes((fetched(memory, first[0]) / REFERENCE).read_bytes()) if first else {}
    return {name: round(far, 3) for name, far in crept(memory.contract, references, compared.reference, compared.counts).items()}


def _served(memory: Memory, start: datetime) -> tuple[str, Tally, dict[str, Tally]]:
    """Of all champions so far, the one that answered most of the window, what it saw, and what the others did."""
    seen = {version: _traffic(memory, version, start) for version in champions(memory)}
    most = max(seen, key=lambda version: (seen[version].rows, seen[version].bad), default=None)
    version = most if most and (seen[most].rows or seen[most].bad) else models.resolve(memory.ledger, "champion")
    return version, seen.get(version, NOTHING), {other: found for other, found in seen.items() if other != version and found.rows}


def _traffic(memory: Memory, version: str, start: datetime) -> Tally:
    """What all replicas of a version saw in a window."""
    keys = memory.store.list(f"profiles/{memory.name}/{version}/{start:{profiles.START_FORMAT}}/")
    return sum((profiles.tally(memory.store.get(key)) for key in keys), NOTHING)


def score(memory: Memory, model: Model, found: Outcomes, events: pd.DataFrame) -> Scores | None:
    """How the answers did on the window's matured labels; where none can meet its label, as without a log or a key, how the
    model does. None while there are no labels."""
    contract = memory.contract
    if len(found.labelled):
        return scored(contract, contract.labels_of(found.labelled), probabilities_of(contract, found.labelled), found.coverage)
    if events.empty or found.could_meet:
        return None
    return scored(contract, contract.labels_of(events), model.probabilities(contract.columns_of(events)))


def skew_of(memory: Memory, model: Model, found: Outcomes, events: pd.DataFrame) -> list[Skew]:
    """Where what was sent and answered is not what was ingested, and what the registered model answers."""
    contract, met = memory.contract, found.met
    if met.empty:
        return []
    sent, times = contract.columns_of(met), met[contract.event_time].to_numpy()
    both = [name for name in contract.request_columns if f"{name}{LATER}" in met]
    later = contract.columns_of(met[[f"{name}{LATER}" for name in both]].set_axis(both, axis=1), tuple(both))
    apart = answers_apart(contract, probabilities_of(contract, met), model.probabilities(sent), times)
    return skewed(contract, sent, later) + apart + [*misplaced(contract, len(found.unmet), shifted(contract, found, events))]


def rows_of(memory: Memory, model: Model, found: Outcomes) -> Rows | None:
    """The logged predictions as drift is judged by them; None without any."""
    contract = memory.contract
    if found.logged.empty:
        return None
    columns, probabilities = contract.columns_of(found.logged), probabilities_of(contract, found.logged)
    values = {name: one.values for name, one in watched(contract, columns, probabilities, model.classes(probabilities)).items()}
    return Rows(columns[contract.event_time], values, {name: columns[name] for name in contract.gate.slices if name in columns})


def act(memory: Memory, start: datetime, verdict: Verdict) -> str:
    """Write the Verdict down, ask for a retraining where it is a cause for one, and say what follows from the one that the ledger keeps."""
    window, drifted = start.isoformat(), memory.contract.drift
    facts = {"champion": memory.ledger.state().champion, "labels": _labels_held(memory)}
    verdict = memory.ledger.window_judged(window, verdict, facts, again=lambda held: waits(held, drifted))
    judged = sorted((key, one["verdict"]) for key, one in memory.ledger.state().windows.items() if key <= window)
    if wants_retraining(verdict, drifted) and persists([Verdict.from_json(one) for _, one in judged], drifted):
        memory.ledger.claim_retraining(window, now=start + drifted.window, reason="; ".join(verdict.reasons), drift=drifted,
                                       fresh=fresh_rows(memory))
    return decided(memory.ledger.state(), window, drifted)


def decided(state: State, window: str, policy: Drift) -> str:
    """What follows from a judged window: retrain (the ledger granted it), page, watch (it must persist first), wait (cooldown
    or budget), noted (no cause to retrain under this contract), insufficient or fine."""
    verdict, claim = Verdict.from_json(state.windows[window]["verdict"]), state.claims.get(window)
    if pages(verdict):
        return "page"
    if not wants_retraining(verdict, policy):
        return {"passed": "fine", "failed": "noted"}.get(verdict.outcome, "insufficient")
    if claim is None:
        return "watch"
    if claim["state"] != "refused":
        return "retrain"
    return "page" if claim["why"].startswith(BROKEN) else "wait"


def fresh_rows(memory: Memory) -> int:
    """The labelled rows that came since the champion was trained."""
    trained = models.manifest(memory.store, memory.name, models.resolve(memory.ledger, "champion"))["rows"]
    return data.newest(memory.store, memory.name).rows - trained


@flow(name="reconcile")
def reconcile(names: list[str] | None = None) -> dict[str, Any]:
    """Do what was lost: judge closed windows, start granted retrainings, bring up the champion's replicas."""
    done: dict[str, Any] = {}
    for model in names or known_models():
        memory = remember(model)
        ship(memory)
        if missed := stale(memory):
            log.error("%s is stale: %s", model, "; ".join(missed.reasons))
            announce(model, missed.figures["since"], missed.as_json(), "page")
            tell(memory, max(_windows_of_traffic(memory)).isoformat(), missed.as_json(), "page")
        tell_again(memory)
        judged = {window.isoformat(): monitor(model, window.isoformat())["action"] for window in due(memory)}
        started = [start_training(model, window) for window in forgotten_claims(memory)]
        released = None if served(memory) else release_version(model, memory.ledger.state().champion)
        done[model] = {"windows": judged, "stale": [*missed.reasons] if missed else [], "trainings": started, "released": released}
    return done


def tell_again(memory: Memory) -> None:
    """Tell once more of the newest judged window: whoever judged it may have died before its alerts were out."""
    windows = memory.ledger.state().windows
    if windows:
        newest = max(windows)
        verdict = windows[newest]["verdict"]
        tell(memory, newest, verdict, act(memory, datetime.fromisoformat(newest), Verdict.from_json(verdict)))


def start_training(model: str, window: str) -> str:
    """Ask for the deployment's run, so that its concurrency limit holds; gives the run's name."""
    parameters = {"model": model, "window": window, "reason": "reconciled: its event was lost"}
    return run_deployment("train/train", parameters=parameters, timeout=0, tags=[f"model:{model}"]).name


def due(memory: Memory) -> list[datetime]:
    """Closed windows to judge, from the first one with a champion's traffic on: those that nobody judged, without traffic too,
    and the newest ones that wait for labels, where some came."""
    started = first_traffic(memory)
    if started is None:
        return []
    policy, newest, judged = memory.contract.drift, labelled_until(memory), memory.ledger.state().windows
    held, oldest = _labels_held(memory), newest - (WIDEST + 1) * policy.window

    def to_judge(start: datetime) -> bool:
        one = judged.get(start.isoformat())
        return one is None or (start >= oldest and one.get("labels") != held and waits(Verdict.from_json(one["verdict"]), policy))

    return [start for start in (started + policy.window * index for index in range((newest - started) // policy.window)) if to_judge(start)]


def _labels_held(memory: Memory) -> str:
    """Another text whenever labels came, with events or for ids."""
    by_id = memory.ledger.state().recorded.get("labelled", ())
    return " ".join([data.newest(memory.store, memory.name).digest, *(one["labels"][:12] for one in by_id[-1:])])


def first_traffic(memory: Memory) -> datetime | None:
    """The start of the first window in which a champion answered; None before there was one."""
    return min(_windows_of_traffic(memory), default=None)


def _windows_of_traffic(memory: Memory) -> set[datetime]:
    mine, keys = champions(memory), [key.split("/") for key in memory.store.list(f"profiles/{memory.name}/")]
    return {datetime.strptime(start, profiles.START_FORMAT) for _, _, version, start, _ in keys if version in mine}


def stale(memory: Memory) -> Verdict | None:
    """That labels stay away though traffic goes on, if they do."""
    newest, window = max(_windows_of_traffic(memory), default=None), memory.contract.drift.window
    if newest is None or newest - (labels := labelled_until(memory)) < 2 * window:
        return None
    return Verdict("drift", "failed", kind="stale", figures={"since": labels.isoformat(), "checks": {}}, reasons=(
        f"labels are in up to {labels}, traffic is of the window that starts at {newest}: nothing after can be judged; look why "
        f"`perennial ingest {memory.name}` finds none",))


def champions(memory: Memory) -> list[str]:
    """The champion and those before it, but for those that the contract has outgrown: their traffic can't be judged."""
    state = memory.ledger.state()

    def serving(version: str) -> str:
        return json.loads(memory.store.get(f"models/{memory.name}/{version}/{SERVED}.json"))["serving"]
    return [version for version in state.promoted if version == state.champion or serving(version) == memory.contract.serving]


def forgotten_claims(memory: Memory) -> list[str]:
    """Granted retrainings that nobody finished for a while: their event or their run was lost."""
    late = (datetime.now(UTC) - PATIENCE).isoformat()
    claims = memory.ledger.state().claims
    return [key for key, claim in claims.items() if claim["state"] == "claimed" and claim["at"] < late]
