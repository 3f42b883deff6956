"""The demo: a real year of flights through the whole loop, against two ways of living without it."""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from contracts.contract import Contract, PerennialError, load
from contracts.drift import how_far
from contracts.quality import scores
from flows.faults import Fault, labels_of, refused, spoiled
from flows.fit import prepared
from flows.memory import demo_home
from service.model import Model, records_of_columns, restore

MODEL = "flights"
YEAR, TRAFFIC = datetime(2013, 1, 1), datetime(2013, 3, 1)
BATCH, AT_ONCE = 100, 4  # records a request; requests under way together
PACE, FAST = 0.1, 0.01  # seconds between one-record requests while a retraining runs, and while its canary is judged
RESERVE = 400  # of a day's records, for the canary: a training on a busy machine would else leave it without traffic
TRAINING = 300  # seconds that a retraining may take before the replay gives up on it


@dataclass
class Traffic:
    """Every record of the replay, what the live service answered, and how each request went."""

    contract: Contract
    rows: pd.DataFrame
    url: str
    faults: tuple[Fault, ...] = ()
    records: list[dict[str, Any]] = field(init=False)
    answers: np.ndarray = field(init=False)
    requests: list[tuple[str, bool, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        sent = spoiled(self.rows, self.contract.event_time, self.faults)
        self.records = records_of_columns(self.contract, self.contract.columns_of(sent, self.contract.sent_columns))
        self.refused = refused(self.rows, self.contract.event_time, self.faults)
        self.answers = np.full((len(self.rows), len(self.contract.label.classes)), np.nan)
        self.day = self.rows[self.contract.event_time].dt.strftime("%Y-%m-%d").to_numpy()

    async def send(self, client: httpx.AsyncClient, indices: np.ndarray) -> None:
        """One request; its answers are kept, a failure is counted and never repeated."""
        begun, worked = time.perf_counter(), False
        try:
            reply = await client.post(self.url, json={"records": [self.records[i] for i in indices]})
            worked = reply.status_code == (400 if self.refused[indices].any() else 200)
            if reply.status_code == 200:
                self.answers[indices] = [list(one["probabilities"].values()) for one in reply.json()["predictions"]]
        except httpx.HTTPError:
            pass  # a failed request: counted below, and the replay's first figure
        self.requests.append((self.day[indices[0]], worked, time.perf_counter() - begun))

    async def send_day(self, indices: np.ndarray) -> None:
        """A day's records in batches, a few at once."""
        gate = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(timeout=30) as client:
            async def one(batch: np.ndarray) -> None:
                async with gate:
                    await self.send(client, batch)
            await asyncio.gather(*(one(indices[at:at + BATCH]) for at in range(0, len(indices), BATCH)))

    async def trickle(self, indices: np.ndarray, finished: Callable[[], bool], watched: Callable[[], bool]) -> np.ndarray:
        """Single records, one after another, until `finished()`, faster while `watched()`; what is left of the day."""
        async with httpx.AsyncClient(timeout=30) as client:
            sent, deadline = 0, time.monotonic() + TRAINING
            while not await asyncio.to_thread(finished):
                if time.monotonic() > deadline:
                    log = demo_home() / "run" / "logs" / "prefect-worker.log"
                    raise PerennialError(f"the retraining did not end in {TRAINING} s; its worker's log says why: {log}")
                seen = await asyncio.to_thread(watched)
                pace, kept = (FAST, BATCH) if seen else (PACE, BATCH + RESERVE)
                for _ in range(round(0.5 / pace)):
                    if sent < len(indices) - kept:
                        await self.send(client, indices[sent:sent + 1])
                        sent += 1
                    await asyncio.sleep(pace)
        return indices[sent:]


def replay(until: datetime, keep: bool, folder: Path, console: Console, faults: tuple[Fault, ...] = ()) -> dict[str, Any]:
    """Run the year up to `until`, write report.json and report.html to `folder`, and leave nothing running; with `faults` in
    what callers send and in the labels."""
    from deployments import stack

    begun = time.monotonic()
    home = stack.fresh(demo_home())
    up = None
    try:
        with console.status("starting the Prefect server, its worker and the load balancer …"):
            os.environ |= stack.environment(home, profile_seconds=0.5)
            up = stack.up(home)
            from flows.alerts import WEBHOOK, to_webhook  # now that Prefect can be told where its server is
            to_webhook(os.environ.get(WEBHOOK))
        _say_where(console, up)
        report = _run(until, up, begun, console, faults)
        from flows.report import write
        write(report, folder)
        console.print(_summary(report), f"report: {folder / 'report.html'}", sep="\n")
        if keep:
            _say_where(console, up)
            console.print("left running; `perennial down` ends it")
        return report
    finally:
        if up is not None and not keep:
            with console.status("stopping everything …"):
                stack.down(home)


def _say_where(console: Console, up: Any) -> None:
    console.print(f"Prefect UI {up.ui}   API {up.url}/{MODEL}/predict   Traefik {up.api}/dashboard/")


def _run(until: datetime, up: Any, begun: float, console: Console, faults: tuple[Fault, ...]) -> dict[str, Any]:
    from flows.ingest import ingest
    from flows.memory import remember
    from flows.train import fetched, train

    memory, contract = remember(MODEL), load(MODEL)
    with console.status("January and February: ingest, train, gate, release …"):
        ingest(MODEL, YEAR, TRAFFIC)
        trained = train(MODEL)
    if trained["outcome"] != "released":
        raise PerennialError(f"the first model did not pass the gate; run: perennial history {MODEL}")
    first = trained["version"]
    rows = contract.source(TRAFFIC, until)
    traffic = Traffic(contract, rows, f"{up.url}/{MODEL}/predict", faults)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        peers = pool.submit(without_the_loop, str(fetched(memory, first)), until)
        weeks = asyncio.run(_year(traffic, memory, console))
        with console.status("scoring the frozen and the calendar models …"):
            frozen, calendar = _result(peers)
    return _report(traffic, memory, weeks, frozen, calendar, until) | {"seconds": round(time.monotonic() - begun, 1)}


def _result(peers: Future) -> tuple[np.ndarray, np.ndarray]:
    return peers.result(timeout=TRAINING * 2)


async def _year(traffic: Traffic, memory: Any, console: Console) -> list[dict[str, Any]]:
    """Day after day; a day after a window's end its labels come in and its profiles are judged."""
    contract, weeks = traffic.contract, []
    days = {day: np.flatnonzero(traffic.day == day) for day in dict.fromkeys(traffic.day)}
    ingested = TRAFFIC
    columns = (TextColumn("{task.description:<34}"), BarColumn(), TextColumn("{task.completed}/{task.total} days"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("traffic", total=len(days))
        for day, indices in days.items():
            window_end = contract.window_of(datetime.fromisoformat(day) - contract.label.matures)[0]
            if window_end > ingested:
                progress.update(bar, description=f"{day}: labels and profiles are judged")
                closed = await asyncio.to_thread(_close_window, memory, ingested, window_end, labels_of(ingested, traffic.faults))
                ingested, weeks = window_end, [week for week in weeks if week["window"] not in closed] + [*closed.values()]
                for week in closed.values():
                    if week["action"] == "retrain":
                        progress.update(bar, description=f"{day}: {week['kind']}: retraining")
                        indices = await traffic.trickle(
                            indices, lambda window=week["window"]: _finished(memory, window), lambda: _canary(memory))
            progress.update(bar, description=f"{day}: traffic")
            await traffic.send_day(indices)
            progress.advance(bar)
    return weeks


def _close_window(memory: Any, start: datetime, end: datetime, labels: str) -> dict[str, dict[str, Any]]:
    """Take in the labels of a window, and judge all that are due; by the windows' starts."""
    from flows.ingest import ingest
    from flows.monitor import due, monitor, ship

    for _ in range({"never": 0, "once": 1, "twice": 2}[labels]):
        ingest(memory.name, start, end)
    time.sleep(1.0)  # two rounds of the replicas' profiler
    ship(memory)
    judged = {window.isoformat(): monitor(memory.name, window.isoformat()) for window in due(memory)}
    return {window: _week(memory, window, one["verdict"], one["action"]) for window, one in judged.items()}


def _week(memory: Any, window: str, verdict: dict[str, Any], action: str) -> dict[str, Any]:
    start = datetime.fromisoformat(window)
    return {"window": window, "start": start.date().isoformat(), "end": start + memory.contract.drift.window, "kind": verdict["kind"],
            "action": action, "reasons": list(verdict["reasons"]), "distances": how_far(verdict["figures"])}


def _finished(memory: Any, window: str) -> bool:
    return memory.ledger.state().claims[window]["state"] != "claimed"


def _canary(memory: Any) -> bool:
    from deployments.balancer import routed_beside

    return bool(routed_beside(memory.run, memory.name))


def without_the_loop(first: str, until: datetime) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities for all the traffic: the first model frozen, and one retrained at each month's start, no gate."""
    contract = load(MODEL)
    rows = contract.source(YEAR, until)
    columns, times = contract.columns_of(rows), rows[contract.event_time]
    served = (times >= TRAFFIC).to_numpy()
    frozen = restore(contract, Path(first)).probabilities(_only(columns, served))
    calendar = np.full((len(rows), len(contract.label.classes)), np.nan)
    for month in pd.date_range(TRAFFIC, until, freq="MS", inclusive="left"):
        known = (times < month - contract.label.matures).to_numpy()
        due = ((times >= month) & (times < month + pd.offsets.MonthBegin(1))).to_numpy()
        calendar[due] = _trained(contract, rows[known]).probabilities(_only(columns, due))
    return frozen, calendar[served]


def _trained(contract: Contract, rows: pd.DataFrame) -> Model:
    with TemporaryDirectory() as folder, closing(prepared(contract, [rows], len(rows), datetime.max, Path(folder))) as ready:
        return ready.fit(ready.rounds(threads=1)["rounds"], threads=1)


def _only(columns: Any, chosen: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[chosen] for name, values in columns.items()}


def _report(traffic: Traffic, memory: Any, weeks: list, frozen: np.ndarray, calendar: np.ndarray, until: datetime) -> dict[str, Any]:
    """The report's figures; live, frozen and calendar are compared on the records that live answered."""
    contract, state = traffic.contract, memory.ledger.state()
    answered = ~np.isnan(traffic.answers).any(axis=1)
    answers = {"live": traffic.answers, "frozen": frozen, "calendar": calendar}
    labels, times = contract.labels_of(traffic.rows), traffic.rows[contract.event_time]
    months = times.dt.strftime("%Y-%m").to_numpy()

    def compared(chosen: np.ndarray) -> dict[str, Any]:
        found = {name: scores(contract, labels[chosen], given[chosen]) for name, given in answers.items()}
        return {"n": int(chosen.sum())} | {
            f"{short}_{name}": one[figure] for name, one in found.items() for short, figure in (("logloss", "log_loss"), ("auc", "auc"))}

    weeks.sort(key=lambda week: week["window"])
    faults = [{"name": fault.name, "from": fault.first.date().isoformat(), "named": fault.named(weeks),
               "said": [f"{week['start']}: {week['kind']}: {'; '.join(week['reasons'])}" for week in weeks if fault.touches(week)]}
              for fault in traffic.faults if fault.first < until]
    for week in weeks:
        end = week.pop("end")
        week |= compared(answered & ((times >= week["window"]) & (times < end)).to_numpy())
    events = memory.ledger.events()
    judged = {event.data["version"]: event.data["verdict"] for event in events if event.kind == "judged"}
    refused = [version for version, verdict in judged.items() if verdict["outcome"] != "passed"]
    failed = sum(not worked for _, worked, _ in traffic.requests)
    return {
        "model": contract.name, "classes": list(contract.label.classes), "until": until.date().isoformat(),
        "requests_sent": len(traffic.requests), "requests_failed": failed, "records_scored": int(answered.sum()),
        "retrains_triggered": sum(week["action"] == "retrain" for week in weeks),
        "promotions": sum(event.kind == "promoted" for event in events), "refusals": len(refused),
        "drift_events": sum("drift" in week["kind"] or "worse" in week["kind"] for week in weeks),
        "months": [{"month": month, **compared(answered & (months == month))} for month in dict.fromkeys(months)],
        "distance_limit": 1.0, "total": compared(answered), "weeks": weeks, "versions": _versions(events, state, memory),
        "refused": [{"version": version, "at": _data_end(memory, version), "reasons": list(judged[version]["reasons"])} for version in refused],
        "calibration": _calibration(contract, labels[answered], traffic.answers[answered]), "days": _days(traffic),
        "faults": faults,
    }


def _data_end(memory: Any, version: str) -> str:
    from registry import models

    return models.manifest(memory.store, memory.name, version)["data"]["end"][:10]


def _versions(events: list, state: Any, memory: Any) -> list[dict[str, Any]]:
    from registry import models

    promoted = [event.data["version"] for event in events if event.kind == "promoted"]
    manifests = {version: models.manifest(memory.store, memory.name, version) for version in promoted}
    return [{"version": version, "number": state.versions.index(version) + 1, "promoted": max(manifest["data"]["end"][:10], "2013-03-01"),
             "rows": manifest["rows"], "rounds": manifest["metrics"]["rounds"]} for version, manifest in manifests.items()]


def _calibration(contract: Contract, labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Expected and observed frequency of each class in ten bins of its probability; None where a bin is empty."""
    found = {}
    for index, name in enumerate(contract.label.classes):
        table = pd.DataFrame({"expected": probabilities[:, index], "observed": labels == index})
        means = table.groupby((table["expected"] * bins).astype(int).clip(upper=bins - 1))
        table = means.agg(expected=("expected", "mean"), observed=("observed", "mean"), n=("observed", "size")).reindex(range(bins))
        found[name] = {"n": table["n"].fillna(0).astype(int).tolist()} | {
            column: [None if np.isnan(value) else value for value in table[column]] for column in ("expected", "observed")}
    return found


def _days(traffic: Traffic) -> list[dict[str, Any]]:
    table = pd.DataFrame(traffic.requests, columns=["day", "worked", "seconds"])
    days = table.groupby("day").agg(requests=("worked", "size"), failed=("worked", lambda worked: int((~worked).sum())),
                                    p50_ms=("seconds", lambda s: s.median() * 1000), p99_ms=("seconds", lambda s: s.quantile(0.99) * 1000))
    return days.reset_index().to_dict("records")


def _summary(report: dict[str, Any]) -> Table:
    shown = Table("month", "flights", "live", "frozen", "calendar", title="log loss on the same records (lower is better)")
    for row in [*report["months"], {"month": "all", **report["total"]}]:
        shown.add_row(row["month"], f"{row['n']:,}", *(f"{row[f'logloss_{name}']:.4f}" for name in ("live", "frozen", "calendar")))
    shown.caption = (f"{report['requests_sent']:,} requests, {report['requests_failed']} failed; {report['retrains_triggered']} retrainings, "
                     f"{report['promotions']} promotions, {report['refusals']} refusals; {report['drift_events']} windows drifted")
    for fault in report["faults"]:
        shown.caption += f"\n{fault['from']} {fault['name']}: {'named' if fault['named'] else 'NOT NAMED'}"
    return shown
