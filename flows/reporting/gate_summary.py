"""What `perennial status` and `history` say of the gate: its last verdict, and the limits that the champion
breaks."""

from collections import Counter

from msgspec import convert

from contracts.core.digests import JsonObject
from contracts.core.gate_verdict import GateVerdict
from contracts.core.verdict import CheckOutcome, as_json
from flows.monitoring.gate_alerts import champion_limits
from registry.context import ModelContext
from registry.state import State


def not_run(verdict: GateVerdict) -> list[str]:
    """The checks that were not run, those with the same cause together, with the cause where no reason of the
    verdict says it."""
    names: dict[str, list[str]] = {}
    for check in verdict.figures.checks:
        if check.outcome is CheckOutcome.NOT_RUN:
            names.setdefault(check.why, []).append(check.name)
    return [f"not run: {', '.join(checks)}" + ("" if why in verdict.reasons else f" ({why})")
            for why, checks in names.items()]


def last_verdict(state: State) -> tuple[str, GateVerdict] | None:
    """The version that was judged last, and the gate's verdict on it."""
    number = next(reversed([*state.judged]), None)
    return (state.judged[number].version, state.judged[number].verdict) if number else None


def gate_facts(context: ModelContext, state: State) -> JsonObject:
    """As JSON: the gate's last verdict, and the limits that the champion breaks on its newest labels."""
    last, limits = last_verdict(state), champion_limits(context.contract, state)
    return {"last_gate": {"version": last[0], "verdict": as_json(last[1])} if last else None,
            "champion_limits": limits and {"since": limits.since,
                                           "broken": [as_json(limit) for limit in limits.broken]},
            "limits": limits_line(context, state)}


def gate_lines(last_gate: JsonObject | None) -> list[str]:
    """The last verdict for people: how many checks came to what, the reasons, and what was not run."""
    if last_gate is None:
        return ["none judged"]
    version, verdict = last_gate["version"], convert(last_gate["verdict"], GateVerdict)
    counts = Counter(check.outcome for check in verdict.figures.checks)
    checks = ", ".join(f"{counts[outcome]} {outcome}" for outcome in CheckOutcome if counts[outcome])
    return [f"{version[:12]}: {verdict.outcome}" + (f"; checks: {checks}" if checks else ""),
            *verdict.reasons, *not_run(verdict)]


def limits_line(context: ModelContext, state: State) -> str:
    """Whether the champion keeps the gate's limits, by its newest labels, or else by its own verdict."""
    limits = champion_limits(context.contract, state)
    if limits:
        return f"on the rows from {limits.since} on the champion " + (
            f"breaks: {limits}" if limits.broken else "keeps all limits of the gate")
    if not state.champion:
        return "no champion"
    own = state.last_judged(state.champion)
    checks = own.verdict.figures.checks if own else []
    forgiven = [check.why for check in checks if check.outcome is CheckOutcome.PASSED and check.why]
    if forgiven:
        return f"the champion took over with: {'; '.join(forgiven)}"
    return f"not known: {context.contract.gate.min_rows} labels of the champion's answers are needed"
