"""How long commands take to start: the whole process from the
shell's point of view, warm, each in turn with bare Python."""

import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from flows.ingest import ingest_batch
from flows.training.judging import judge
from flows.training.version import fit_version
from registry.context import open_model
from tests.bench import figure, fresh_addresses, write

ROUNDS = 3
PERENNIAL = str(Path(sys.executable).parent / "perennial")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import typer, rich'": [sys.executable, "-c", "import typer, rich"],
    "python -c 'import pandera.pandas'": [sys.executable, "-c", "import pandera.pandas"],
    "perennial --help": [PERENNIAL, "--help"],
    "perennial contract diff": [PERENNIAL, "contract", "diff", "flights", "flights@1"],
    "perennial history": [PERENNIAL, "history", "flights"],
    "perennial status": [PERENNIAL, "status", "flights"],
    "perennial down": [PERENNIAL, "down"],
    "perennial monitor (no window due)": [PERENNIAL, "monitor", "flights"],
}


def main() -> None:
    with fresh_addresses() as home:
        os.environ["PERENNIAL_DEMO"] = str(home / "demo")
        context = open_model("flights")
        ingest_batch(context, datetime(2013, 1, 1), datetime(2013, 1, 22))
        judge(context, fit_version(context))
        for command in COMMANDS.values():
            seconds(command)  # the first reads what the others find in memory
        took: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(ROUNDS):
            for name, command in COMMANDS.items():
                took[name].append(seconds(command))
    write("startup",
          {"figures": [figure("perennial --help, from a warm disk", 0.3, "at most", "s",
                              took["perennial --help"])], "commands": took})


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - begun
    if said.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {said.returncode}: {said.stderr}")
    return took


if __name__ == "__main__":
    main()
