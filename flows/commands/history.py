"""The commands that read a ledger: history, a page at a time, and verify, from the first event on."""

from typing import Annotated

import typer
from rich.table import Table

from flows.commands.terminal import AsJson, Model, console, print_json, say

app = typer.Typer()
PAGE = 50  # events


@app.command()
def history(
    model: Model,
    at: Annotated[str | None, typer.Option(help="What served at this time (ISO, UTC)?")] = None,
    last: Annotated[int, typer.Option(min=1, help="How many events, the newest at the end.")] = PAGE,
    before: Annotated[int | None, typer.Option(
        min=0, help="Those before the event of this number: the page before.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every event from the first on.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the newest events of a model's ledger, page by page, or show its champion at a time.

    perennial history flights                     the last 50 events

    perennial history flights --before 1200       the 50 before event 1200

    perennial history flights --all --json        all, for a program

    perennial history flights --at 2013-07-01T12:00
    """
    from contracts.core.errors import PerennialError
    from flows.reporting.status import events
    from registry.context import open_model

    ledger = open_model(model).ledger
    if at is not None:
        champion = ledger.state(at=at).champion
        return say({"at": at, "champion": champion}, as_json,
                    f"{model} at {at}: {champion or 'nothing served'}")
    if everything and before is not None:
        raise PerennialError("--all and --before exclude each other: --all lists from the first event on")
    length = ledger.length
    end = length if before is None else min(before, length)
    rows = events(ledger, 0 if everything else max(0, end - last), end)
    if as_json:
        return print_json(rows)
    rows_table = Table("#", "when (UTC)", "by", "what", "about")
    for row in rows:
        rows_table.add_row(str(row["seq"]), row["at"][:19], row["by"], row["kind"], row["about"])
    console.print(rows_table)
    if rows and rows[0]["seq"] > 0:
        console.print(f"{len(rows)} of {length:,} events; those before: perennial history {model} --before "
                      f"{rows[0]['seq']}", highlight=False, soft_wrap=True)


@app.command()
def verify(
    model: Annotated[str | None, typer.Argument(
        help="A contract's name; default: every one in contracts/.")] = None,
    repair: Annotated[bool, typer.Option(
        "--repair", help="Write copies that are wrong anew from the events; never an event.")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify ledgers from the first event on; exit code 1 if something is wrong.

    It reads each event by itself, checks its digest and its link to the event before, and compares it with
    its copies; it folds all events and compares what they amount to with each snapshot. Other commands read
    the copies: run this after a backup was restored, or where somebody had access to the store.
    """
    from contracts.core.loading import known_models
    from flows.commands.verification import present, verified

    found = [verified(name, repair) for name in ([model] if model else known_models())]
    if as_json:
        print_json([present(one) for one in found])
    for one in [] if as_json else found:
        outcome = f"{len(one.faults)} wrong" if one.faults else "all right"
        console.print(f"{one.model}: {one.events:,} events, {one.segments} segments and {one.snapshots} "
                      f"snapshots verified: {outcome}",
                      highlight=False, soft_wrap=True)
        for fault in one.faults:
            console.print(f"- {fault.key}: {fault.what}; {fault.remedy}", highlight=False, soft_wrap=True,
                          markup=False, style="red")
    if any(one.faults for one in found):
        raise typer.Exit(1)
