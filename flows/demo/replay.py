"""The replay: the flights of 2013 as requests, and a clock. What follows the product does by itself."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from prefect.context import refresh_global_settings_context
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from contracts.core.digests import JsonObject
from contracts.core.errors import PerennialError
from flows.demo.faults import Fault
from flows.demo.figures import report_figures
from flows.demo.rivals import rival_probabilities
from flows.demo.traffic import MODELS, ReplayTraffic
from registry.clock import machine_time, set_clock
from registry.settings import CLOCK, demo_folder

ZONE = ZoneInfo("America/New_York")
HOUR = timedelta(hours=1)  # of the day to which the clock is set: the contracts look for data then
FIRST_LOOK = datetime(2013, 2, 26) + HOUR
RIVALS_TIMEOUT = 900  # seconds


def replay(until: datetime, keep: bool, folder: Path, console: Console,
           faults: tuple[Fault, ...] = ()) -> JsonObject:
    """Replay the year up to `until` and write report.json and report.html to `folder`.

    `faults` are put into requests. Nothing is left running, unless `keep`.
    """
    from deployments import stack

    begun = time.monotonic()
    home = stack.reset_home(demo_folder())
    up = None
    try:
        with console.status("starting the Prefect server, its worker and the load balancer …"):
            set_environment(stack.environment(home, profile_seconds=0.5) | {CLOCK: str(home / "clock")})
            set_clock((FIRST_LOOK - HOUR).replace(tzinfo=ZONE))
            up = stack.up(home)
            from flows.orchestration.deploying import deploy

            deploy(MODELS)
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


def set_environment(variables: Mapping[str, str]) -> None:
    """Set variables of this process and have Prefect, which has been imported, read them.

    Without its server's address it would start a second server on the same database. That one learns of the
    automations up to five seconds late, so that the clock's first events would start nothing.
    """
    os.environ |= variables
    refresh_global_settings_context()


def _print_addresses(console: Console, up: Any) -> None:
    paths = " and ".join(f"/{model}/predict" for model in MODELS)
    console.print(f"Prefect UI {up.ui}   API {up.url} {paths}   Traefik {up.api}/dashboard/")


def _run(until: datetime, up: Any, begun: float, console: Console,
         faults: tuple[Fault, ...]) -> JsonObject:
    from registry.context import fetch_version

    callers = [ReplayTraffic.of(model, until, f"{up.url}/{model}/predict", put) for model, put
               in zip(MODELS, (faults, ()))]
    with console.status("the clock reaches the first look for data: ingest, train, gate, release …"):
        asyncio.run(_move_clock(callers, FIRST_LOOK, None))
    for caller in callers:
        if not caller.context.ledger.state().champion:
            raise PerennialError(f"no version of {caller.model} passed the gate; run: perennial history "
                                 f"{caller.model}")
    flights = callers[0]
    first = str(flights.context.ledger.state().champion)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        rivals = pool.submit(rival_probabilities, str(fetch_version(flights.context, first)), until)
        asyncio.run(_days(callers, console))
        with console.status("scoring the frozen and the calendar models …"):
            frozen, calendar = _result(rivals)
    return report_figures(callers, frozen, calendar, until) | {"seconds": round(time.monotonic() - begun, 1)}


def _result(rivals: Future[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return rivals.result(timeout=RIVALS_TIMEOUT)


async def _days(callers: Sequence[ReplayTraffic], console: Console) -> None:
    """Set the clock to each day in turn and send its traffic; what the clock sets off is waited for, as a
    day of the replay is shorter than what takes minutes in a day of the year."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), TextColumn("{task.completed}/{task.total} "
                                                                             "days"), TimeElapsedColumn())
    days = callers[0].days
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("traffic", total=len(days))
        for day in days:
            await _move_clock(callers, datetime.fromisoformat(day) + HOUR, partial(_say, progress, bar, day))
            _say(progress, bar, day, "traffic")
            for caller in callers:
                await caller.send_rest_of(day)
            progress.advance(bar)


def _say(progress: Progress, bar: TaskID, day: str, what: str) -> None:
    progress.update(bar, description=f"{day}: {what}")


async def _move_clock(callers: Sequence[ReplayTraffic], to: datetime, say: Any) -> None:
    """Move the clock and follow each model's chain to its end, its callers at work meanwhile."""
    from flows.orchestration.clock import move_clock

    since = machine_time()
    contracts = [caller.contract for caller in callers]
    reached = await asyncio.to_thread(move_clock, contracts, to.replace(tzinfo=ZONE))
    await asyncio.gather(*(_follow_chain(caller, since, to, say or (lambda _: None)) for caller in callers
                           if f"ingest/{caller.model}" in reached))


async def _follow_chain(caller: ReplayTraffic, since: datetime, to: datetime, say: Any) -> None:
    """Wait until new data is judged and a retraining or recalibration, if the product starts one, has
    ended."""
    from flows.demo.chain import ended_run
    from flows.recalibration.due import DueRecalibration, due_recalibration

    say(f"{caller.model}: data is looked for")
    ingested = await ended_run("ingest", caller.model, since)
    if ingested.state and ingested.state.is_completed():
        say(f"{caller.model}: windows are judged")
        await ended_run("monitor", caller.model, since)
    if caller.is_retraining():
        say(f"{caller.model}: retraining")
        await caller.send_singly(to.date().isoformat())
    if isinstance(await asyncio.to_thread(due_recalibration, caller.context), DueRecalibration):
        say(f"{caller.model}: recalibration")
        await ended_run("recalibrate", caller.model, since)


def _summary(report: JsonObject) -> Table:
    shown = Table("month", "flights", "live", "frozen", "calendar",
                  title="log loss on the same records (lower is better)")
    for row in [*report["months"], {"month": "all", **report["total"]}]:
        shown.add_row(row["month"], f"{row['n']:,}",
                      *(f"{row[f'logloss_{name}']:.4f}" for name in ("live", "frozen", "calendar")))
    shown.caption = (f"{report['requests_sent']:,} requests, {report['requests_failed']} failed; "
                     f"{report['retrains_triggered']} retrainings, {report['promotions']} promotions, "
                     f"{report['refusals']} refusals; {report['recalibrations']} recalibrations; "
                     f"{report['drift_events']} windows drifted")
    for model, chains in report["chains"].items():
        outcomes = ", ".join(f"{chain['window'][:10]} {chain['outcome']}" for chain in chains)
        shown.caption += f"\n{model}: {len(chains)} trainings: {outcomes}"
    by_hand = len(report["started_by_hand"])
    shown.caption += f"\nruns that neither a schedule, an automation nor a parent run started: {by_hand}"
    for fault in report["faults"]:
        shown.caption += f"\n{fault['from']} {fault['name']}: {'named' if fault['named'] else 'NOT NAMED'}"
    return shown
