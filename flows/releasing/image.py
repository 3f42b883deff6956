"""The image of a version: built and pushed if images are configured, its bento otherwise."""

from pathlib import Path

from flows.releasing.bento import build_bento
from registry import images, models
from registry.context import ModelContext


def ship_image(memory: ModelContext, version: str, bento: Path) -> str:
    """Build a version's image and push it; its reference by the registry's digest, which the ledger keeps."""
    where, facts = images.configured(), models.manifest(memory.store, memory.name, version)
    where.repository(memory.name)  # refuses a name before anything is built
    [registered] = [event for event in memory.ledger.events() if event.kind == "registered" and event.data["version"] == version]
    image = images.build(where, bento, {
        "org.opencontainers.image.title": memory.name, "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": registered.data["git"] or "",
        "perennial.model": memory.name, "perennial.version": version, "perennial.bento": f"{memory.name}:{bento.name}",
        "perennial.data": facts["data"]["digest"], "perennial.contract": facts["contract"], "perennial.code": facts["code"]})
    reference = images.push(where, image, memory.name, version[:12])
    memory.ledger.record("imaged", {"version": version, "image": reference}, once=("version", "image"))
    return reference


def artifact_of(memory: ModelContext, version: str) -> Path | str:
    """What replicas of a version start from: the image that the ledger names, or where no images are made its bento."""
    if not images.configured():
        return build_bento(memory, version)
    recorded = memory.ledger.state().recorded  # an image that has served comes before one that was only made
    known = [each["image"] for kind in ("imaged", "released") for each in recorded.get(kind, ())
             if each["version"] == version and each.get("image")]
    return known[-1] if known else ship_image(memory, version, build_bento(memory, version))
