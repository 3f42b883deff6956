"""Benchmarks: figures go to build/bench/*.json, never into a test."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil

ROOT = Path(__file__).parent.parent.parent
PEERS = Path(__file__).parent / "peers"


def figure(what: str, asked: float, sense: Literal["at least", "at most"], unit: str,
           values: Sequence[float]) -> dict[str, Any]:
    """One line of the page: what was asked for, and what the rounds
    measured: their median, least and most; of no round None."""
    return {"what": what, "asked": asked, "sense": sense, "unit": unit,
            "measured": statistics.median(values) if values else None, "low": min(values, default=None),
            "high": max(values, default=None)}


def write(name: str, figures: dict[str, Any]) -> None:
    """Keep a benchmark's figures with where and when they were measured, and print them."""
    about = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count(),
             "python": platform.python_version(), "processor": processor(),
             "memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "git": git_revision()}
    place = ROOT / "build" / "bench" / f"{name}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(figures | about, indent=1))
    print(json.dumps(figures, indent=1), f"written to {place.relative_to(ROOT)}", sep="\n")


def processor() -> str:
    """The processor's name, as Linux tells it, or the architecture's."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
                platform.machine())


def git_revision() -> str:
    """The commit that was measured, with a mark where files were changed since."""
    asked = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=10"], cwd=ROOT,
                           capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "no revision"


def peers(name: str) -> Path:
    """The interpreter of an environment of peers, which is made on demand from `peers/NAME.txt`."""
    place, lock = ROOT / "build" / "peers" / name, PEERS / f"{name}.txt"
    made = place / "installed"
    if not made.exists() or made.read_text() != lock.read_text():
        print(f"installing the peers of {name} (once, about two minutes) ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        subprocess.run([place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check",
                        "--no-deps", "--require-hashes", "-r", lock], check=True)
        made.write_text(lock.read_text())
    return place / "bin" / "python"


@contextmanager
def fresh_addresses() -> Iterator[Path]:
    """An empty store and run folder in the environment, gone afterwards with what runs there."""
    from deployments import fleet

    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as home:
        os.environ |= {"PERENNIAL_STORE": f"{home}/store", "PERENNIAL_RUN": f"{home}/run"}
        try:
            yield Path(home)
        finally:
            fleet.stop_all(Path(home) / "run")
