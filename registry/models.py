"""Model versions in the store: save, fetch and verify their files, and resolve their names."""

import json
import os
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import NotRequired, TypedDict

from contracts.core.digests import JsonObject, canonical_json, digest_of
from contracts.core.errors import Conflict, Corrupt, NoChampion, NotFound
from registry import layout
from registry.events import encode_data
from registry.ledger import Ledger
from registry.store import Store

# Of a manifest: raise it with a change that an older reader can't follow, and go on reading older ones.
FORMAT = 1
MIN_PREFIX = 6  # characters of a digest that name a version


class TrainingMetrics(TypedDict):
    """Boosting rounds, the log loss on the `stop_rows` that early stopping
    held out, and the twin's `Metrics` on the newest window."""

    rounds: int
    stop_log_loss: float
    stop_rows: int
    newest_window: JsonObject


class LayerOrigin(TypedDict):
    """What a recalibrated version was made from: the layer on the booster of `base` was fitted to `rows`
    labelled events of [`start`, `until`), as the data version `data` and the labels sent by id (`labels`)
    have them, when `before` was champion. `policy`: the contract's settings."""

    base: str
    before: str
    start: str
    until: str
    rows: int
    data: str
    labels: str
    bias: list[float]
    temperature: float
    policy: JsonObject


class Manifest(TypedDict):
    """What a version was made from. `twin_rows`: training rows of the model that
    the gate judged; `judged_from`: the event time from which on it had seen none;
    `code`: the digest of the code that trains and serves; `files`: each file's sha256. A recalibrated version
    has a `layer`; all else, but its files, is that of the version whose booster it has."""

    model: str
    contract: str
    classes: list[str]
    features: list[str]
    data: JsonObject
    rows: int
    twin_rows: int
    judged_from: str
    metrics: TrainingMetrics
    seed: int
    code: str
    packages: dict[str, str]
    workers: NotRequired[int]
    challenger: NotRequired[JsonObject]
    layer: NotRequired[LayerOrigin]
    format: NotRequired[int]
    files: NotRequired[dict[str, str]]


def save(store: Store, model: str, files: dict[str, bytes], manifest: Manifest) -> str:
    """Store a version's files and, last, its manifest; returns the version: the manifest's digest.

    The same files and manifest saved again are the same version.
    """
    manifest = manifest | {"format": FORMAT,
                           "files": {name: sha256(files[name]).hexdigest() for name in sorted(files)}}
    version = digest_of(manifest)
    for name, content in [*files.items(), ("manifest.json", canonical_json(manifest))]:
        _create_or_compare(store, layout.version_file(model, version, name), content)
    return version


def _create_or_compare(store: Store, key: str, content: bytes) -> None:
    try:
        store.create(key, content)
    except Conflict:
        if store.get(key) != content:
            raise Corrupt(f"{key} in {store.address} holds other bytes than its version's; remove it and "
                          f"save again") from None


def manifest(store: Store, model: str, version: str) -> Manifest:
    """A version's manifest, its digest checked."""
    try:
        content = store.get(layout.version_file(model, version, "manifest.json"))
    except NotFound:
        raise NotFound(f"{model}: no version {version[:12]} in {store.address}; see: perennial history "
                       f"{model}") from None
    if sha256(content).hexdigest() != version:
        raise Corrupt(f"{model}: the manifest of {version[:12]} was changed in {store.address}; restore it "
                      f"from a backup")
    manifest_: Manifest = json.loads(content)
    return manifest_


def read_file(store: Store, model: str, version: str, name: str) -> bytes:
    """One of a version's files, its digest checked."""
    return _checked_file(store, model, version, name, manifest(store, model, version)["files"][name])


def _checked_file(store: Store, model: str, version: str, name: str, digest: str) -> bytes:
    content = store.get(layout.version_file(model, version, name))
    if sha256(content).hexdigest() != digest:
        raise Corrupt(f"{model}: {name} of {version[:12]} was changed in {store.address}; restore it from a "
                      f"backup")
    return content


def fetch(store: Store, model: str, version: str, folder: Path) -> Path:
    """Copy a version's files to folder/<version>, each digest checked, unless they are there already."""
    target, manifest_ = folder / version, manifest(store, model, version)
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        partial = Path(temporary) / version
        partial.mkdir()
        for name, digest in manifest_["files"].items():
            if Path(name).name != name:
                raise Corrupt(f"{model}: the manifest of {version[:12]} names {name!r}, which is a path; "
                              f"restore it from a backup")
            (partial / name).write_bytes(_checked_file(store, model, version, name, digest))
        (partial / "manifest.json").write_bytes(canonical_json(manifest_))
        try:
            os.rename(partial, target)
        except OSError:
            if not target.is_dir():  # if it is, another process fetched the same bytes first
                raise
    return target


def resolve(ledger: Ledger, ref: str) -> str:
    """The version that `ref` names: champion, previous, an alias, a number, or the start of a digest."""
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
    matches = [version for version in state.versions if len(ref) >= MIN_PREFIX and version.startswith(ref)]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join([*state.aliases,
                       *(f"{n} ({version[:12]})" for n, version in enumerate(state.versions, start=1))])
    raise NotFound(f"{ledger.model}: {len(matches) or 'no'} versions match {ref!r}; there are: champion, "
                   f"previous, {known}")


def lineage(store: Store, ledger: Ledger, version: str) -> JsonObject:
    """A version's manifest, and the ledger's events that name it."""
    events = [{"at": event.at, "kind": event.kind, **encode_data(event.data)}
              for event in ledger.events_with(version)
              if version in (getattr(event.data, name, None) for name in ("version", "to", "from_"))]
    return {"version": version, "manifest": manifest(store, ledger.model, version), "events": events}
