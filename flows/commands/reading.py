"""The commands that read and change nothing: status, report, metrics, contract diff; a ledger's beside."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows.commands.history import app as history
from flows.commands.terminal import TIMES, AsJson, Model, console, print_json

app = typer.Typer()
app.add_typer(history)
contracts = typer.Typer(no_args_is_help=True, help="Read and compare contracts.")
app.add_typer(contracts, name="contract")


@app.command()
def status(model: Annotated[str | None, typer.Argument(
        help="A contract, in detail; default: every one in contracts/, in a few lines.")] = None,
        as_json: AsJson = False) -> None:
    """Show what serves, the newest data, the next look for it, what is under way, and what waits for what."""
    from flows.reporting.overview import overview, overview_table, present
    from flows.reporting.status import facts, table

    if model is None:
        from contracts.core.loading import known_models

        rows = overview(known_models())
        print_json(rows) if as_json else console.print(*(overview_table(row, present(row)) for row in rows))
        raise typer.Exit(int(any(row["fault"] for row in rows)))
    status_facts = facts(model)
    print_json(status_facts) if as_json else console.print(table(status_facts))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Try store, registry, Prefect, worker, load balancer, clock and disk; exit code 1 if one is at fault."""
    from flows.commands.doctor import findings, show

    found = list(findings())
    show(found, as_json)
    if any(finding.is_fault for finding in found):
        raise typer.Exit(1)


@app.command()
def report(
    model: Model,
    window: Annotated[datetime | None, typer.Option(
        formats=TIMES, help="Its start; default: the newest judged one.")] = None,
    out: Annotated[Path | None, typer.Option(
        help="The file; default: build/reports/MODEL/WINDOW.html.")] = None,
) -> None:
    """Write the report of a judged window to an HTML file.

    It shows each column's drift, the windows before, the scores, and the events that followed until now.
    The page as it was when the window was judged is under reports/ in the store.

    perennial report flights --window 2013-07-01 --out july.html
    """
    from flows.reporting import window_report
    from flows.reporting.pages import report as page
    from registry.context import open_model
    from service.atomic_files import write_atomically

    context = open_model(model)
    start = window.isoformat() if window else window_report.newest(context)
    content, file = page(context, start), out or Path("build") / window_report.key(context, start)
    write_atomically(file, content)
    console.print(f"{model}: window {start}: {file}", highlight=False, soft_wrap=True)


@app.command()
def metrics(
    models: Annotated[list[str] | None, typer.Argument(
        help="Contracts; default: every one in contracts/.")] = None,
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 9464,
    host: Annotated[str, typer.Option(
        help="The address to listen on; this machine alone by default.")] = "127.0.0.1",
) -> None:
    """Export metrics to Prometheus until Ctrl-C: drift, scores, ages and alerts, read at each scrape."""
    from contracts.core.loading import known_models
    from flows.reporting.exporter import serve

    serve(models or known_models(), host, port, console.print)


@contracts.command("diff")
def contract_diff(
        old: Annotated[
            str, typer.Argument(help="A contract, a .py file, or a version: flights@champion, flights@3.")],
        new: Annotated[str, typer.Argument(help="As OLD.")], as_json: AsJson = False) -> None:
    """List the changes between two contracts; exit code 1 if one of them breaks callers."""
    from dataclasses import asdict

    from contracts.core.diff import diff_contracts
    from flows.reporting.status import described

    changes = diff_contracts(described(old), described(new))
    if as_json:
        print_json([asdict(change) for change in changes])
    else:
        rows_table = Table("path", "old", "new", "breaks callers")
        for change in changes:
            rows_table.add_row(change.path, str(change.old), str(change.new), change.breaks or "",
                          style="red" if change.breaks else "")
        console.print(rows_table if changes else "no difference")
    if any(change.breaks for change in changes):
        raise typer.Exit(1)
