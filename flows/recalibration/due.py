"""Whether the champion is to be recalibrated now, and on which labels."""

from datetime import datetime

from msgspec import Struct

from contracts.core.recalibration import is_due
from flows.monitoring.windows import labelled_until
from flows.orchestration.events import RECALIBRATE, emit
from registry import data, models
from registry.context import ModelContext, fetch_version, open_model
from registry.events import CanaryJudged
from registry.state import State


class DueRecalibration(Struct, frozen=True, kw_only=True):
    """A recalibration of `champion`, whose booster is that of `base`, on labels of [`start`, `until`). Those
    of events before `start` are too old, or the booster was trained on them."""

    champion: str
    base: str
    start: datetime
    until: datetime

    @property
    def key(self) -> str:
        """What it is known by in events and runs."""
        return f"{self.base} {self.until.isoformat()}"


class NotDue(Struct, frozen=True):
    """Why there is nothing to recalibrate now."""

    why: str


def due_recalibration(context: ModelContext, by_hand: bool = False) -> DueRecalibration | NotDue:
    """The recalibration that is due, or one that was begun and is not finished; else why there is none.
    `by_hand`: on any labels that are newer than those of the last, however new it is."""
    policy, state = context.contract.recalibration, context.ledger.state()
    champion = state.champion
    if policy is None:
        return NotDue("the contract has no recalibration=Recalibration(…)")
    if champion is None or not data.versions(context.store, context.name):
        return NotDue("no version serves yet")
    if any(claim.is_granted for claim in state.claims.values()):
        return NotDue("a retraining is under way: what serves after it is recalibrated")
    base, until = state.base_of(champion), labelled_until(context)
    trained, begun = trained_until(context, base), _unfinished(state, champion, base)
    since = _last(state, base) or trained
    if begun is None and (until <= since or not (by_hand or is_due(since, until, policy))):
        return NotDue(f"labels are in up to {until}, those up to {since} were used; the next recalibration "
                      f"is due when they are in up to {since + policy.every}")
    if not _is_compatible(context, base):
        return NotDue("the contract has other columns, features or classes than the champion: train again")
    until = begun or until
    return DueRecalibration(champion=champion, base=base, start=max(trained, until - policy.labels),
                            until=until)


def ask_for_recalibration(model: str) -> None:
    """Emit the event that has the champion recalibrated, if that is due."""
    due = due_recalibration(open_model(model))
    if isinstance(due, DueRecalibration):
        emit(model, RECALIBRATE, due.key, {"until": due.until.isoformat()})


def trained_until(context: ModelContext, base: str) -> datetime:
    """The event time before which a version was trained on what happened."""
    source = data.DataVersion.from_json(models.manifest(context.store, context.name, base)["data"])
    return source.complete_until(context.contract.schedule.stale_after)


def _last(state: State, base: str) -> datetime | None:
    """Until when the labels are in of the last recalibration of a version."""
    last = max((layer.until for layer in state.layers.values() if layer.base == base), default=None)
    return datetime.fromisoformat(last) if last else None


def _unfinished(state: State, champion: str, base: str) -> datetime | None:
    """Until when the labels are in of a recalibration that has no verdict yet, or passed and is not champion,
    as its run was killed."""
    of_base = [version for version, layer in state.layers.items() if layer.base == base]
    version = of_base[-1] if of_base else None
    if version is None or version in state.promoted:
        return None
    judged = state.last_judged(version)
    refused = any(canary.version == version and not canary.verdict.passed
                  for canary in state.of_kind(CanaryJudged))
    is_open = judged is None or (judged.against == champion and judged.verdict.passed and not refused)
    return datetime.fromisoformat(state.layers[version].until) if is_open else None


def _is_compatible(context: ModelContext, base: str) -> bool:
    from service.model import is_compatible  # imported here: XGBoost is slow

    return is_compatible(context.contract, fetch_version(context, base))
