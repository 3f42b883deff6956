"""Alerts about the gate: a champion that breaks its limits, and a gate that can't judge any more."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from contracts.core.contract import Contract
from contracts.core.limits import broken_limits
from contracts.core.metrics import BrokenLimit, Metrics
from registry.alerts import Alert
from registry.context import ModelContext
from registry.events import AlertOver, AlertRaised
from registry.state import State

RECENT = 26  # windows, and verdicts, that are looked through for the champion's metrics
STALLED_AFTER = 3  # windows in a row for which the gate had too little to judge by


class GateFault(StrEnum):
    """What a person is told of, once, and once more when it is over."""

    BREAKS_LIMITS = "champion breaks limits"
    STALLED = "gate stalled"


@dataclass(frozen=True)
class ChampionLimits:
    """The absolute limits of the gate that the champion breaks on its newest labels; `since`: the event time
    from which on these rows happened."""

    since: str
    broken: list[BrokenLimit]

    def __str__(self) -> str:
        return "; ".join(str(limit) for limit in self.broken)


def champion_limits(contract: Contract, state: State) -> ChampionLimits | None:
    """What the newest window says, or the gate's newest verdict on a challenger, if its rows are newer; None
    while neither had enough labels."""
    known = [newest for evidence in (_of_windows(state), _of_verdicts(state))
             if (newest := next((one for one in evidence if one[1].rows >= contract.gate.min_rows), None))]
    if not known:
        return None
    since, metrics = max(known, key=lambda item: item[0])
    return ChampionLimits(since, broken_limits(contract, metrics))


def _of_windows(state: State) -> Iterator[tuple[str, Metrics]]:
    """The champion's metrics on the last windows that it answered, and their starts, the newest first."""
    for window in sorted(state.windows, reverse=True)[:RECENT]:
        figures = state.windows[window].verdict.figures
        if figures.metrics and figures.version == state.champion:
            yield window, figures.metrics


def _of_verdicts(state: State) -> Iterator[tuple[str, Metrics]]:
    """The champion's metrics in the gate's last verdicts on challengers, and since when their rows are, the
    newest first."""
    for number in [*reversed([*state.judged])][:RECENT]:
        judged = state.judged[number]
        figures = judged.verdict.figures
        if figures.champion and figures.since and judged.against == state.champion:
            yield figures.since, figures.champion


def record_gate_alerts(context: ModelContext) -> None:
    """Record the alerts about the gate, and those that are over."""
    while context.ledger.decide(lambda state: _ended_alert(context, state) or _new_alert(context, state)):
        pass


def _new_alert(context: ModelContext, state: State) -> AlertRaised | None:
    limits = champion_limits(context.contract, state)
    if limits and limits.broken and not _is_told(state, GateFault.BREAKS_LIMITS, limits.since):
        return _alert(GateFault.BREAKS_LIMITS, limits.since, limits.since, state.champion or "",
                      f"the champion breaks limits of the gate: {limits}",
                      f"nothing retrains for this alone: look at perennial status {context.name}, then run: "
                      f"perennial train {context.name}; or set limits that a sound model keeps")
    window, version = next(reversed(state.unjudged.items()), ("", ""))
    if len(state.unjudged) >= STALLED_AFTER and not _is_told(state, GateFault.STALLED, window):
        return _alert(GateFault.STALLED, window, next(iter(state.unjudged)), version,
                      "; ".join(judged.verdict.reasons) if (judged := state.last_judged(version)) else "",
                      f"no challenger can take over, as the gate had too little to judge by in "
                      f"{len(state.unjudged)} windows in a row: wait for what is named, or change the "
                      f"contract's gate")
    return None


def _alert(kind: GateFault, window: str, since: str, version: str, message: str,
           response: str) -> AlertRaised:
    return AlertRaised(key=f"{kind} {window}", kind=kind, window=window, since=since, message=message,
                       drift_scores={}, version=version, response=response)


def _is_told(state: State, kind: GateFault, window: str) -> bool:
    """Whether such an alert is open, was raised for this window, or has ended with a later one."""
    return any(alert.ended_by is None or alert.window == window or alert.ended_by > window
               for alert in state.alerts.values() if alert.kind == kind)


def _ended_alert(context: ModelContext, state: State) -> AlertOver | None:
    for alert in state.open_alerts:
        over = _over(context, state, alert)
        if over:
            ended_by, ended = over
            return AlertOver(key=alert.key, ended_by=ended_by, ended=ended)
    return None


def _over(context: ModelContext, state: State, alert: Alert) -> tuple[str, str] | None:
    """What ended an alert about the gate: the start of its window, and a sentence; None while it goes on."""
    if alert.kind == GateFault.STALLED and not state.unjudged:
        return alert.window, "the gate has judged a challenger"
    if alert.kind != GateFault.BREAKS_LIMITS:
        return None
    if alert.version != state.champion:
        return alert.window, "another version is champion"
    limits = champion_limits(context.contract, state)
    if limits is None or limits.broken or limits.since < alert.window:
        return None
    return limits.since, f"the champion keeps all limits on the rows from {limits.since} on"
