"""A store in a folder, with the same guarantees as S3's conditional writes."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from contracts.core.errors import Conflict, NotFound


class FolderStore:
    """A folder; a file appears whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self.address = str(self.folder)

    def read(self, key: str) -> tuple[bytes, str]:
        content = self.get(key)
        return content, sha256(content).hexdigest()

    def get(self, key: str) -> bytes:
        try:
            return (self.folder / key).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"nothing under {key!r} in {self.address}") from None

    def create(self, key: str, content: bytes) -> None:
        with self._written(key, content) as beside:
            try:
                # Fails where the name exists: the one atomic put-if-absent.
                os.link(beside, self.folder / key)
            except FileExistsError:
                raise Conflict(f"{key} is there already in {self.address}") from None

    def swap(self, key: str, content: bytes, tag: str) -> None:
        with self._written(key, content) as beside, open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read(key)[1] != tag:
                raise Conflict(f"{key} has changed in {self.address}")
            os.replace(beside, self.folder / key)

    @contextmanager
    def _written(self, key: str, content: bytes) -> Iterator[str]:
        """The content, safe on disk beside its place; what the caller leaves of it goes."""
        folder = (self.folder / key).parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=".tmp-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield beside
            _sync(folder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(beside)

    def list(self, prefix: str) -> list[str]:
        start = self.folder / prefix.rpartition("/")[0]
        keys = (path.relative_to(self.folder).as_posix() for path in start.rglob("*") if path.is_file())
        return sorted(key for key in keys if key.startswith(prefix)
                      and not key.rpartition("/")[2].startswith("."))

    def remove(self, key: str) -> None:
        (self.folder / key).unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
