"""The command line: `perennial …`."""

import logging
import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.reporting.commands import app as reading
from flows.reporting.terminal import TIMES, AsJson, Model, console, say

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Keeps machine-learning models alive: checks, trains, judges, ships, watches, renews.")
app.add_typer(reading)
QUIET = {  # a flow's error reaches the shell once, not as a log too; nothing is reported to anybody
    "PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


def main() -> None:
    """Run a command; an error is one line, exit code 2 for the user's mistake and 1 for a failure."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Prefect tells at an end that some events are still on their way.
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)
    told = logging.getLogger("perennial")
    told.setLevel(logging.INFO)
    told.addHandler(logging.StreamHandler())
    told.propagate = False  # Prefect, once it is imported, has a handler on the root that would say it again
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
        formats=["%Y-%m-%d"], help="Stop before this event day.")] = datetime(2014, 1, 1),
    keep: Annotated[bool, typer.Option(help="Leave the servers up and print their addresses.")] = False,
    folder: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("build/replay"),
    faults: Annotated[bool, typer.Option(
        "--faults", help="Put faults in, from May on: another unit, a missing column, a wrong clock, "
                         "labels that come twice or never; and see what is said of them.")] = False,
) -> None:
    """Replay the flights of 2013 through the whole loop and write a report."""
    from flows.demo.faults import FAULTS
    from flows.demo.replay import replay

    directly(replay, until, keep, folder, console, FAULTS if faults else ())


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
    if start and end and end <= start:  # said before a Prefect server is started to say it
        from contracts.core.errors import PerennialError

        raise PerennialError(f"{model}: nothing to ingest: [{start}, {end}) is empty; name an --end after "
                             f"--start")
    from flows.ingest import ingest as flow

    version = directly(flow, model, start, end, file)
    aside = (f"; {bad:,} bad rows were set aside, with reasons, in data/{model}.bad"
             if (bad := version["set_aside"]) else "")
    say(version, as_json, f"{model}: data version {version['digest'][:12]}, {version['rows']:,} rows{aside}")


@app.command()
def labels(model: Model, file: Annotated[str, typer.Argument(
        help="A .parquet or .csv file: `id` of a prediction, and the columns that the contract's label is "
             "made of.")]) -> None:
    """Tell what came true of predictions, by the ids that
    callers got; for those who can't name the event itself."""
    from flows.monitoring.outcomes import store_labels
    from registry.context import open_model

    console.print(f"{model}: {store_labels(open_model(model), file):,} labels are kept; the next monitor run "
                  f"of their window scores them")


@app.command()
def train(
    model: Model,
    release: Annotated[bool, typer.Option(help="Release the version if the gate allows it.")] = True,
    as_json: AsJson = False,
) -> None:
    """Train a challenger on the newest data version, judge it, and release it if it passed."""
    from flows.train import train as flow

    done = directly(flow, model, release=release)
    asked = f"; callers ask {where}" if done["outcome"] == "released" and (where := _address(model)) else ""
    said = {"failed": "the gate refused it", "insufficient": "the gate can't tell",
            "refused": "the canary refused it"}
    text = f"{model}: version {done['version'][:12]}: {said.get(done['outcome'], done['outcome'])}{asked}"
    say(done, as_json,
         "\n".join([text, *(f"- {reason}" for reason in done["why"] if done["outcome"] in said)]))
    if done["outcome"] not in ("passed", "released"):
        raise typer.Exit(1)


@app.command()
def release(model: Model,
            version: Annotated[str,
                               typer.Argument(help="champion, an alias, a number or a digest.")] = "champion",
            as_json: AsJson = False) -> None:
    """Put a version that passed the gate in front of the callers."""
    from flows.release import release as flow
    from registry.context import open_model
    from registry.models import resolve

    done = directly(flow, model, resolve(open_model(model).ledger, version))
    if done["outcome"] == "refused":
        say(done, as_json,
             f"{model}: the canary refused {done['version'][:12]}: {'; '.join(done['canary']['reasons'])}")
        raise typer.Exit(1)
    asked = f"; callers ask {where}" if (where := _address(model)) else ""
    say(done, as_json, f"{model}: {done['version'][:12]} serves at {', '.join(done['replicas'])}{asked}")


def _address(model: str) -> str | None:
    """Where callers reach the model on this machine."""
    from deployments import routes
    from registry.context import open_model

    context = open_model(model)
    found = routes.model_url(context.run, context.name)
    return f"POST {found}/predict" if found else None


@app.command()
def shadow(
        model: Model, version: Annotated[
            str, typer.Argument(help="An alias, a number or a digest; it need not have passed the gate.")],
        share: Annotated[float, typer.Option(help="Of the requests, in whole percents.")] = 0.2,
        as_json: AsJson = False) -> None:
    """Let a version see a share of the traffic and compare
    it with the champion; no caller sees its answers."""
    from contracts.core.verdict import as_json as to_json
    from flows.releasing.canary import shadow as watch
    from flows.releasing.image import artifact_of
    from registry.context import open_model
    from registry.models import resolve

    context = open_model(model)
    named = resolve(context.ledger, version)
    verdict = watch(context, named, artifact_of(context, named), share)
    say(to_json(verdict), as_json,
         f"{model}: {named[:12]} in the shadow: {verdict.kind}\n" + "\n".join(verdict.reasons))
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def ship(
        model: Model, every: Annotated[
            float | None,
            typer.Option(help="Seconds; goes on until it is told to end. Default: once.")] = None) -> None:
    """Copy the profiles that replicas wrote on this machine (PERENNIAL_RUN) to the store."""
    from registry.context import open_model
    from registry.traffic import ship as copy
    from registry.traffic import ship_periodically

    context = open_model(model)
    shipped = ship_periodically(context, every) if every else copy(context)
    console.print(f"{model}: {shipped} new or changed profiles are in {context.store.address}",
                  highlight=False)


@app.command()
def monitor(
        model: Model, window: Annotated[
            datetime | None,
            typer.Option(formats=TIMES, help="Its start; default: every closed one not yet judged.")] = None,
        as_json: AsJson = False) -> None:
    """Judge windows of traffic: what drifted, and what follows."""
    from flows.monitor import monitor as flow
    from flows.monitoring.windows import closed, due
    from registry.context import open_model
    from registry.traffic import ship

    context = open_model(model)
    ship(context)
    windows = [closed(context, window.isoformat())] if window else due(context)
    judged = {each.isoformat(): directly(flow, model, each.isoformat()) for each in windows}
    lines = [f"{key}: {one['verdict']['kind']} → {one['action']}" for key, one in judged.items()]
    say(judged, as_json, "\n".join(lines) or f"{model}: no closed window waits to be judged")


@app.command()
def serve(model: Model,
          port: Annotated[int,
                          typer.Option(help="The balancer's; a free one where it is taken.")] = 8080) -> None:
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
    """Return to an earlier version: the ledger first learns
    why, and the traffic follows where this machine serves."""
    from flows.releasing.serving import roll_back

    done = roll_back(model, to, reason)
    say(done, as_json, f"{model}: {done['from'][:12]} → {done['to'][:12]}")


@app.command()
def down(
    model: Annotated[str | None, typer.Argument(
        help="Only this one; default: all that runs in PERENNIAL_RUN, and what `demo --keep` left.")] = None,
) -> None:
    """End what serves on this machine: replicas, the load balancer,
    and the demo's servers. Callers get no answer then."""
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
def deploy() -> None:
    """Register the deployments of prefect.yaml with the server at PREFECT_API_URL."""
    from deployments.prefect_server import deploy as register
    from flows.monitoring.notifications import to_webhook
    from flows.prefect_api import require_prefect
    from registry.settings import alert_webhook

    require_prefect()
    register()
    to_webhook(hook := alert_webhook())
    told = "; alerts go to the webhook" if hook else ""
    console.print(f"deployed: perennial's flows, their schedule and the automation{told}", soft_wrap=True)


def directly(flow: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Run flows in this process, without Prefect's heartbeat:
    at a flow's end it sleeps on for up to a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.prefect_api import require_prefect

    require_prefect()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return flow(*arguments, **named)
