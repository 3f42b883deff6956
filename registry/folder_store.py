"""A store in a folder, with the same guarantees as S3's conditional writes."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from contracts.core.errors import Conflict, Corrupt, NotFound


class FolderStore:
    """A folder in which a file appears whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self.address = str(self.folder)

    def _path(self, key: str) -> Path:
        """The file of a key; raises Corrupt for one that leads out of the folder."""
        path = self.folder / key
        if ".." in path.parts or not path.is_relative_to(self.folder):
            raise Corrupt(f"{key!r} is no key of {self.address}: it leads out of the folder")
        return path

    def read(self, key: str) -> tuple[bytes, str]:
        content = self.get(key)
        return content, sha256(content).hexdigest()

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"nothing under {key!r} in {self.address}") from None

    def create(self, key: str, content: bytes) -> None:
        with self._temporary(key, content) as temporary:
            try:
                # A hard link fails if the name exists: the one atomic put-if-absent.
                os.link(temporary, self._path(key))
            except FileExistsError:
                raise Conflict(f"{key} is there already in {self.address}") from None

    def swap(self, key: str, content: bytes, tag: str) -> None:
        with self._temporary(key, content) as temporary, open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read(key)[1] != tag:
                raise Conflict(f"{key} has changed in {self.address}")
            os.replace(temporary, self._path(key))

    @contextmanager
    def _temporary(self, key: str, content: bytes) -> Iterator[str]:
        """A temporary file of the content, synced to disk in the key's folder and removed afterwards."""
        folder = self._path(key).parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
            _sync(folder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def folders(self, prefix: str, after: str = "") -> list[str]:
        first = after.removeprefix(prefix).rstrip("/")
        try:
            names = sorted(entry.name for entry in os.scandir(self._path(prefix))
                           if entry.is_dir() and entry.name >= first)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [name for name in names if any(path.is_file() and not path.name.startswith(".")
                                              for path in self._path(prefix + name).rglob("*"))]

    def list(self, prefix: str, after: str = "") -> list[str]:
        start = self.folder / prefix.rpartition("/")[0]
        keys = (path.relative_to(self.folder).as_posix() for path in start.rglob("*") if path.is_file())
        return sorted(key for key in keys if key.startswith(prefix) and key > after
                      and not key.rpartition("/")[2].startswith("."))

    def remove(self, key: str) -> None:
        self._path(key).unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
