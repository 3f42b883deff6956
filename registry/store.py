"""Open the store at an address, a folder or s3://…, and refuse one that can't keep its guarantees."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from contracts.core.errors import Conflict, NotFound, PerennialError, Unavailable, UnsafeStore
from registry.folder_store import FolderStore
from registry.s3_store import S3Store

RACERS = 8  # of the start-up probe


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
        raise PerennialError(f"{address!r} can't be used as the store: {error}; name a folder that can be "
                             f"written in PERENNIAL_STORE, or s3://bucket/prefix, with AWS_ENDPOINT_URL and "
                             f"AWS_ACCESS_KEY_ID as boto3 wants them") from error
    except (BotoCoreError, ClientError) as error:
        raise Unavailable(f"the store {address!r} does not answer: {error}; "
                        "is it up, and are AWS_ENDPOINT_URL, the keys and the bucket right?") from error
    return store


def _named(address: str) -> Store:
    parts = urlsplit(address)
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme in ("", "file") and parts.path:
        return FolderStore(Path(parts.path if parts.scheme else address))
    raise PerennialError(f"no store for {address!r}; name a folder or s3://bucket/prefix in PERENNIAL_STORE")


def put(store: Store, key: str, content: bytes) -> None:
    """Put whole, in place of what is there; of two writers at once the later one's stays."""
    while True:
        with suppress(Conflict):
            try:
                _, tag = store.read(key)
            except NotFound:
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
    except Conflict:
        return False
    return True


def _ignores(store: Store, what: str) -> UnsafeStore:
    return UnsafeStore(f"{store.address} ignores write conditions: {what}; use a store that honours "
                       f"If-None-Match and If-Match (AWS S3, MinIO, Ceph) or a folder")
