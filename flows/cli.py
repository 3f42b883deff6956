"""The command line: `perennial …`."""

import logging
import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.commands.logs import set_up
from flows.commands.reading import app as reading
from flows.commands.recalibrating import app as recalibrating
from flows.commands.running import require_prefect, run_flow
from flows.commands.terminal import TIMES, AsJson, Model, console, say

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Keeps machine-learning models alive: checks, trains, judges, ships, watches, renews.")
app.add_typer(reading)
app.add_typer(recalibrating)
QUIET_ENVIRONMENT = {  # a flow's error is printed once, and not logged as well; no usage data is sent
    "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


def main() -> None:
    """Run a command; an error is one line, exit code 2 for the user's mistake and 1 for a failure."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # At its end Prefect logs that some events are still being sent.
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)
    set_up()
    try:
        app(standalone_mode=True)
    except Exception as error:
        if not hasattr(error, "exit_code"):  # not a PerennialError, whose import would slow `--help`
            raise
        Console(stderr=True).print(f"perennial: {error}", style="red", markup=False, highlight=False,
                                   soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def demo(
    until: Annotated[datetime, typer.Option(
        formats=["%Y-%m-%d"], help="Stop before this event day.")] = datetime(2013, 6, 1),
    year: Annotated[bool, typer.Option("--year", help="The whole year.")] = False,
    keep: Annotated[bool, typer.Option(help="Leave the servers running and print their addresses.")] = False,
    folder: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("build/replay"),
    faults: Annotated[bool, typer.Option(
        "--faults", help="Insert faults from May on (another unit, a missing column, a wrong clock, labels "
                         "that come twice or never) and show whether each is named.")] = False,
) -> None:
    """Replay the flights of 2013 as traffic and a clock, and write a report of what the loop does."""
    from flows.demo.faults import FAULTS
    from flows.demo.replay import replay

    replay(datetime(2014, 1, 1) if year else until, keep, folder, console, FAULTS if faults else ())


@app.command()
def ingest(
        model: Model, start: Annotated[
            datetime | None,
            typer.Option(formats=TIMES, help="First event time; default: the newest version's end.")] = None,
        end: Annotated[datetime | None,
                       typer.Option(formats=TIMES,
                                    help="Event time to stop before; default: what has matured.")] = None,
        file: Annotated[str | None,
                        typer.Option(help="A .parquet or .csv file; default: the contract's source.")] = None,
        as_json: AsJson = False) -> None:
    """Check a batch of labelled events and append it as a new data version."""
    if start and end and end <= start:  # checked here, before a Prefect server is started
        from contracts.core.errors import PerennialError

        raise PerennialError(f"{model}: nothing to ingest: [{start}, {end}) is empty; name an --end after "
                             f"--start")
    from flows.ingest import ingest as flow

    result = run_flow(flow, model, start, end, file)
    aside = (f"; {bad:,} bad rows were set aside, with reasons, in data/{model}.bad"
             if (bad := result["set_aside"]) else "")
    version, new = result["data"], "" if result["outcome"] == "ingested" else f"{result['outcome']}; "
    corrected = f", {version['corrected']:,} of them corrected" if new == "" and version["corrected"] else ""
    say(result, as_json, f"{model}: {new}data version {version['digest'][:12]}, {version['rows']:,} rows up "
                         f"to {version['newest']}{corrected}{aside}")


@app.command()
def labels(model: Model, file: Annotated[str, typer.Argument(
        help="A .parquet or .csv file with each prediction's `id` and the columns that the contract's "
             "label is made from.")]) -> None:
    """Attach ground-truth labels to predictions by id, for callers who can't send the event's key."""
    from flows.monitoring.sent_labels import store_labels
    from registry.context import open_model

    console.print(f"{model}: {store_labels(open_model(model), file):,} labels are stored; the next monitor "
                  f"run of their window scores them")


@app.command()
def train(
    model: Model,
    release: Annotated[bool, typer.Option(help="Release the version if the gate allows it.")] = True,
    as_json: AsJson = False,
) -> None:
    """Train a challenger on the newest data version, judge it, and release it if it passed."""
    from flows.train import train as flow

    result = run_flow(flow, model, release=release)
    refusals = {"failed": "the gate refused it", "insufficient": "the gate has too little to judge by",
                "refused": "the canary refused it"}
    outcome = refusals.get(result["outcome"], result["outcome"])
    note = _callers_note(model) if result["outcome"] == "released" else ""
    reasons = [f"- {reason}" for reason in result["why"] if result["outcome"] in refusals]
    say(result, as_json, "\n".join([f"{model}: version {result['version'][:12]}: {outcome}{note}", *reasons]))
    if result["outcome"] not in ("passed", "released"):
        raise typer.Exit(1)


@app.command()
def release(model: Model,
            version: Annotated[str,
                               typer.Argument(help="champion, an alias, a number or a digest.")] = "champion",
            as_json: AsJson = False) -> None:
    """Release a version that passed the gate: start its replicas and send it the traffic."""
    from flows.release import release as flow
    from registry.context import open_model
    from registry.models import resolve

    result = run_flow(flow, model, resolve(open_model(model).ledger, version))
    if result["outcome"] == "refused":
        reasons = "; ".join(result["canary"]["reasons"])
        say(result, as_json, f"{model}: the canary refused {result['version'][:12]}: {reasons}")
        raise typer.Exit(1)
    say(result, as_json, f"{model}: {result['version'][:12]} serves at {', '.join(result['replicas'])}"
                         f"{_callers_note(model)}")


def _callers_note(model: str) -> str:
    """The address for callers, if this machine serves the model."""
    from deployments import routes
    from registry.context import open_model

    context = open_model(model)
    url = routes.model_url(context.run, context.name)
    return f"; callers ask POST {url}/predict" if url else ""


@app.command()
def shadow(
        model: Model, version: Annotated[
            str, typer.Argument(help="An alias, a number or a digest; it need not have passed the gate.")],
        share: Annotated[float, typer.Option(help="Of the requests, in whole percents.")] = 0.2,
        as_json: AsJson = False) -> None:
    """Send a version a copy of a share of the traffic and compare it with the champion, unseen by callers."""
    from contracts.core.verdict import as_json as to_json
    from flows.releasing.canary import shadow as run_shadow
    from flows.releasing.image import artifact_of
    from registry.context import open_model
    from registry.models import resolve

    context = open_model(model)
    options = resolve(context.ledger, version)
    verdict = run_shadow(context, options, artifact_of(context, options, with_layer=True), share)
    say(to_json(verdict), as_json,
         f"{model}: {options[:12]} in the shadow: {verdict.kind}\n" + "\n".join(verdict.reasons))
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def ship(
        model: Model, every: Annotated[
            float | None,
            typer.Option(help="Repeat every so many seconds until Ctrl-C. Default: once.")] = None) -> None:
    """Copy the traffic profiles of the replicas on this machine (PERENNIAL_RUN) to the store."""
    from registry.context import open_model
    from registry.traffic import ship as ship_once
    from registry.traffic import ship_periodically

    context = open_model(model)
    shipped = ship_periodically(context, every) if every else ship_once(context)
    console.print(f"{model}: {shipped} new or changed profiles are in {context.store.address}",
                  highlight=False)


@app.command()
def monitor(
        model: Model, window: Annotated[
            datetime | None,
            typer.Option(formats=TIMES, help="Its start; default: every closed window that is due.")] = None,
        as_json: AsJson = False) -> None:
    """Judge windows of traffic, and act on what was found."""
    from flows.monitor import monitor as flow

    judged = run_flow(flow, model, window.isoformat() if window else None)
    lines = [f"{key}: {judgement['verdict']['kind']} → {judgement['action']}"
             for key, judgement in judged.items()]
    say(judged, as_json, "\n".join(lines) or f"{model}: no closed window is due")


@app.command()
def serve(
    model: Model,
    port: Annotated[int, typer.Option(
        help="The load balancer's port; another one if it is taken.")] = 8080,
) -> None:
    """Serve the champion behind the load balancer until Ctrl-C."""
    import signal

    from deployments import fleet, load_balancer
    from flows.releasing.serving import serve_champion, serving
    from registry.context import open_model

    context = open_model(model)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serving(context):
        try:
            url = serve_champion(context, port)
            console.print(f"{model} serves at [bold]{url}/{context.name}/predict[/]; Ctrl-C ends it")
            load_balancer.wait_until_stopped(context.run)
        finally:
            fleet.stop_model(context.run, context.name)


@app.command()
def rollback(
    model: Model,
    to: Annotated[str, typer.Option(help="previous, a number, an alias or a digest.")] = "previous",
    reason: Annotated[str, typer.Option(help="Kept in the ledger.")] = "asked by a person",
    as_json: AsJson = False,
) -> None:
    """Make an earlier version champion again, and send it the traffic if this machine serves the model."""
    from flows.releasing.rollback import roll_back

    result = roll_back(model, to, reason)
    say(result, as_json, f"{model}: {result['from'][:12]} → {result['to'][:12]}")


@app.command()
def down(
    model: Annotated[str | None, typer.Argument(
        help="Stop only this one; default: all in PERENNIAL_RUN, and what `demo --keep` left.")] = None,
) -> None:
    """Stop serving on this machine: replicas, the load balancer, and the demo's servers."""
    from deployments import fleet, routes
    from registry.context import open_model
    from registry.settings import demo_folder, run_folder

    def ended(run: Path, names: list[str], end: Callable[[], None]) -> None:
        served = ", ".join(f"{name} ({len(fleet.running(run, name))} replicas)" for name in names)
        end()
        console.print(f"{run}: ended {served}" if served else f"{run}: no model served", highlight=False,
                      soft_wrap=True)

    if model:
        name, run = open_model(model).name, run_folder()
        return ended(run, [name] if name in routes.routed_models(run) else [],
                     lambda: fleet.stop_model(run, name))
    for run in (run_folder(), demo_folder() / "run"):
        ended(run, routes.routed_models(run), partial(fleet.stop_all, run))


@app.command()
def deploy(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register the deployments of every model with the server at PREFECT_API_URL.

    They follow from prefect.yaml and the contracts: ingest on each contract's schedule, monitor and train on
    the model's events. What has no contract any more is paused. Run it on every release of the code.
    """
    from dataclasses import asdict

    require_prefect()
    from flows.orchestration.deploying import deploy as register

    done = register(dry_run=dry_run)
    rows = Table("deployment", "change", "what")
    for change in done.changes:
        rows.add_row(change.deployment, change.what, change.details)
    console.print_json(data=asdict(done)) if as_json else console.print(rows, *done.faults, sep="\n")
    if done.faults:
        raise typer.Exit(1)
