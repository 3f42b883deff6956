"""The commands that read and change nothing: status, history, report, metrics, and the contract diff."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.reporting.terminal import TIMES, AsJson, Model, console, print_json, say

app = typer.Typer()
contracts = typer.Typer(no_args_is_help=True, help="Read and compare contracts.")
app.add_typer(contracts, name="contract")


@app.command()
def status(model: Model, as_json: AsJson = False) -> None:
    """What serves, what it was trained on, and what was last judged."""
    from flows.reporting.status import facts, table

    found = facts(model)
    print_json(found) if as_json else console.print(table(found))


@app.command()
def history(
    model: Model,
    at: Annotated[str | None, typer.Option(help="What served at this time (ISO, UTC)?")] = None,
    as_json: AsJson = False,
) -> None:
    """The ledger: every event of a model, or what served at a time."""
    from flows.reporting.status import events
    from registry.context import open_model

    context = open_model(model)
    if at is not None:
        champion = context.ledger.state(at=at).champion
        return say({"at": at, "champion": champion}, as_json,
                    f"{model} at {at}: {champion or 'nothing served'}")
    rows = events(context)
    if as_json:
        return print_json(rows)
    shown = Table("#", "when (UTC)", "by", "what", "about")
    for row in rows:
        shown.add_row(str(row["seq"]), row["at"][:19], row["by"], row["kind"], row["about"])
    console.print(shown)


@app.command()
def report(
    model: Model,
    window: Annotated[datetime | None, typer.Option(
        formats=TIMES, help="Its start; default: the newest judged one.")] = None,
    out: Annotated[Path | None, typer.Option(
        help="The file; default: build/reports/MODEL/WINDOW.html.")] = None,
) -> None:
    """Draw a judged window as one HTML file: what drifted
    and how far, the windows before, scores, what followed.

    It is drawn from what the store and the ledger hold now, so an old window shows what came of it.
    The monitor keeps each window's page, as it was when it was judged, under reports/ in the store.

    perennial report flights --window 2013-07-01 --out july.html
    """
    from flows.reporting import window_report
    from flows.reporting.pages import report as page
    from registry.context import open_model
    from service.files import write_atomically

    context = open_model(model)
    named = window.isoformat() if window else window_report.newest(context)
    content, file = page(context, named), out or Path("build") / window_report.key(context, named)
    write_atomically(file, content)
    console.print(f"{model}: window {named}: {file}", highlight=False, soft_wrap=True)


@app.command()
def metrics(
    models: Annotated[list[str] | None, typer.Argument(
        help="Contracts; default: every one in contracts/.")] = None,
    port: Annotated[int, typer.Option(help="Where Prometheus asks.")] = 9464,
    host: Annotated[str, typer.Option(
        help="The address to listen on; this machine alone by default.")] = "127.0.0.1",
) -> None:
    """Gauges for Prometheus: drift, scores, ages and alerts,
    read from the store at each scrape, until Ctrl-C."""
    from contracts.core.loading import known_models
    from flows.reporting.exporter import serve

    serve(models or known_models(), host, port, console.print)


@contracts.command("diff")
def contract_diff(
        old: Annotated[
            str, typer.Argument(help="A contract, a .py file, or a version: flights@champion, flights@3.")],
        new: Annotated[str, typer.Argument(help="As OLD.")], as_json: AsJson = False) -> None:
    """What changed between two contracts, and what breaks callers (exit code 1 if something does)."""
    from dataclasses import asdict

    from contracts.core.diff import diff_contracts
    from flows.reporting.status import described

    changes = diff_contracts(described(old), described(new))
    if as_json:
        print_json([asdict(change) for change in changes])
    else:
        shown = Table("path", "old", "new", "breaks callers")
        for change in changes:
            shown.add_row(change.path, str(change.old), str(change.new), change.breaks or "",
                          style="red" if change.breaks else "")
        console.print(shown if changes else "no difference")
    if any(change.breaks for change in changes):
        raise typer.Exit(1)
