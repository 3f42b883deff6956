"""TODO"""

import re
from pathlib import Path
from typing import Any

import yaml

from contracts.core.errors import NotPointed
from service.files import write_text

NAME = "perennial-model"  # in the base's Deployment, where kustomize puts the image of a version
BY_DIGEST = re.compile(r"(?P<name>[^\s@]+)@(?P<digest>sha256:[0-9a-f]{64})")

# A folder of its own, not an overlay's kustomization.yaml: what a program writes whole holds no person's comments.
HEAD = "# Written by `perennial release`; a component, so an overlay names its folder under `components:`.\n"
KIND = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}


def point_to(folder: Path, image: str) -> None:
    """Make `folder`/kustomization.yaml name an image, given as `name@sha256:…`; to repeat it changes nothing."""
    found = BY_DIGEST.fullmatch(image)
    if found is None:
        raise NotPointed(f"{image!r} has no digest, and a tag may name another image tomorrow; give name@sha256:… "
                         f"as `perennial history` shows it")
    if pointed_to(folder) != image:
        entry = {"name": NAME, "newName": found["name"], "digest": found["digest"]}
        write_text(_file(folder), HEAD + yaml.safe_dump(KIND | {"images": [entry]}, sort_keys=False))


def pointed_to(folder: Path) -> str | None:
    """The image that `folder` names, as `name@sha256:…`; None before the first."""
    entries = _held(folder).get("images")
    return f"{entries[0]['newName']}@{entries[0]['digest']}" if entries else None


def _held(folder: Path) -> dict[str, Any]:
    file = _file(folder)
    try:
        held = (yaml.safe_load(file.read_text()) or {}) if file.exists() else KIND
        ours = held.keys() <= {*KIND, "images"} and held.items() >= KIND.items()
        ours &= [(entry["name"], {*entry}) for entry in held.get("images", ())] in ([], [(NAME, {"name", "newName", "digest"})])
    except (yaml.YAMLError, AttributeError, TypeError, KeyError):
        ours = False
    if not ours:
        raise NotPointed(f"{file} holds more than the image of a version, which would be lost; set "
                         f"PERENNIAL_KUSTOMIZATION to a folder of its own and name that under your `components:`")
    return held


def _file(folder: Path) -> Path:
    return folder / "kustomization.yaml"
