"""The flow that releases a version that passed the gate."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from prefect import Task, flow, task
from prefect.cache_policies import NO_CACHE

from flows.monitoring.faults import RunFault, tell_of_failure, tell_of_success
from flows.orchestration.events import begin_run, run_name
from flows.orchestration.steps import RETRIED
from flows.releasing.bento import build_bento
from flows.releasing.image import ship_image
from flows.releasing.kubernetes import kustomization_folder, release_to_kubernetes
from flows.releasing.rollout import RolloutResult, roll_out_version
from flows.reporting.artifacts import show_release
from registry import images, models
from registry.context import open_model

PACKAGE_TIMEOUT, PUSH_TIMEOUT = 600, 1800  # seconds for building a bento, for building and pushing an image
TIME_LIMIT = timedelta(hours=4)  # more than all steps and the canary take, with their retries
T = TypeVar("T")


@flow(name="release", flow_run_name=run_name)
def release(model: str, version: str = "champion", cause: str | None = None) -> RolloutResult:
    """Build and roll out a version that passed the gate, or the champion again; the outcome is "released", or
    "refused" by the canary. Raises NotAllowed, before anything is built, if the gate did not pass it.
    `cause`: what started this run, for its page in Prefect."""
    begin_run(model, cause)
    version = allowed(model, version)
    packed = open_model(model).ledger.state().base_of(version)  # a layer reaches replicas without a package
    bento = package(model, packed)
    image = push(model, packed, bento) if images.configured() else None
    released = roll_out(model, version, bento, image)
    show_release(model, version, released)
    return released


release.on_failure(tell_of_failure(RunFault.RELEASE))
release.on_completion(tell_of_success(RunFault.RELEASE))


def allowed(model: str, version: str) -> str:
    """The digest of a version that may serve."""
    ledger = open_model(model).ledger
    digest = models.resolve(ledger, version)
    ledger.must_allow(digest)
    return digest


@task(task_run_name="package {model} {version:.12}", timeout_seconds=PACKAGE_TIMEOUT, **RETRIED)
def package(model: str, version: str) -> str:
    """The bento's folder; it is built once."""
    return str(build_bento(open_model(model), version))


@task(task_run_name="push {model} {version:.12}", timeout_seconds=PUSH_TIMEOUT, **RETRIED)
def push(model: str, version: str, bento: str) -> str:
    """The image's reference by its digest in the container registry."""
    return ship_image(open_model(model), version, Path(bento))


def roll_out(model: str, version: str, bento: str, image: str | None) -> RolloutResult:
    """Have replicas start, prove themselves in a canary and take over the traffic, each step a task."""
    context, folder = open_model(model), kustomization_folder()
    if folder and image:
        return as_task(model, version, "promote",
                       lambda: release_to_kubernetes(context, version, image, folder))
    return roll_out_version(context, version, image or Path(bento), step=partial(as_task, model, version))


def as_task(model: str, version: str, name: str, work: Callable[[], T]) -> T:
    step: Task[[], T] = Task(work, name=name, task_run_name=f"{name} {model} {version:.12}",
                             cache_policy=NO_CACHE)
    return step()
