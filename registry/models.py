"""Model versions in the store: save, fetch and verify their files, and resolve their names."""

import json
import os
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from contracts.core.digests import canonical_json, digest_of
from contracts.core.errors import Conflict, Corrupt, NoChampion, NotFound
from registry import layout
from registry.events import encode_data
from registry.ledger import Ledger
from registry.store import Store

# Of a manifest: raise it with a change that an older reader can't follow, and keep reading the older.
FORMAT = 1
SHORTEST = 6  # characters of a digest that name a version


class Manifest(TypedDict):
    """What a version was made of. `twin_rows`: rows of the model that the gate
    judged; `judged_from`: the first event time that it had not seen; `code`: the
    digest of the code that fits and answers; `files`: each file's sha256."""

    model: str
    contract: str
    classes: list[str]
    features: list[str]
    data: dict[str, Any]
    rows: int
    twin_rows: int
    judged_from: str
    metrics: dict[str, Any]
    seed: int
    code: str
    packages: dict[str, str]
    workers: NotRequired[int]
    format: NotRequired[int]
    files: NotRequired[dict[str, str]]


def save(store: Store, model: str, files: dict[str, bytes], manifest: Manifest) -> str:
    """Keep a version's files and, last, its manifest; gives the version, which is the manifest's digest.

    The same files and manifest are the same version, however often they are saved.
    """
    manifest = manifest | {"format": FORMAT,
                           "files": {name: sha256(files[name]).hexdigest() for name in sorted(files)}}
    version = digest_of(manifest)
    for name, content in [*files.items(), ("manifest.json", canonical_json(manifest))]:
        _keep(store, layout.version_file(model, version, name), content)
    return version


def _keep(store: Store, key: str, content: bytes) -> None:
    try:
        store.create(key, content)
    except Conflict:
        if store.get(key) != content:
            raise Corrupt(f"{key} in {store.address} holds other bytes than its version's; remove it and "
                          f"save again") from None


def manifest(store: Store, model: str, version: str) -> Manifest:
    """What a version was made of; its digest checked."""
    try:
        content = store.get(layout.version_file(model, version, "manifest.json"))
    except NotFound:
        raise NotFound(f"{model}: no version {version[:12]} in {store.address}; see: perennial history "
                       f"{model}") from None
    if sha256(content).hexdigest() != version:
        raise Corrupt(f"{model}: the manifest of {version[:12]} was changed in {store.address}; restore it "
                      f"from a backup")
    facts: Manifest = json.loads(content)
    return facts


def fetch(store: Store, model: str, version: str, folder: Path) -> Path:
    """The version's files in folder/<version>, each digest
    checked; taken from there when they are there already."""
    place, facts = folder / version, manifest(store, model, version)
    if place.is_dir():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        whole = Path(beside) / version
        whole.mkdir()
        for name, digest in facts["files"].items():
            content = store.get(layout.version_file(model, version, name))
            if sha256(content).hexdigest() != digest:
                raise Corrupt(f"{model}: {name} of {version[:12]} was changed in {store.address}; restore it "
                              f"from a backup")
            (whole / name).write_bytes(content)
        (whole / "manifest.json").write_bytes(canonical_json(facts))
        try:
            os.rename(whole, place)
        except OSError:
            if not place.is_dir():  # else another process fetched the same bytes first
                raise
    return place


def resolve(ledger: Ledger, ref: str) -> str:
    """The version that champion, previous, an alias, a number or the start of a digest names."""
    state = ledger.state()
    if ref in ("champion", "previous"):
        named = state.champion if ref == "champion" else state.previous
        if named is None and state.champion:
            raise NoChampion(f"{ledger.model}: no champion was before {state.champion[:12]}, which is the "
                             f"first: there is nothing to go back to")
        if named is None:
            raise NoChampion(f"{ledger.model}: no {ref} in {ledger.store.address}; run: perennial train "
                             f"{ledger.model}")
        return named
    if ref in state.aliases:
        return state.aliases[ref]
    if ref.isdigit() and 1 <= int(ref) <= len(state.versions):
        return state.versions[int(ref) - 1]
    found = [version for version in state.versions if len(ref) >= SHORTEST and version.startswith(ref)]
    if len(found) == 1:
        return found[0]
    known = ", ".join([*state.aliases,
                       *(f"{n} ({version[:12]})" for n, version in enumerate(state.versions, start=1))])
    raise NotFound(f"{ledger.model}: {len(found) or 'no'} versions match {ref!r}; there are: champion, "
                   f"previous, {known}")


def lineage(store: Store, ledger: Ledger, version: str) -> dict[str, Any]:
    """Where a version came from and what became of it: its manifest, and the ledger's events that name it."""
    events = [{"at": event.at, "kind": event.kind, **encode_data(event.data)} for event in ledger.events()
              if version in (getattr(event.data, name, None) for name in ("version", "to", "from_"))]
    return {"version": version, "manifest": manifest(store, ledger.model, version), "events": events}
