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
    """Bytes under keys; a tag identifies the content that a reader saw."""

    address: str

    def read(self, key: str) -> tuple[bytes, str]:
        """The bytes and their tag; raises NotFound."""

    def get(self, key: str) -> bytes:
        """The bytes; raises NotFound."""

    def create(self, key: str, content: bytes) -> None:
        """Put if absent; raises Conflict."""

    def swap(self, key: str, content: bytes, tag: str) -> None:
        """Put if the tag is still current; raises Conflict."""

    def folders(self, prefix: str, after: str = "") -> list[str]:
        """The names between the prefix, which ends in a slash, and the next slash of keys that lie deeper,
        sorted; with `after`, a folder below the prefix, only this and later ones are looked through."""

    def list(self, prefix: str, after: str = "") -> list[str]:
        """The keys that start with the prefix and come after the key `after`, sorted."""

    def remove(self, key: str) -> None:
        """Remove a probe's key; nothing else is ever removed."""


def open_store(address: str) -> Store:
    """The store at an address: `s3://bucket/prefix` (endpoint and keys as boto3 finds them) or a folder."""
    try:
        store = _store_at(address)
        probe(store)
    except (OSError, ValueError, NoCredentialsError) as error:
        raise PerennialError(f"{address!r} can't be used as the store: {error}; name a folder that can be "
                             f"written in PERENNIAL_STORE, or s3://bucket/prefix, with AWS_ENDPOINT_URL and "
                             f"AWS_ACCESS_KEY_ID as boto3 wants them") from error
    except (BotoCoreError, ClientError) as error:
        raise Unavailable(f"the store {address!r} does not answer: {error}; "
                        "is it up, and are AWS_ENDPOINT_URL, the keys and the bucket right?") from error
    return store


def _store_at(address: str) -> Store:
    parts = urlsplit(address)
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme in ("", "file") and parts.path:
        return FolderStore(Path(parts.path if parts.scheme else address))
    raise PerennialError(f"no store for {address!r}; name a folder or s3://bucket/prefix in PERENNIAL_STORE")


def put(store: Store, key: str, content: bytes) -> None:
    """Put, replacing what is there; of two writers at once the later one's content stays."""
    while True:
        with suppress(Conflict):
            try:
                _, tag = store.read(key)
            except NotFound:
                return store.create(key, content)
            return store.swap(key, content, tag)


def probe(store: Store) -> None:
    """Raise UnsafeStore where two writers can both win: a second create and a stale swap must
    fail, and of racing creates only one may succeed."""
    key = f".probe/{uuid4().hex}"
    if _succeeds(store.create, key, b"first") + _succeeds(store.create, key, b"second") != 1:
        raise _unsafe(store, "a second writer overwrote a key that was to be created once")
    _, stale = store.read(key)
    store.swap(key, b"third", stale)
    if _succeeds(store.swap, key, b"fourth", stale):
        raise _unsafe(store, "a write with a stale tag went through")
    with ThreadPoolExecutor(RACERS) as pool:
        winners = sum(pool.map(lambda n: _succeeds(store.create, f"{key}-race", b"%d" % n), range(RACERS)))
    if winners != 1:
        raise _unsafe(store, f"{winners} of {RACERS} racing writers won")
    store.remove(key)
    store.remove(f"{key}-race")


def _succeeds(write: Any, *arguments: Any) -> bool:
    try:
        write(*arguments)
    except Conflict:
        return False
    return True


def _unsafe(store: Store, what: str) -> UnsafeStore:
    return UnsafeStore(f"{store.address} ignores write conditions: {what}; use a store that honours "
                       f"If-None-Match and If-Match (AWS S3, MinIO, Ceph) or a folder")
