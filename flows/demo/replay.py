"""The replay: the flights of 2013 go through the whole loop, as requests and as labels."""

import asyncio
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from contracts.core.digests import JsonObject
from contracts.core.errors import PerennialError
from contracts.core.loading import load_contract
from flows.demo.faults import Fault, labels_of
from flows.demo.figures import report_figures
from flows.demo.rivals import rival_probabilities
from flows.demo.traffic import MODEL, TRAFFIC, TRAINING, YEAR, ReplayTraffic
from registry.settings import alert_webhook, demo_folder


def replay(until: datetime, keep: bool, folder: Path, console: Console,
           faults: tuple[Fault, ...] = ()) -> JsonObject:
    """Replay the year up to `until` and write report.json and report.html to `folder`.

    `faults` are put into requests and labels. Nothing is left running, unless `keep`.
    """
    from deployments import stack

    begun = time.monotonic()
    home = stack.reset_home(demo_folder())
    up = None
    try:
        with console.status("starting the Prefect server, its worker and the load balancer …"):
            os.environ |= stack.environment(home, profile_seconds=0.5)
            up = stack.up(home)
            # Imported now, as importing Prefect reads its server's address from the environment.
            from flows.monitoring.notifications import to_webhook

            to_webhook(alert_webhook())
        _print_addresses(console, up)
        report = _run(until, up, begun, console, faults)
        from flows.demo.report import write
        write(report, folder)
        console.print(_summary(report), f"report: {folder / 'report.html'}", sep="\n")
        if keep:
            _print_addresses(console, up)
            console.print("left running; `perennial down` ends it")
        return report
    finally:
        if up is not None and not keep:
            with console.status("stopping everything …"):
                stack.down(home)


def _print_addresses(console: Console, up: Any) -> None:
    console.print(f"Prefect UI {up.ui}   API {up.url}/{MODEL}/predict   Traefik {up.api}/dashboard/")


def _run(until: datetime, up: Any, begun: float, console: Console,
         faults: tuple[Fault, ...]) -> JsonObject:
    from flows.ingest import ingest
    from flows.train import train
    from registry.context import fetch_version, open_model

    context, contract = open_model(MODEL), load_contract(MODEL)
    with console.status("January and February: ingest, train, gate, release …"):
        ingest(MODEL, YEAR, TRAFFIC)
        trained = train(MODEL)
    if trained["outcome"] != "released":
        raise PerennialError(f"the first model did not pass the gate; run: perennial history {MODEL}")
    first = trained["version"]
    rows = contract.source_rows(TRAFFIC, until)
    traffic = ReplayTraffic(contract, rows, f"{up.url}/{MODEL}/predict", faults)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        rivals = pool.submit(rival_probabilities, str(fetch_version(context, first)), until)
        weeks = asyncio.run(_year(traffic, context, console))
        with console.status("scoring the frozen and the calendar models …"):
            frozen, calendar = _result(rivals)
    return report_figures(traffic, context, weeks, frozen, calendar,
                          until) | {"seconds": round(time.monotonic() - begun, 1)}


def _result(rivals: Future[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return rivals.result(timeout=TRAINING * 2)


async def _year(traffic: ReplayTraffic, context: Any, console: Console) -> list[JsonObject]:
    """Send the traffic day by day; a day after a window's end ingest its labels and judge it."""
    contract = traffic.contract
    weeks: list[JsonObject] = []
    days = {day: np.flatnonzero(traffic.day == day) for day in dict.fromkeys(traffic.day)}
    ingested = TRAFFIC
    columns = (TextColumn("{task.description:<34}"), BarColumn(), TextColumn("{task.completed}/{task.total} "
                                                                             "days"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("traffic", total=len(days))
        for day, indices in days.items():
            window_end = contract.window_of(datetime.fromisoformat(day) - contract.label.matures)[0]
            if window_end > ingested:
                progress.update(bar, description=f"{day}: labels and profiles are judged")
                closed = await asyncio.to_thread(_close_window, context, ingested, window_end,
                                                 labels_of(ingested, traffic.faults))
                ingested, weeks = window_end, [week for week in weeks
                                               if week["window"] not in closed] + [*closed.values()]
                for week in closed.values():
                    if week["action"] == "retrain":
                        progress.update(bar, description=f"{day}: {week['kind']}: retraining")
                        indices = await traffic.send_singly(
                            indices, partial(_is_finished, context, week["window"]),
                            partial(_has_canary, context))
            progress.update(bar, description=f"{day}: traffic")
            await traffic.send_day(indices)
            progress.advance(bar)
    return weeks


def _close_window(context: Any, start: datetime, end: datetime, labels: str) -> dict[str, JsonObject]:
    """Ingest the labels of a window and judge all windows that are due; the results by their starts."""
    from flows.ingest import ingest
    from flows.monitor import monitor
    from flows.monitoring.windows import due
    from registry.traffic import ship

    for _ in range({"never": 0, "once": 1, "twice": 2}[labels]):
        ingest(context.name, start, end)
    time.sleep(1.0)  # two rounds of the replicas' profiler
    ship(context)
    judged = {window.isoformat(): monitor(context.name, window.isoformat()) for window in due(context)}
    return {window: _week(context, window, result["verdict"], result["action"])
            for window, result in judged.items()}


def _week(context: Any, window: str, verdict: JsonObject, action: str) -> JsonObject:
    start = datetime.fromisoformat(window)
    return {"window": window, "start": start.date().isoformat(), "end": start + context.contract.drift.window,
            "kind": verdict["kind"], "action": action, "reasons": list(verdict["reasons"]),
            "distances": context.ledger.state().windows[window].verdict.figures.drift_scores}


def _is_finished(context: Any, window: str) -> bool:
    return not context.ledger.state().claims[window].is_granted


def _has_canary(context: Any) -> bool:
    from deployments.routes import challenger_urls

    return bool(challenger_urls(context.run, context.name))


def _summary(report: JsonObject) -> Table:
    shown = Table("month", "flights", "live", "frozen", "calendar",
                  title="log loss on the same records (lower is better)")
    for row in [*report["months"], {"month": "all", **report["total"]}]:
        shown.add_row(row["month"], f"{row['n']:,}",
                      *(f"{row[f'logloss_{name}']:.4f}" for name in ("live", "frozen", "calendar")))
    shown.caption = (f"{report['requests_sent']:,} requests, {report['requests_failed']} failed; "
                     f"{report['retrains_triggered']} retrainings, {report['promotions']} promotions, "
                     f"{report['refusals']} refusals; {report['drift_events']} windows drifted")
    for fault in report["faults"]:
        shown.caption += f"\n{fault['from']} {fault['name']}: {'named' if fault['named'] else 'NOT NAMED'}"
    return shown
