"""The image of a version: built and pushed if images are configured, its bento otherwise."""

from pathlib import Path

from flows.releasing.bento import build_bento
from registry import images, models
from registry.context import ModelContext
from registry.events import Imaged, Registered, Released


def ship_image(context: ModelContext, version: str, bento: Path) -> str:
    """Build a version's image and push it; its reference by the registry's digest, which the ledger keeps."""
    where, facts = images.required(), models.manifest(context.store, context.name, version)
    where.repository(context.name)  # refuses a name before anything is built
    [registered] = [event.data for event in context.ledger.events()
                    if isinstance(event.data, Registered) and event.data.version == version]
    image = images.build(
        where, bento,
        {"org.opencontainers.image.title": context.name, "org.opencontainers.image.version": version,
         "org.opencontainers.image.revision": registered.git or "", "perennial.model": context.name,
         "perennial.version": version, "perennial.bento": f"{context.name}:{bento.name}",
         "perennial.data": facts["data"]["digest"], "perennial.contract": facts["contract"],
         "perennial.code": facts["code"]})
    reference = images.push(where, image, context.name, version[:12])
    context.ledger.record(Imaged(version=version, image=reference), once=("version", "image"))
    return reference


def artifact_of(context: ModelContext, version: str) -> Path | str:
    """What replicas of a version start from: the image that
    the ledger names, or where no images are made its bento."""
    if not images.configured():
        return build_bento(context, version)
    state = context.ledger.state()
    # One that has served comes before one that was only made.
    recorded: list[Imaged | Released] = [*state.of_kind(Imaged), *state.of_kind(Released)]
    images_made = [event.image for event in recorded if event.version == version and event.image]
    return images_made[-1] if images_made else ship_image(context, version, build_bento(context, version))
