"""Benchmarks: figures go to build/bench/*.json, never into a test."""

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def write(name: str, figures: dict[str, Any]) -> None:
    """Keep a benchmark's figures with where and when they were measured, and print them."""
    about = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count(), "python": platform.python_version()}
    place = ROOT / "build" / "bench" / f"{name}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(figures | about, indent=1))
    print(json.dumps(figures, indent=1), f"written to {place.relative_to(ROOT)}", sep="\n")


@contextmanager
def fresh_addresses() -> Iterator[Path]:
    """An empty store and run folder in the environment, gone afterwards with what runs there."""
    from deployments import balancer

    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as home:
        os.environ |= {"PERENNIAL_STORE": f"{home}/store", "PERENNIAL_RUN": f"{home}/run"}
        try:
            yield Path(home)
        finally:
            balancer.stop_all(Path(home) / "run")
