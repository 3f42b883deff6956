"""Release to Kubernetes: write the image into a kustomization."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from contracts.core.errors import PerennialError
from deployments import kustomize
from flows.releasing.rollout import RolloutResult
from flows.releasing.rollout_lock import record_release
from registry import images, settings
from registry.context import ModelContext
from registry.events import Released, RolloutFailed


def kustomization_folder() -> Path | None:
    """The folder of PERENNIAL_KUSTOMIZATION; None if it is not set. Raises PerennialError without images."""
    folder = settings.kustomization()
    if folder and not images.configured():
        raise PerennialError(f"PERENNIAL_KUSTOMIZATION is {folder} and PERENNIAL_IMAGES is not set: a "
                             f"cluster runs images; set both")
    return folder


def release_to_kubernetes(context: ModelContext, version: str, image: str, folder: Path,
                          decide: Callable[[str | None], Any] | None = None) -> RolloutResult:
    """Promote a version and write its image into a kustomization; the cluster rolls it out.

    Faults of the file are found before the promotion. After a kill between promotion and file,
    another run or the reconciler's release of the champion writes the file.
    """
    before = context.ledger.state().champion
    kustomize.current_image(folder)
    decide(before) if decide else context.ledger.promote(version, expect=before)
    try:
        kustomize.set_image(folder, image)
    except Exception as error:
        context.ledger.record(RolloutFailed(version=version, why=f"{type(error).__name__}: {error}"))
        if before and before != version:
            context.ledger.roll_back(f"the image was not written: {error}", to=before)
        raise
    record_release(context, Released(version=version, image=image))
    return {"outcome": "released", "version": version, "before": before, "replicas": [image], "canary": None,
            "checked": []}
