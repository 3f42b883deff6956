"""`perennial doctor`: whether each part that flows need is there, and what to do about one that is not."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import asdict, dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from uuid import uuid4

import httpx
from rich.table import Table

from contracts.core.errors import PerennialError
from contracts.core.loading import known_models, load_contract
from deployments import load_balancer, routes
from deployments.prefect_server import POOL
from flows.commands.terminal import console, print_json
from registry import clock, images, settings
from registry.store import open_store

TIMEOUT = 10.0  # seconds for a check
FREE_GB = 2.0  # of disk, below which trainings and releases fail soon
CLOCKS_APART = timedelta(seconds=5)


class Health(StrEnum):
    OK = "ok"
    FAULT = "fault"
    UNUSED = "not used"


@dataclass(frozen=True)
class Finding:
    """What was found of one part, and, of a fault, what to do."""

    part: str
    health: Health
    found: str

    @property
    def is_fault(self) -> bool:
        return self.health is Health.FAULT


class Fault(Exception):
    """A part is not as it should be; the text says what was found and what to do."""


class Unused(Exception):
    """A part is not set up here."""


def store() -> str:
    """Open it, write and read."""
    opened = open_store(settings.store_address())
    key = f".probe/{uuid4().hex}"
    opened.create(key, b"doctor")
    read = opened.get(key)
    opened.remove(key)
    if read != b"doctor":
        raise Fault(f"{opened.address} gave back other bytes than were written")
    return f"{opened.address}: written and read, write conditions honoured"


def image_registry() -> str:
    address = settings.images_address()
    if address is None:
        raise Unused(f"{settings.IMAGES} is not set: versions ship without an image")
    images.engine().ping()
    reply = httpx.get(f"http://{address.split('/')[0]}/v2/", timeout=TIMEOUT)
    if reply.status_code not in (200, 401):
        raise Fault(f"{address} answers {reply.status_code}; is {settings.IMAGES} a container registry?")
    return f"{address} and a container engine answer"


def prefect_server() -> str:
    url = prefect_url()
    reply = httpx.get(f"{url}/health", timeout=TIMEOUT)
    version = httpx.get(f"{url}/admin/version", timeout=TIMEOUT).json()
    return f"{url}: Prefect {version}" if reply.is_success else f"{url} answers {reply.status_code}"


def prefect_url() -> str:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise Unused("PREFECT_API_URL is not set: commands start a temporary server, nothing is scheduled")
    return url


def worker() -> str:
    workers = httpx.post(f"{prefect_url()}/work_pools/{POOL}/workers/filter", json={}, timeout=TIMEOUT)
    if workers.status_code == 404:
        raise Fault(f"no work pool {POOL!r}; run: perennial deploy")
    online = [one for one in workers.json() if one["status"] == "ONLINE"]
    if not online:
        raise Fault(f"no worker of the pool {POOL!r} is online: nothing runs; start one: prefect worker "
                    f"start --pool {POOL}")
    heard = max(one["last_heartbeat_time"] for one in online)[:19]
    return f"{len(online)} online, last heard of at {heard} UTC"


def balancer() -> str:
    run = settings.run_folder()
    models = routes.routed_models(run)
    if not models:
        raise Unused(f"no model is served from {run}")
    recorded = load_balancer.recorded(run)
    if recorded is None or not recorded.is_alive:
        raise Fault(f"it does not run, though {run} serves {', '.join(models)}; run: perennial release "
                    f"{models[0]}")
    url = recorded.url
    for model in models:
        reply = httpx.get(f"{url}/{model}/readyz", timeout=TIMEOUT)
        if not reply.is_success:
            raise Fault(f"{url}/{model} answers {reply.status_code}; run: perennial release {model}")
    return f"{url} serves {', '.join(models)}"


def clocks() -> str:
    if clock.is_simulated():
        return f"{settings.CLOCK} sets it to {clock.now('UTC')} UTC"
    reply = httpx.get(f"{prefect_url()}/health", timeout=TIMEOUT)
    apart = abs(clock.machine_time() - parsedate_to_datetime(reply.headers["date"]))
    if apart > CLOCKS_APART:
        raise Fault(f"{apart} apart from the Prefect server's; set this machine's clock by NTP")
    return f"{clock.machine_time():%Y-%m-%d %H:%M:%S} UTC, as the Prefect server's"


def disk() -> str:
    run = settings.run_folder()
    run.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(run).free / 2**30
    if free < FREE_GB:
        raise Fault(f"{free:.1f} GB are free at {run}; {FREE_GB:g} GB are needed: make room")
    return f"{free:.0f} GB are free at {run}"


def contracts() -> str:
    faults = []
    for model in known_models():
        try:
            load_contract(model)
        except PerennialError as error:
            faults.append(str(error))
    if faults:
        raise Fault("; ".join(faults))
    return f"{', '.join(known_models())} load"


CHECKS: dict[str, Callable[[], str]] = {
    "contracts": contracts, "store": store, "image registry": image_registry,
    "Prefect server": prefect_server, "worker": worker, "load balancer": balancer, "clock": clocks,
    "disk": disk}


def findings() -> Iterator[Finding]:
    """What each check finds, in turn; one that takes too long is a fault."""
    pool = ThreadPoolExecutor(len(CHECKS))
    asked = {part: pool.submit(check) for part, check in CHECKS.items()}
    for part, answer in asked.items():
        try:
            yield Finding(part, Health.OK, answer.result(timeout=2 * TIMEOUT))
        except Unused as unused:
            yield Finding(part, Health.UNUSED, str(unused))
        except Late:
            yield Finding(part, Health.FAULT, f"no answer within {2 * TIMEOUT:g} s")
        except Exception as error:  # of any part: it is what the command is to tell
            is_ours = isinstance(error, (Fault, PerennialError))
            text = str(error) if is_ours else f"{type(error).__name__}: {error}"
            yield Finding(part, Health.FAULT, text)
    pool.shutdown(wait=False)


def show(found: Sequence[Finding], as_json: bool) -> None:
    """Print the findings, a line each."""
    if as_json:
        return print_json([asdict(finding) for finding in found])
    table = Table("part", "health", "found")
    for finding in found:
        table.add_row(finding.part, finding.health, finding.found, style="red" if finding.is_fault else None)
    console.print(table)
