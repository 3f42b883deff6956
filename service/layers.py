"""The recalibration layer that a running replica follows: a small file beside the profiles, one for each
version that was trained, that names the version to answer as. A replica takes it over between two requests.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import msgspec
from msgspec import Struct

from contracts.core.calibration import Calibration
from contracts.core.digests import JsonObject
from service.atomic_files import write_atomically

FOLDER = "layers"  # in the profiles' folder: no replica's files lie so near its top
INTERVAL = 1.0  # seconds between two looks at the file

log = logging.getLogger("perennial.layers")


class ServedLayer(Struct, frozen=True, kw_only=True):
    """Which `version` replicas of `base` answer as: its layer (None: of `base` itself), what /model says, and
    the bins of its outputs, as their JSON."""

    base: str
    version: str
    manifest: JsonObject
    calibration: Calibration | None = None
    output_bins: dict[str, JsonObject] = {}


def layer_path(spool: Path, model: str, base: str) -> Path:
    """The file that replicas of a trained version follow."""
    return spool / FOLDER / model / f"{base}.json"


def write_layer(spool: Path, model: str, layer: ServedLayer) -> None:
    """Have the replicas of a base that share this folder answer as another version."""
    content = msgspec.json.encode(layer)
    path = layer_path(spool, model, layer.base)
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


def read_layer(spool: Path, model: str, base: str) -> ServedLayer | None:
    """What replicas of a base are to answer as; None where nothing was said, or it can't be read."""
    path = layer_path(spool, model, base)
    try:
        layer = msgspec.json.decode(path.read_bytes(), type=ServedLayer)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.error("%s is not a layer: %s; what served serves on", path, error)
        return None
    return layer if layer.base == base else None


class LayerFollower:
    """A thread that looks at the file and calls `take` with what it says, each time that it changes."""

    def __init__(self, spool: Path, model: str, base: str, take: Callable[[ServedLayer], None],
                 interval: float = INTERVAL):
        self._spool, self._model, self._base, self._take = spool, model, base, take
        self._interval, self._closing = interval, Event()
        self._seen = self._stamp()
        self._thread = Thread(target=self._run, name="layers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            stamp = self._stamp()
            if stamp == self._seen:
                continue
            layer, self._seen = read_layer(self._spool, self._model, self._base), stamp
            try:
                if layer:
                    self._take(layer)
            except Exception:  # whatever it is, what served serves on
                log.exception("%s: not taken over", layer and layer.version)

    def _stamp(self) -> tuple[int, int] | None:
        """What tells one content of the file from another: each is a file of its own, moved into place."""
        try:
            found = layer_path(self._spool, self._model, self._base).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns
