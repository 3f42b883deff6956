"""A server on the first core, and on the last wrk, which asks it the same thing again and again."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from deployments.processes import Process

CORES = sorted(os.sched_getaffinity(0))
SCRIPT = """
wrk.method, wrk.body, wrk.headers["Content-Type"] = "POST", [==[%s]==], "application/json"
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() answered, later, wrong = 0, 0, 0 end
function response(status)
  if status == 200 then answered = answered + 1
  elseif status == 503 then later = later + 1
  else wrong = wrong + 1 end
end
function done(summary, latency)
  local function all(name)
    local sum = 0
    for _, thread in ipairs(threads) do sum = sum + thread:get(name) end
    return sum
  end
  local errors = summary.errors
  io.write(string.format("FIGURES %%d %%d %%d %%d %%d %%d %%d %%d\\n", summary.duration,
    latency:percentile(50), latency:percentile(99), latency.max, all("answered"), all("later"), all("wrong"),
    errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A process that answers POSTs of `body` at `url`."""

    name: str
    process: Process
    url: str
    body: str

    def worker_mb(self) -> float:
        """The resident memory of the largest process of this server."""
        first = psutil.Process(self.process.pid)
        return max(each.memory_info().rss for each in (first, *first.children(recursive=True))) / 2**20


@dataclass(frozen=True, kw_only=True)
class Load:
    """What wrk saw, and what its answers were; latencies in milliseconds, over all answers."""

    seconds: float
    p50: float
    p99: float
    most: float
    answered: int
    later: int
    wrong: int
    broken: int

    @property
    def a_second(self) -> float:
        return self.answered / self.seconds


def need_wrk() -> None:
    if shutil.which("wrk") is None:
        sys.exit("this benchmark needs the program wrk; run: apt install wrk")
    if len(CORES) < 2:
        sys.exit("this benchmark needs two cores: one serves, one asks")


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread, and every process that it starts meanwhile with all its threads, stays on one core."""
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def load(server: Server, connections: int, seconds: float) -> Load:
    """Ask for so long on so many connections, each of which asks again as soon as it is answered."""
    with tempfile.TemporaryDirectory(prefix="perennial-bench-") as folder, on_core(CORES[-1]):
        script = Path(folder) / "ask.lua"
        script.write_text(SCRIPT % server.body)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", script,
                   server.url]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    took, p50, p99, most, *counts = map(int, re.search(r"FIGURES ([\d ]+)", said)[1].split())
    return Load(seconds=took / 1e6, p50=p50 / 1000, p99=p99 / 1000, most=most / 1000,
                **dict(zip(("answered", "later", "wrong", "broken"), counts)))
