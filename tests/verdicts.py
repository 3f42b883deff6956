"""Verdicts made by hand, for tests of what follows from them."""

from typing import Any

from contracts.core.gate_verdict import GateFigures, GateVerdict
from contracts.core.metrics import Metrics
from contracts.core.outcome_verdict import OutcomeCheck, OutcomeMeasure
from contracts.core.verdict import (
    Outcome,
    WindowFigures,
    WindowKind,
    WindowVerdict,
)
from registry.context import ModelContext, open_model

OUTCOMES = {WindowKind.FINE: Outcome.PASSED, WindowKind.INSUFFICIENT: Outcome.INSUFFICIENT}


def outcome_check(measure: str, effect: float, threshold: float = 0.02) -> OutcomeCheck:
    return OutcomeCheck(measure=OutcomeMeasure(measure), effect=effect, low=effect - 0.01, high=effect + 0.01,
                        threshold=threshold, p_value=0.001, failed=effect > threshold, rows=900)


def gate_verdict(outcome: str = "passed", *reasons: str, class_distance: float | None = None) -> GateVerdict:
    figures = GateFigures(challenger=Metrics(rows=0), class_distance=class_distance)
    return GateVerdict(outcome=Outcome(outcome), reasons=reasons, figures=figures)


def with_champion(model: str, version: str) -> ModelContext:
    """The context of a model whose champion is this version."""
    context = open_model(model)
    context.ledger.judged(version, gate_verdict(), None)
    context.ledger.promote(version, expect=None)
    return context


def window_verdict(kind: str, *reasons: str, **figures: Any) -> WindowVerdict:
    kind = WindowKind(kind)
    return WindowVerdict(outcome=OUTCOMES.get(kind, Outcome.FAILED), kind=kind, reasons=reasons,
                         figures=WindowFigures(**figures))
