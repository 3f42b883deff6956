"""The Prefect artifacts that show a run's results in the UI."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import convert
from prefect.artifacts import create_markdown_artifact

from contracts.core.gate_verdict import GateVerdict
from contracts.core.verdict import (
    Action,
    CanaryFigures,
    CanaryVerdict,
    CheckKind,
    CheckOutcome,
    ColumnCheck,
    DataVerdict,
    Outcome,
    SideFigures,
    Verdict,
    WindowVerdict,
)
from registry.data import DataVersion

OUTCOME_MARKS = {Outcome.PASSED: "✅ passed", Outcome.FAILED: "❌ failed",
                 Outcome.INSUFFICIENT: "❔ insufficient"}
CHECK_MARKS = {CheckOutcome.PASSED: "✅ passed", CheckOutcome.FAILED: "❌ failed",
               CheckOutcome.NOT_RUN: "❔ not run"}


def show_data_check(model: str, version: DataVersion, verdict: DataVerdict) -> None:
    figures = verdict.figures
    rules = [(rule.column, rule.rule, rule.count, ", ".join(example.value for example in rule.examples))
             for rule in figures.by_rule]
    _show(model, "data-check", _heading(f"Data check of {model}", verdict), (
        f"{figures.rows:,} rows of [{version.start}, {version.end}); {figures.bad:,} set aside. "
        f"Data version `{version.digest[:12]}` now holds {version.rows:,} rows."
    ), table(("column", "rule", "rows", "examples"), rules) if rules else "No rule was broken.")


def show_gate(model: str, version: str, verdict: GateVerdict) -> None:
    figures = verdict.figures
    challenger, champion = figures.challenger, figures.champion
    rows = [(name.replace("_", " "), _short(getattr(challenger, name)), _short(getattr(champion, name, None)))
            for name in ("rows", "log_loss", "auc", "calibration_error")]
    rows += [(f"recall of {name}", _short(value), _short(champion.recall.get(name) if champion else None))
             for name, value in challenger.recall.items()]
    rows += [(name, _short(getattr(figures, name)), "") for name in ("latency_ms", "size_mb", "disagreement")]
    slices = [(entry.column, entry.value, entry.rows, f"{entry.behind:+.4f}") for entry in figures.slices]
    paired = figures.paired
    compared = paired and (f"Log loss, challenger minus champion, same rows: **{paired.difference:+.4f}** "
                           f"[{paired.low:+.4f}, {paired.high:+.4f}]")
    checks = [(check.name, CHECK_MARKS[check.outcome], check.why) for check in figures.checks]
    _show(model, "gate", _heading(f"Gate of {model} `{version[:12]}`", verdict),
          table(("figure", "challenger", "champion"), rows),
          compared or ("No champion yet: absolute limits only." if champion is None else ""),
          table(("check", "outcome", "why"), checks) if checks else "",
          table(("slice", "value", "rows", "behind the champion"), slices) if slices else "")


def show_challengers(model: str, names: Mapping[str, str], verdicts: Mapping[str, GateVerdict],
                     chosen: str) -> None:
    """The challengers of a training, by version, the simplest first, and which was chosen."""
    rows = []
    for version, name in names.items():
        figures, paired = verdicts[version].figures, verdicts[version].figures.paired
        interval = f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]" if paired else ""
        rows.append((name, f"`{version[:12]}`", OUTCOME_MARKS[verdicts[version].outcome],
                     _short(figures.challenger.log_loss), interval, "chosen" if version == chosen else ""))
    _show(model, "challengers", f"# Challengers of {model}",
          "The gate judges each on the same newest rows. Of those that passed, one takes the place of a "
          "simpler one only if it is better by the paired interval.",
          table(("challenger", "version", "gate", "log loss", "minus the champion's", ""), rows))


def show_window(model: str, window: str, verdict: WindowVerdict, action: Action, report: str | None) -> None:
    """`report`: the address of the window's page; None if it could not be drawn."""
    figures, scores = verdict.figures, verdict.figures.drift_scores
    ranked = [(name, f"{scores[name]:.2f}",
               *(_effect(figures.checks[name].get(check)) for check in CheckKind))
              for name in sorted(scores, key=lambda name: -scores[name])]
    _show(model, "window", _heading(f"Window {window} of {model}: {verdict.kind}", verdict),
          f"{figures.rows:,} records answered, {figures.bad:,} refused. Action: **{action}**.",
          f"Report: {f'`{report}`' if report else 'none could be drawn, the log says why'}; with what has "
          f"happened since: `perennial report {model} --window {window}`.",
          table(("column", "times its threshold", "distance of values", "missing, change of share",
                 "never seen, rise of share"),
                ranked))


def show_release(model: str, version: str, released: Mapping[str, Any]) -> None:
    rows = [(replica["url"], replica["records"], f"{replica['latency_ms']:.1f} ms")
            for replica in released["checked"]]
    canary = released["canary"] and convert(released["canary"], CanaryVerdict)
    _show(model, "release", f"# Release of {model} `{version[:12]}`: {released['outcome']}",
          f"Champion before: `{(released['before'] or 'none')[:12]}`.",
          table(("replica", "sample records with the trainer's answers", "one record in"), rows),
          *((_heading("Canary", canary), _canary_table(canary.figures)) if canary
            else ("No canary: nothing served before.",)))


def _canary_table(figures: CanaryFigures) -> str:
    names = [name for name in SideFigures.__struct_fields__ if name != "classes"]
    return table(("figure", "champion", "challenger"),
                 [(name.replace("_", " "), _short(getattr(figures.stable, name)),
                   _short(getattr(figures.challenger, name))) for name in names])


def _effect(check: ColumnCheck | None) -> str:
    return _short(check.effect if check else None)


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    lines = [tuple(head)] + [tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(title: str, verdict: Verdict) -> str:
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    return f"# {title}: {OUTCOME_MARKS[verdict.outcome]}\n\n{reasons}"


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _show(model: str, name: str, *parts: str) -> None:
    create_markdown_artifact("\n\n".join(part for part in parts if part),
                             key=re.sub(r"[^a-z0-9]+", "-", f"{model}-{name}".lower()))
