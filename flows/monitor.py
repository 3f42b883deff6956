"""traffic profiles + matured labels → verdict → event → train."""

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import flow, task
from prefect.deployments import run_deployment
from prefect.events import emit_event

from contracts.contract import Verdict
from contracts.drift import Scores, drift, pages, scored, wants_retraining
from flows.artifacts import show_window, tag_run
from flows.memory import Memory, remember
from flows.release import release_version
from flows.rollout import served
from flows.train import fetched, reference_key
from registry import data, models
from registry.store import Taken
from service import profiles
from service.model import Model, restore

PATIENCE = timedelta(minutes=10)  # longer than a training takes


@flow(name="monitor", flow_run_name="{model} {window}")
def monitor(model: str, window: str) -> dict[str, Any]:
    """Judge the window of traffic that starts at `window` (ISO time); one event says what should follow."""
    tag_run(model)
    verdict, action = judge_window(model, window)
    show_window(model, window, verdict, action)
    announce(model, window, verdict, action)
    return {"verdict": verdict, "action": action}


@task(task_run_name="judge window {window} of {model}")
def judge_window(model: str, window: str) -> tuple[dict[str, Any], str]:
    memory = remember(model)
    ship(memory)
    verdict = watch(memory, datetime.fromisoformat(window))
    return verdict.as_json(), act(memory, datetime.fromisoformat(window), verdict)


def announce(model: str, window: str, verdict: dict[str, Any], action: str) -> None:
    """Emit the window's one event; its id is the window's, so that Prefect keeps one of many."""
    emit_event(
        event=f"perennial.window.{action}", resource={"prefect.resource.id": f"perennial.model.{model}"},
        id=uuid5(NAMESPACE_URL, f"perennial/{model}/{window}"),
        payload={"model": model, "window": window, "kind": verdict["kind"], "reason": "; ".join(verdict["reasons"])})


def ship(memory: Memory) -> int:
    """Copy the replicas' profiles from this machine's spool to the store, newer over older; how many were new."""
    shipped = 0
    for path in sorted(memory.spool.glob(f"{memory.name}/*/*/*.bin")):
        key, content = f"profiles/{path.relative_to(memory.spool).as_posix()}", path.read_bytes()
        shipped += _replace(memory, key, content)
    return shipped


def ship_until_told(memory: Memory, seconds: float) -> int:
    """Ship every so often; SIGTERM and SIGINT end it after a last time, when the replica beside it has written all."""
    told, shipped = Event(), 0
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: told.set())
    while not told.wait(seconds):
        shipped += ship(memory)
    return shipped + ship(memory)


def _replace(memory: Memory, key: str, content: bytes) -> bool:
    try:
        memory.store.create(key, content)
        return True
    except Taken:
        there, tag = memory.store.read(key)
    if there == content:
        return False
    memory.store.swap(key, content, tag)
    return True


def watch(memory: Memory, start: datetime) -> Verdict:
    """The window's Verdict: the champion's traffic against its training data, and its score on matured labels."""
    contract, champion = memory.contract, models.resolve(memory.ledger, "champion")
    parts = [memory.store.get(key) for key in memory.store.list(f"profiles/{memory.name}/{champion}/{start:{profiles.START_FORMAT}}/")]
    model = restore(contract, fetched(memory, champion))
    reference = profiles.from_bytes(memory.store.get(reference_key(memory, champion)))
    seen = profiles.merge(parts) if parts else None
    compared = profiles.compare(contract, reference, seen) if seen else {}
    rows, bad = (profiles.rows(seen), profiles.bad_inputs(seen)) if seen else (0, 0)
    return drift(compared, contract.drift, rows=rows, bad=bad, scores=score(memory, model, start))


def score(memory: Memory, model: Model, start: datetime) -> Scores | None:
    """How the model did on the window's matured labels; None while there are none."""
    contract = memory.contract
    rows = data.read(memory.store, data.newest(memory.store, memory.name), start, start + contract.drift.window)
    if rows.empty:
        return None
    return scored(contract, contract.labels_of(rows), model.probabilities(contract.columns_of(rows)))


def act(memory: Memory, start: datetime, verdict: Verdict) -> str:
    """Write the Verdict down and say what follows: retrain (the ledger granted it), page, wait, noted (no cause to
    retrain under this contract), insufficient or fine."""
    window, drifted = start.isoformat(), memory.contract.drift
    memory.ledger.window_judged(window, verdict, {"champion": memory.ledger.state().champion})
    if pages(verdict):
        return "page"
    if not wants_retraining(verdict, drifted):
        return {"passed": "fine", "failed": "noted"}.get(verdict.outcome, "insufficient")
    claim = memory.ledger.claim_retraining(
        window, now=start + drifted.window, reason="; ".join(verdict.reasons), drift=drifted)
    return "retrain" if claim.granted else "wait"


@flow(name="reconcile")
def reconcile(names: list[str] | None = None) -> dict[str, Any]:
    """Do what was lost: judge closed windows, start granted retrainings, bring up the champion's replicas."""
    done: dict[str, Any] = {}
    for model in names or known_models():
        memory = remember(model)
        ship(memory)
        judged = {window.isoformat(): monitor(model, window.isoformat())["action"] for window in due(memory)}
        started = [start_training(model, window) for window in forgotten_claims(memory)]
        released = None if served(memory) else release_version(model, memory.ledger.state().champion)
        done[model] = {"windows": judged, "trainings": started, "released": released}
    return done


def start_training(model: str, window: str) -> str:
    """Ask for the deployment's run, so that its concurrency limit holds; gives the run's name."""
    parameters = {"model": model, "window": window, "reason": "reconciled: its event was lost"}
    return run_deployment("train/train", parameters=parameters, timeout=0, tags=[f"model:{model}"]).name


def known_models() -> list[str]:
    """Every contract in contracts/."""
    folder = Path(__file__).parent.parent / "contracts"
    return sorted({path.stem for path in folder.glob("*.py")} - {"__init__", "contract", "quality", "drift", "canary"})


def due(memory: Memory) -> list[datetime]:
    """Closed windows of the champion's traffic that nobody has judged: labels are in for their whole length."""
    state = memory.ledger.state()
    if state.champion is None:
        return []
    labelled = datetime.fromisoformat(data.newest(memory.store, memory.name).end)
    keys = memory.store.list(f"profiles/{memory.name}/{state.champion}/")
    starts = sorted({datetime.strptime(key.split("/")[3], profiles.START_FORMAT) for key in keys})
    return [start for start in starts
            if start + memory.contract.drift.window <= labelled and start.isoformat() not in state.windows]


def forgotten_claims(memory: Memory) -> list[str]:
    """Granted retrainings that nobody finished for a while: their event or their run was lost."""
    late = (datetime.now(UTC) - PATIENCE).isoformat()
    claims = memory.ledger.state().claims
    return [key for key, claim in claims.items() if claim["state"] == "claimed" and claim["at"] < late]
