"""get / create / compare-and-swap / list, on a folder or on S3."""

import fcntl
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from contracts.contract import PerennialError

RACERS = 8  # of the start-up probe


class NotThere(PerennialError):
    """Nothing is kept under this key."""


class Taken(PerennialError):
    """Somebody else wrote first."""


class StoreIgnoresConditions(PerennialError):
    """The store lets two writers win."""


class StoreAway(PerennialError):
    """The store does not answer, or refuses to."""

    exit_code = 1


class Store(Protocol):
    """Bytes under names; a tag stands for the content that a reader saw."""

    address: str

    def read(self, key: str) -> tuple[bytes, str]:
        """The bytes and their tag; raises NotThere."""

    def get(self, key: str) -> bytes:
        """The bytes; raises NotThere."""

    def create(self, key: str, content: bytes) -> None:
        """Put if absent; raises Taken."""

    def swap(self, key: str, content: bytes, tag: str) -> None:
        """Put if the tag is still the one there; raises Taken."""

    def list(self, prefix: str) -> list[str]:
        """The keys that start with the prefix, sorted."""

    def remove(self, key: str) -> None:
        """Forget a probe's key; nothing else is ever removed."""


def open_store(address: str) -> Store:
    """The store at an address: `s3://bucket/prefix` (endpoint and keys as boto3 finds them) or a folder."""
    try:
        store = _named(address)
        probe(store)
    except (OSError, ValueError, NoCredentialsError) as error:
        raise PerennialError(f"{address!r} can't be used as the store: {error}; name a folder that can be written in PERENNIAL_STORE, or "
                             "s3://bucket/prefix, with AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID as boto3 wants them") from error
    except (BotoCoreError, ClientError) as error:
        raise StoreAway(f"the store {address!r} does not answer: {error}; "
                        "is it up, and are AWS_ENDPOINT_URL, the keys and the bucket right?") from error
    return store


def _named(address: str) -> Store:
    parts = urlsplit(address)
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme in ("", "file") and parts.path:
        return FolderStore(Path(parts.path if parts.scheme else address))
    raise PerennialError(f"no store for {address!r}; name a folder or s3://bucket/prefix in PERENNIAL_STORE")


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
            raise NotThere(f"nothing under {key!r} in {self.address}") from None

    def create(self, key: str, content: bytes) -> None:
        with self._written(key, content) as beside:
            try:
                os.link(beside, self.folder / key)  # fails where the name exists: the one atomic put-if-absent
            except FileExistsError:
                raise Taken(f"{key} is there already in {self.address}") from None

    def swap(self, key: str, content: bytes, tag: str) -> None:
        with self._written(key, content) as beside, open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read(key)[1] != tag:
                raise Taken(f"{key} has changed in {self.address}")
            os.replace(beside, self.folder / key)

    @contextmanager
    def _written(self, key: str, content: bytes):
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
        return sorted(key for key in keys if key.startswith(prefix) and not key.rpartition("/")[2].startswith("."))

    def remove(self, key: str) -> None:
        (self.folder / key).unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class S3Store:
    """A bucket and a prefix, with conditional writes."""

    def __init__(self, bucket: str, prefix: str):
        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self.address = f"s3://{bucket}/{prefix}".rstrip("/")
        import boto3  # a folder needs none of it, and it takes its time
        from botocore.config import Config

        self.client = boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 4}))

    def read(self, key: str) -> tuple[bytes, str]:
        try:
            found = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
        except self.client.exceptions.NoSuchKey:
            raise NotThere(f"nothing under {key!r} in {self.address}") from None
        return found["Body"].read(), found["ETag"]

    def get(self, key: str) -> bytes:
        return self.read(key)[0]

    def create(self, key: str, content: bytes) -> None:
        self._put(key, content, IfNoneMatch="*")

    def swap(self, key: str, content: bytes, tag: str) -> None:
        self._put(key, content, IfMatch=tag)

    def _put(self, key: str, content: bytes, **condition: str) -> None:
        try:
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=content, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise Taken(f"{key} is there already or has changed in {self.address}") from None
            raise

    def list(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        return sorted(one["Key"].removeprefix(self.prefix) for page in pages for one in page.get("Contents", ()))

    def remove(self, key: str) -> None:
        with suppress(ClientError):  # whoever may not delete here leaves it
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)


def put(store: Store, key: str, content: bytes) -> None:
    """Put whole, in place of what is there; of two writers at once the later one's stays."""
    while True:
        with suppress(Taken):
            try:
                _, tag = store.read(key)
            except NotThere:
                return store.create(key, content)
            return store.swap(key, content, tag)


def probe(store: Store) -> None:
    """Refuse a store on which two writers can win: a second create, a stale swap and a race must all fail."""
    key = f".probe/{uuid4().hex}"
    if _won(store.create, key, b"first") + _won(store.create, key, b"second") != 1:
        raise _ignores(store, "a second writer overwrote a key that was to be created once")
    _, stale = store.read(key)
    store.swap(key, b"third", stale)
    if _won(store.swap, key, b"fourth", stale):
        raise _ignores(store, "a write with a stale tag went through")
    with ThreadPoolExecutor(RACERS) as pool:
        won = sum(pool.map(lambda n: _won(store.create, f"{key}-race", b"%d" % n), range(RACERS)))
    if won != 1:
        raise _ignores(store, f"{won} of {RACERS} racing writers won")
    for each in (key, f"{key}-race"):
        store.remove(each)


def _won(write: Any, *arguments: Any) -> bool:
    try:
        write(*arguments)
    except Taken:
        return False
    return True


def _ignores(store: Store, what: str) -> StoreIgnoresConditions:
    return StoreIgnoresConditions(
        f"{store.address} ignores write conditions: {what}; use a store that honours If-None-Match and If-Match "
        "(AWS S3, MinIO, Ceph) or a folder")
