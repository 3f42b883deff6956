"""What a retraining that was asked for has come to, after each event about it."""

from collections.abc import Mapping
from datetime import datetime

from msgspec.structs import replace

from contracts.core.retraining import Claim, ClaimState
from registry import events


def claim_after(claims: Mapping[str, Claim],
                data: events.RetrainClaimed | events.RetrainRefused | events.RetrainStarted
                | events.RetrainFailed | events.RetrainFinished, at: datetime) -> Claim:
    """A retraining after one more event about it; `claims`: all before it, by their windows."""
    match data:
        case events.RetrainClaimed():
            return Claim(key=data.key, state=ClaimState.CLAIMED, now=data.now, reason=data.reason, at=at)
        case events.RetrainRefused():
            return Claim(key=data.key, state=ClaimState.REFUSED, now=data.now, reason=data.reason, at=at,
                         why=data.why, rule=data.rule)
    known = claims.get(data.key) or Claim(key=data.key, state=ClaimState.CLAIMED)
    if isinstance(data, events.RetrainStarted):
        return replace(known, run=data.run, at=at)
    if isinstance(data, events.RetrainFailed):
        return replace(known, failures=data.failures, run=None, why=data.why, at=at)
    return replace(known, run=None, state=ClaimState.FINISHED, outcome=data.outcome, version=data.version,
                   why=data.why or known.why)
