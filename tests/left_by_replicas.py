"""What replicas left in their spool, for tests to look at."""

from datetime import datetime
from pathlib import Path

from contracts.core.windows import WINDOW_FORMAT
from service.profiles import merge


def windows(folder: Path, model: str, version: str) -> list[datetime]:
    names = {path.parent.name for path in (folder / model / version).glob("*/*.bin")}
    return sorted(datetime.strptime(name, WINDOW_FORMAT) for name in names)


def collect(folder: Path, model: str, version: str, start: datetime):
    """What all replicas saw of one window; None without traffic."""
    files = sorted((folder / model / version / start.strftime(WINDOW_FORMAT)).glob("*.bin"))
    return merge([path.read_bytes() for path in files]) if files else None
