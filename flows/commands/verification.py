"""A ledger verified with its progress on the terminal."""

from rich.console import Console
from rich.progress import Progress

from contracts.core.digests import JsonObject
from registry.context import open_ledger
from registry.event_log.verification import Verification, verify
from registry.event_log.verification import repair as write_anew


def verified(model: str, repair: bool) -> Verification:
    """Verify a model's ledger; `repair`: write what can be written anew, and verify once more."""
    ledger = open_ledger(model)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(model)
        found = verify(ledger.store, model, lambda done, of: progress.update(task, completed=done, total=of))
    if repair and any(fault.repair for fault in found.faults):
        found.faults = write_anew(ledger.store, found)
    return found


def present(found: Verification) -> JsonObject:
    """What was found, as JSON values."""
    return {"model": found.model, "events": found.events, "segments": found.segments,
            "snapshots": found.snapshots,
            "faults": [{"key": fault.key, "what": fault.what, "remedy": fault.remedy}
                       for fault in found.faults]}
