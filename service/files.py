"""Write files so that a crash leaves the old content or the new, never half of it."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a power failure, finds the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_atomically(path: Path, content: bytes) -> None:
    """Put a file in place so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
