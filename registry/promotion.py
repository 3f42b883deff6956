"""Which version may become champion, and to which a rollback returns: the
event that each decision appends to the ledger, as pure functions of the state."""

from contracts.core.errors import Conflict, NotAllowed, NotFound
from contracts.core.gate_verdict import GateVerdict
from contracts.core.verdict import Outcome
from registry.events import Judged, Promoted, Registered, RolledBack
from registry.state import State


def registration(state: State, data: Registered) -> Registered | None:
    """The event of a new version; None if it is known, or of two recalibrations of one version on labels up
    to the same time another came first."""
    layer = data.layer
    is_second = layer and any((other.base, other.until) == (layer.base, layer.until)
                              for other in state.layers.values())
    return None if is_second or data.version in state.registered else data


def judgement(state: State, version: str, verdict: GateVerdict, against: str | None,
              data: str) -> Judged | None:
    """The event of a gate's verdict; None if the last one has the same outcome against the same champion."""
    last = state.last_judged(version)
    if last and (last.against, last.verdict.outcome) == (against, verdict.outcome):
        return None
    return Judged(version=version, against=against, verdict=verdict, data=data)


def promotion(state: State, model: str, version: str, expect: str | None) -> Promoted | None:
    """The event that promotes a version in place of `expect`; None if
    it is champion already. Raises NotAllowed or Conflict."""
    if state.champion == version:
        return None
    if state.champion is None and expect:
        raise Conflict(f"{model}: {version[:12]} was not promoted in place of {expect[:12]}: there is no "
                       f"champion; run: perennial train {model}")
    if state.champion is not None and state.champion != expect:
        winner = state.promoted[state.champion]
        raise Conflict(f"{model}: {version[:12]} was not promoted: {state.champion[:12]} was, by {winner.by} "
                       f"at {winner.at}; judge it against that one: perennial train {model}")
    must_be_allowed(state, model, version)
    if version in state.layers and any(claim.is_granted for claim in state.claims.values()):
        raise Conflict(f"{model}: {version[:12]} is recalibrated and was not promoted: a retraining is under "
                       f"way, whose challenger is judged against the present champion; what serves then is "
                       f"recalibrated in turn")
    return Promoted(version=version, before=expect)


def must_be_allowed(state: State, model: str, version: str) -> None:
    """Raise NotAllowed unless the version is champion or
    its last verdict lets it take the champion's place."""
    if version == state.champion:
        return
    last = state.last_judged(version)
    if last is None or last.verdict.outcome is not Outcome.PASSED:
        outcome = last.verdict.outcome if last else "missing"
        raise NotAllowed(f"{model}: the gate's verdict on {version[:12]} is {outcome}; run: perennial train "
                         f"{model}")
    if last.against != state.champion:
        raise NotAllowed(f"{model}: the gate's verdict on {version[:12]} is against "
                         f"{(last.against or 'no champion')[:12]}, and the champion is "
                         f"{(state.champion or 'none')[:12]} by now; run: perennial train {model}")


def rollback(state: State, model: str, reason: str, to: str | None) -> RolledBack | None:
    """The event of a rollback to an earlier champion, by default the
    one before; None if that one is champion. Raises NotFound."""
    target = to or state.previous
    if target is None or target not in state.promoted:
        raise NotFound(f"{model}: {(to or 'no version')[:12]} was never champion before; see: perennial "
                       f"history {model}")
    if target == state.champion:
        return None
    return RolledBack(from_=state.champion, to=target, reason=reason)
