"""Verdicts made by hand, for tests of what follows from them."""

from typing import Any

from contracts.core.gate_verdict import GateFigures, GateVerdict
from contracts.core.metrics import Metrics
from contracts.core.verdict import (
    Outcome,
    WindowFigures,
    WindowKind,
    WindowVerdict,
)

OUTCOMES = {WindowKind.FINE: Outcome.PASSED, WindowKind.INSUFFICIENT: Outcome.INSUFFICIENT}


def gate_verdict(outcome: str = "passed", *reasons: str, class_distance: float | None = None) -> GateVerdict:
    figures = GateFigures(challenger=Metrics(rows=0), class_distance=class_distance)
    return GateVerdict(outcome=Outcome(outcome), reasons=reasons, figures=figures)


def window_verdict(kind: str, *reasons: str, **figures: Any) -> WindowVerdict:
    kind = WindowKind(kind)
    return WindowVerdict(outcome=OUTCOMES.get(kind, Outcome.FAILED), kind=kind, reasons=reasons,
                         figures=WindowFigures(**figures))
