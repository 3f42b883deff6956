"""Every `PERENNIAL_` variable, read here alone; a replica's
two are read in `service/app.py`, which ships without this."""

import getpass
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from contracts.core.errors import PerennialError

STORE, RUN, DEMO, USER = "PERENNIAL_STORE", "PERENNIAL_RUN", "PERENNIAL_DEMO", "PERENNIAL_USER"
IMAGES, BASE, BUILD_NETWORK = "PERENNIAL_IMAGES", "PERENNIAL_BASE", "PERENNIAL_BUILD_NETWORK"
DASK, KUSTOMIZATION, ALERT_WEBHOOK = "PERENNIAL_DASK", "PERENNIAL_KUSTOMIZATION", "PERENNIAL_ALERT_WEBHOOK"
CLOCK, JOIN_MEMORY = "PERENNIAL_CLOCK", "PERENNIAL_JOIN_MEMORY"

BASE_IMAGE = "python:3.11-slim"
JOIN_MB, LEAST_JOIN_MB = 400, 300


def store_address() -> str:
    """A folder or s3://bucket/prefix."""
    return os.environ.get(STORE) or ".perennial/store"


def run_folder() -> Path:
    """The folder of what runs on this machine."""
    return Path(os.environ.get(RUN) or ".perennial/run").absolute()


def demo_folder() -> Path:
    """The folder of the demo's store and servers."""
    return Path(os.environ.get(DEMO) or ".perennial/demo").absolute()


def user() -> str:
    """Who appends to the ledger."""
    return os.environ.get(USER) or f"{getpass.getuser()}@{socket.gethostname()}"


def images_address() -> str | None:
    """A container registry and a prefix in it, host:port/prefix;
    None where versions ship without an image."""
    return (os.environ.get(IMAGES) or "").rstrip("/") or None


def base_image() -> str:
    """The image on which the runtime of all images is built."""
    return os.environ.get(BASE) or BASE_IMAGE


def build_network() -> str | None:
    """docker's network for builds."""
    return os.environ.get(BUILD_NETWORK) or None


def dask_address() -> str | None:
    """The address of a Dask scheduler; None to train in this process. Raises PerennialError."""
    address = os.environ.get(DASK) or None
    if address and not (urlsplit(address).scheme and urlsplit(address).netloc):
        raise PerennialError(f"{DASK} is {address!r}; it must be an address such as tcp://host:8786: "
                             f"correct it, or unset it")
    return address


def join_memory_mb() -> int:
    """The memory in which predictions are joined with labels, in MB; what does not fit is on disk. Raises
    PerennialError."""
    text = os.environ.get(JOIN_MEMORY) or str(JOIN_MB)
    if not text.isascii() or not text.isdigit() or int(text) < LEAST_JOIN_MB:
        raise PerennialError(f"{JOIN_MEMORY} is {text!r}; it must be a number of MB, {LEAST_JOIN_MB} or "
                             f"more: correct it, or unset it")
    return int(text)


def kustomization() -> Path | None:
    """The folder into which a release writes its image, None where releases start replicas themselves."""
    folder = os.environ.get(KUSTOMIZATION)
    return Path(folder) if folder else None


def alert_webhook() -> str | None:
    """The webhook to which alerts are posted; checked in `flows.monitoring.notifications`."""
    return os.environ.get(ALERT_WEBHOOK) or None


def clock_file() -> Path | None:
    """The file that holds the present moment of a replay; None where the machine's clock holds."""
    file = os.environ.get(CLOCK)
    return Path(file).absolute() if file else None
