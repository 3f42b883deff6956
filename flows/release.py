"""The flow that releases a version that passed the gate."""

from pathlib import Path

from prefect import flow, task

from flows.releasing.bento import build_bento
from flows.releasing.image import ship_image
from flows.releasing.kubernetes import kustomization_folder, release_to_kubernetes
from flows.releasing.rollout import RolloutResult, roll_out_version
from flows.reporting.artifacts import show_release, tag_run
from registry import images, models
from registry.context import open_model


@flow(name="release", flow_run_name="{model} {version:.12}")
def release(model: str, version: str = "champion") -> RolloutResult:
    """Release a version that passed the gate, or the champion again."""
    tag_run(model)
    return release_version(model, models.resolve(open_model(model).ledger, version))


def release_version(model: str, version: str) -> RolloutResult:
    """Build and roll out a version; the outcome is "released", or "refused" by the canary.
    Raises NotAllowed, before anything is built, if the gate did not pass it."""
    open_model(model).ledger.must_allow(version)
    bento = bento_of(model, version)
    image = image_of(model, version, bento) if images.configured() else None
    released = roll_out(model, version, bento, image)
    show_release(model, version, released)
    return released


@task(task_run_name="bento {model} {version:.12}")
def bento_of(model: str, version: str) -> str:
    return str(build_bento(open_model(model), version))


@task(task_run_name="image {model} {version:.12}")
def image_of(model: str, version: str, bento: str) -> str:
    return ship_image(open_model(model), version, Path(bento))


@task(task_run_name="roll out {model} {version:.12}")
def roll_out(model: str, version: str, bento: str, image: str | None) -> RolloutResult:
    context, folder = open_model(model), kustomization_folder()
    if folder and image:
        return release_to_kubernetes(context, version, image, folder)
    return roll_out_version(context, version, image or Path(bento))
