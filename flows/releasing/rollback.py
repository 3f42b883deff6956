"""Roll back to an earlier version: what the ledger says, and what callers get."""

from deployments import routes
from flows.releasing.image import artifact_of
from flows.releasing.kubernetes import kustomization_folder, release_to_kubernetes
from flows.releasing.rollout import roll_out_version
from registry import models
from registry.context import open_model


def roll_back(model: str, to: str, reason: str) -> dict[str, str]:
    """Make an earlier version champion; its replicas are started first if this machine serves the model."""
    context = open_model(model)
    before, target = models.resolve(context.ledger, "champion"), models.resolve(context.ledger, to)

    def decide(_: str | None = None) -> None:
        context.ledger.roll_back(reason, to=target)

    if folder := kustomization_folder():
        release_to_kubernetes(context, target, str(artifact_of(context, target)), folder, decide)
    elif routes.champion_urls(context.run, context.name):
        roll_out_version(context, target, artifact_of(context, target), decide)
    else:
        decide()
    return {"from": before, "to": target, "reason": reason}
