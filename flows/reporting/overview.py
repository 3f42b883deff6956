"""What `perennial status` shows of all models: what comes next, is under way, and waits for what."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypedDict

from rich.table import Table

from contracts.core.retraining import Claim, ClaimState
from contracts.core.verdict import Outcome
from flows.monitoring.gate_alerts import champion_limits
from registry import data
from registry.context import ModelContext, open_model
from registry.state import State


class Overview(TypedDict):
    """A model in a few lines. Times are event times; None where there is none. `fault`: why the model can't
    be read; then nothing else is known."""

    model: str
    champion: str | None
    next_look: str | None
    newest_row: str | None
    labels_until: str | None
    last_window: str | None
    under_way: list[str]
    waits: list[str]
    alerts: list[str]
    broken_limits: list[str]
    fault: str | None


def overview(models: Sequence[str]) -> list[Overview]:
    """Each model; one that can't be read is told, and holds up no other."""
    return [_overview(model) for model in models]


def _overview(model: str) -> Overview:
    row: Overview = {"model": model, "champion": None, "next_look": None, "newest_row": None,
                     "labels_until": None, "last_window": None, "under_way": [], "waits": [], "alerts": [],
                     "broken_limits": [], "fault": None}
    try:
        row.update(_facts(open_model(model)))  # type: ignore[typeddict-item]  # the same keys
    except Exception as error:  # of the contract's author, the store, the ledger
        row["fault"] = f"{type(error).__name__}: {error}"
    return row


def _facts(context: ModelContext) -> dict[str, object]:
    from flows.orchestration.recurrence import next_look  # imported here: Prefect is slow to import

    state, known = context.ledger.state(), data.versions(context.store, context.name)
    look, windows = next_look(context), sorted(state.windows.items())
    limits = champion_limits(context.contract, state)
    until = known[-1].complete_until(context.contract.schedule.stale_after) if known else None
    return {"champion": state.champion, "next_look": look and look.isoformat(),
            "newest_row": known[-1].newest if known else None, "labels_until": until and until.isoformat(),
            "last_window": f"{windows[-1][0]}: {windows[-1][1].verdict.kind}" if windows else None,
            "under_way": [_under_way(claim) for claim in state.claims.values() if claim.is_granted],
            "waits": [*_unfinished_windows(context, until), *_unjudged(state),
                      *_refused(list(state.claims.values()))],
            "broken_limits": [str(limit) for limit in limits.broken] if limits else [],
            "alerts": [f"{alert.kind} since {alert.since}: {alert.response}" for alert in state.open_alerts]}


def _under_way(claim: Claim) -> str:
    since = f"{claim.at:%Y-%m-%d %H:%M} UTC" if claim.at else "?"
    doing = f"run {claim.run[:8]} works on it" if claim.run else "no run has begun"
    failed = f", {claim.failures} failed before" if claim.failures else ""
    return f"retraining for {claim.key} ({claim.reason[:60]}): {doing} since {since}{failed}"


def _unfinished_windows(context: ModelContext, until: datetime | None) -> list[str]:
    """What holds up the judgement of the newest windows."""
    insufficient = [f"window {key}: more traffic or labels" for key, judged
                    in sorted(context.ledger.state().windows.items())[-1:]
                    if judged.verdict.outcome is Outcome.INSUFFICIENT]
    if until is None:
        return ["the first data"]
    start, end = context.contract.window_of(until)
    matured = end + context.contract.label.matures
    return [*insufficient, f"window {start.isoformat()}: labels, which mature at {matured.isoformat()}"]


def _unjudged(state: State) -> list[str]:
    """What the gate lacks to judge the last challenger."""
    versions = [*state.unjudged.values()][-1:]
    return [f"gate, of {judged.version[:12]}: {reason}" for version in versions
            if (judged := state.last_judged(version)) for reason in judged.verdict.reasons]


def _refused(claims: list[Claim]) -> list[str]:
    """The last retraining that was asked for and may not start yet."""
    return [f"retraining for {claim.key}: {claim.why}" for claim in claims[-1:]
            if claim.state is ClaimState.REFUSED]


def overview_table(row: Overview, now: datetime | None) -> Table:
    """A model for a terminal; `now`: its present moment, for ages."""
    table = Table(show_header=False, title=row["model"], title_justify="left", min_width=60)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    if row["fault"]:
        table.add_row("can't be read", row["fault"], style="red")
        return table
    champion = (row["champion"] or "none yet")[:12]
    breaks = "".join(f"\nbreaks a limit: {limit}" for limit in row["broken_limits"])
    shown = {"champion": f"{champion}{breaks}",
             "next look for data": row["next_look"] or "by hand",
             "newest row": _with_age(row["newest_row"], now), "last window": row["last_window"] or "none",
             "under way": "\n".join(row["under_way"]) or "nothing",
             "waits for": "\n".join(row["waits"]) or "nothing",
             "alerts": "\n".join(row["alerts"]) or "none open"}
    for name, value in shown.items():
        table.add_row(name, value)
    return table


def _with_age(time: str | None, now: datetime | None) -> str:
    if time is None:
        return "none"
    age = now - datetime.fromisoformat(time) if now else None
    return f"{time} ({timedelta(days=age.days, seconds=age.seconds)} ago)" if age else time


def present(row: Overview) -> datetime | None:
    """A model's now, as its event times are written; None if it can't be read."""
    return None if row["fault"] else open_model(row["model"]).now()
