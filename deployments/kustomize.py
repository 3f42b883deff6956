"""The image of a model version, by digest, in a kustomization of its own: how a release reaches a cluster."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from contracts.core.errors import PerennialError
from service.atomic_files import write_text

PLACEHOLDER = "perennial-model"  # the image in the base's Deployment, which kustomize replaces
IMAGE = re.compile(r"(?P<name>[^\s@]+)@(?P<digest>sha256:[0-9a-f]{64})")

# A component in a folder of its own: rewriting an overlay's kustomization.yaml would lose its comments.
COMPONENT = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}
HEADER = "# Written by `perennial release`; an overlay names this folder under `components:`.\n"


def set_image(folder: Path, image: str) -> None:
    """Make `folder`/kustomization.yaml name an image, given as `name@sha256:…`; does nothing if it does."""
    parts = IMAGE.fullmatch(image)
    if parts is None:
        raise PerennialError(f"{image!r} has no digest, and a tag may name another image tomorrow; "
                             "give name@sha256:… as `perennial history` shows it")
    if current_image(folder) != image:
        entry = {"name": PLACEHOLDER, "newName": parts["name"], "digest": parts["digest"]}
        write_text(_path(folder), HEADER + yaml.safe_dump(COMPONENT | {"images": [entry]}, sort_keys=False))


def current_image(folder: Path) -> str | None:
    """The image that `folder` names, as `name@sha256:…`; None before the first."""
    images = _component(folder).get("images")
    return f"{images[0]['newName']}@{images[0]['digest']}" if images else None


def _component(folder: Path) -> Mapping[str, Any]:
    path = _path(folder)
    try:
        component: Mapping[str, Any] = yaml.safe_load(path.read_text()) or {} if path.exists() else COMPONENT
        images = [(image["name"], {*image}) for image in component.get("images", ())]
        is_ours = (component.keys() <= {*COMPONENT, "images"} and component.items() >= COMPONENT.items()
                   and images in ([], [(PLACEHOLDER, {"name", "newName", "digest"})]))
    except (yaml.YAMLError, AttributeError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise PerennialError(f"{path} holds more than the image of a version, which would be lost; "
                             "set PERENNIAL_KUSTOMIZATION to a folder of its own, named under `components:`")
    return component


def _path(folder: Path) -> Path:
    return folder / "kustomization.yaml"
