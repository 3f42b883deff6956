"""What replicas of a version start from: its image if images are configured, else its bento."""

from pathlib import Path

from flows.releasing.bento import build_bento
from registry import images, models
from registry.context import ModelContext
from registry.events import Imaged, Released


def ship_image(context: ModelContext, version: str, bento: Path) -> str:
    """Build a version's image, push it and record it; returns its reference by the registry's digest."""
    target, manifest = images.required(), models.manifest(context.store, context.name, version)
    target.repository(context.name)  # raises an error for a bad name before anything is built
    registered = context.ledger.state().registered[version]
    image = images.build(
        target, bento,
        {"org.opencontainers.image.title": context.name, "org.opencontainers.image.version": version,
         "org.opencontainers.image.revision": registered.git or "", "perennial.model": context.name,
         "perennial.version": version, "perennial.bento": f"{context.name}:{bento.name}",
         "perennial.data": manifest["data"]["digest"],
         "perennial.contract": manifest["contract"], "perennial.code": manifest["code"]})
    reference = images.push(target, image, context.name, version[:12])
    context.ledger.record(Imaged(version=version, image=reference), once=("version", "image"))
    return reference


def artifact_of(context: ModelContext, version: str, with_layer: bool = False) -> Path | str:
    """The image of a version that the ledger names, or a new one; without configured images its bento.

    A recalibrated version is served by those of its base, whose replicas follow its layer; `with_layer`: by
    one of its own, for replicas that follow none.
    """
    if not with_layer:
        version = context.ledger.state().base_of(version)
    if not images.configured():
        return build_bento(context, version)
    state = context.ledger.state()
    # Images that have served come last, and so are preferred to those that were only built.
    recorded: list[Imaged | Released] = [*state.of_kind(Imaged), *state.of_kind(Released)]
    images_made = [event.image for event in recorded if event.version == version and event.image]
    return images_made[-1] if images_made else ship_image(context, version, build_bento(context, version))
