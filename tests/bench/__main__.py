"""All benchmarks, one after the other, and the page of what they
measured: `python -m tests.bench`, or some of them by name."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deployments import processes
from service.atomic_files import write_text
from tests.bench import ROOT, peers
from tests.bench.page import BENCH, BENCHMARKS
from tests.bench.page import main as draw

TELL = 30  # seconds between two words that a benchmark still runs
PATIENCE = 30  # seconds to end what it started, for a benchmark that is told to


def main() -> None:
    """Run them to their ends; the page names one that fails."""
    names = sys.argv[1:] or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
    for each in (signal.SIGINT, signal.SIGTERM):  # in the background too, where shells have SIGINT ignored
        signal.signal(each, signal.default_int_handler)
    done: dict[str, Any] = {}
    begun = time.monotonic()
    try:
        prepare(dict.fromkeys(each for name in names for each in BENCHMARKS[name].peers))
        begun = time.monotonic()
        for number, name in enumerate(names, 1):
            done[name] = {"outcome": "ended by Ctrl-C", "seconds": None}
            print(f"\n== {number} of {len(names)}, {name}: {BENCHMARKS[name].about}", flush=True)
            done[name] = run([sys.executable, "-m", f"tests.bench.{name}"])
    except KeyboardInterrupt:
        print("\nended by Ctrl-C; what was measured before is kept")
    finally:
        write_text(BENCH / "run.json",
                   json.dumps({"benchmarks": done, "seconds": time.monotonic() - begun}, indent=1))
        draw()
    told = [f"{name}: {how['outcome']}" for name, how in done.items() if how["outcome"] != "done"]
    print(f"{time.monotonic() - begun:.0f} s", *told, sep="\n")
    sys.exit(1 if told or len(done) < len(names) else 0)


def prepare(environments: Iterable[str]) -> None:
    """Install the peers before the clock runs; where they can't
    be, the benchmarks that want them say so themselves."""
    for name in environments:
        try:
            peers(name)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"the peers of {name} were not installed: {error}")


def run(command: list[str], tell: float = TELL) -> dict[str, Any]:
    """Run a benchmark with a folder of its own for temporary files; how long it
    took and how it ended. It says that it still runs every `tell` seconds."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, open(Path(folder) / "said", "w+") as said:
        program = subprocess.Popen(command, cwd=ROOT, stderr=said, start_new_session=True,
                                   env=os.environ | {"TMPDIR": folder})
        try:
            outcome = ended(program, begun, tell)
        finally:
            end(program, folder)
        said.seek(0)
        lines = said.read().strip().splitlines()
    if outcome == "failed" and lines:
        outcome = f"failed: {lines[-1]}"
        print(*lines[-15:], sep="\n")
    return {"outcome": outcome, "seconds": time.monotonic() - begun}


def ended(program: subprocess.Popen, begun: float, tell: float) -> str:
    while True:
        with suppress(subprocess.TimeoutExpired):
            return "failed" if program.wait(tell) else "done"
        print(f"... {time.monotonic() - begun:.0f} s", flush=True)


def end(program: subprocess.Popen, folder: str) -> None:
    """End a benchmark that still runs as Ctrl-C would, so that it
    ends its servers; by force what is left of these and of it."""
    if program.poll() is None:
        program.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            program.wait(PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    processes.terminate(lambda log: log.startswith(f"{folder}/"), 10)


if __name__ == "__main__":
    main()
