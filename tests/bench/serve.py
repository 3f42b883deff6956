"""One-record POST /predict through `bentoml serve` of the built bento, everything on: one core serves, another asks."""

import json
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import httpx
import psutil

from deployments import replicas
from flows.ingest import take_in
from flows.memory import remember
from flows.release import build_bento
from flows.train import fetched, fit_version
from tests.bench import fresh_addresses, write

CONNECTIONS, SECONDS, RUNS = 32, 10, 3
SCRIPT = """
wrk.method, wrk.body, wrk.headers["Content-Type"] = "POST", [==[%s]==], "application/json"
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() wrong = 0 end
function response(status) if status ~= 200 then wrong = wrong + 1 end end
function done(_, latency)
  local failed = 0
  for _, thread in ipairs(threads) do failed = failed + thread:get("wrong") end
  io.write(string.format("FIGURES %%d %%d %%d %%d\\n", latency:percentile(50), latency:percentile(99), latency.max, failed))
end
"""


def main() -> None:
    if shutil.which("wrk") is None:
        sys.exit("this benchmark needs the program wrk; run: apt install wrk")
    with fresh_addresses() as home:
        memory = remember("flights")
        take_in(memory, datetime(2013, 1, 1), datetime(2013, 3, 1))
        version = fit_version(memory)
        spool = {"PERENNIAL_PROFILES": str(memory.spool)}
        [replica] = replicas.start(build_bento(memory, version), version, 1, memory.run, memory.name, spool)
        replicas.wait_ready([replica])
        pin(replica)
        record = json.loads((fetched(memory, version) / "samples.json").read_bytes())["records"][0]
        body = json.dumps({"records": [record]})
        httpx.post(f"{replica.url}/predict", content=body).raise_for_status()
        script = home / "one.lua"
        script.write_text(SCRIPT % body)
        measured = [load(replica.url, script) for _ in range(RUNS + 1)][1:]  # the first warms up
        write("serve", {"connections": CONNECTIONS, "seconds": SECONDS, "asked": {"requests_per_second": 600, "p99_ms": 80},
                        "best_to_worst": sorted(measured, key=lambda one: -one["requests_per_second"])})


def pin(replica: replicas.Replica) -> None:
    """The server and its workers on the first core; the client gets the last."""
    for process in (psutil.Process(replica.pid), *psutil.Process(replica.pid).children(recursive=True)):
        process.cpu_affinity([0])


def load(url: str, script: Path) -> dict[str, float]:
    core = str(max(psutil.Process().cpu_affinity()))
    said = subprocess.run(["taskset", "-c", core, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", str(script), f"{url}/predict"],
                          capture_output=True, text=True, check=True).stdout
    p50, p99, most, failed = map(int, re.search(r"FIGURES (\d+) (\d+) (\d+) (\d+)", said).groups())
    rate = float(re.search(r"Requests/sec: +([\d.]+)", said)[1])
    return {"requests_per_second": rate, "p50_ms": p50 / 1000, "p99_ms": p99 / 1000, "max_ms": most / 1000, "failed": failed}


if __name__ == "__main__":
    main()
