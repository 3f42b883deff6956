"""The layer that running replicas follow, as the ledger's champion has it: from the store to their folder."""

import msgspec

from contracts.core.binning import REFERENCE_FILE
from contracts.core.calibration import CALIBRATION_FILE, Calibration
from contracts.core.classification import is_output
from contracts.core.reference import decode_references
from registry import models
from registry.context import ModelContext
from service.layers import ServedLayer, write_layer


def publish_layer(context: ModelContext, version: str) -> None:
    """Have the replicas that share this machine's spool, and have the version's booster, answer as it."""
    write_layer(context.spool, context.name, served_layer(context, version))


def publish_champion(context: ModelContext) -> None:
    """The same with the champion, if there is one: for a sidecar, where no release reaches the folder."""
    champion = context.ledger.state().champion
    if champion:
        publish_layer(context, champion)


def served_layer(context: ModelContext, version: str) -> ServedLayer:
    """What replicas of its base need to answer as a version."""
    manifest = models.manifest(context.store, context.name, version)
    told = dict(manifest) | {"version": version, "module": context.contract.module}
    if "layer" not in manifest:
        return ServedLayer(base=version, version=version, manifest=told)
    references, layer = (models.read_file(context.store, context.name, version, name)
                         for name in (REFERENCE_FILE, CALIBRATION_FILE))
    bins = {name: reference.bins.as_json() for name, reference in decode_references(references).items()
            if is_output(name)}
    return ServedLayer(base=manifest["layer"]["base"], version=version, manifest=told, output_bins=bins,
                       calibration=msgspec.json.decode(layer, type=Calibration))
