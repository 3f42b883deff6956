"""What all commands share: their common arguments, and how results are printed."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

Model = Annotated[
    str, typer.Argument(help="A contract: `flights` is contracts/flights.py; a dotted module works too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]  # event times have no zone
console = Console()


def say(value: Any, as_json: bool, text: str) -> None:
    print_json(value) if as_json else console.print(text, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))
