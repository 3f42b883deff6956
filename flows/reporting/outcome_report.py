"""The part of a window's report on its labels: what the model promised, and what came true."""

from contracts.core.digests import JsonObject
from contracts.core.outcome_verdict import OutcomeCheck, OutcomeFigures, OutcomeMeasure
from contracts.core.verdict import CheckOutcome, WindowFigures

MAX_SLICES = 10  # checks of slices that are listed, the surest first


def outcome_section(figures: WindowFigures) -> JsonObject | None:
    """The values of the template; None where no checks on labels are recorded."""
    outcomes = figures.outcomes
    if outcomes is None:
        return None
    sliced = sorted((check for check in outcomes.checks if check.slice), key=lambda check: check.p_value)
    return {"rows": outcomes.rows, "windows": outcomes.windows, "facts": _facts(outcomes),
            "checks": [_row(check) for check in outcomes.checks if not check.slice],
            "slices": [_row(check) for check in sliced[:MAX_SLICES]], "slice_count": len(sliced),
            "not_run": [(str(check.measure), check.why) for check in outcomes.not_run],
            "since": outcomes.since, "slice": outcomes.slice,
            "auc": [(name, area, outcomes.auc_promised[name]) for name, area in outcomes.auc.items()],
            "calibration": {name: [{"x": bin.promised, "y": bin.observed, "low": bin.low, "high": bin.high,
                                    "rows": bin.rows} for bin in bins]
                            for name, bins in outcomes.calibration.items()}}


def results(figures: WindowFigures) -> list[tuple[str, str, str]]:
    """Each check of the window with what it came to and why it did not run, those that failed first."""
    order = [CheckOutcome.FAILED, CheckOutcome.NOT_RUN, CheckOutcome.PASSED]
    return [(result.name, str(result.outcome), result.why)
            for result in sorted(figures.results, key=lambda result: order.index(result.outcome))]


def _facts(outcomes: OutcomeFigures) -> list[tuple[str, float]]:
    """The mean log losses that are compared."""
    named = (("came true", outcomes.loss), ("promised by the probabilities", outcomes.loss_promised),
             ("in out-of-time windows at training", outcomes.loss_trained),
             ("of the class shares alone", outcomes.naive_loss))
    return [(name, value) for name, value in named if value is not None]


def _row(check: OutcomeCheck) -> JsonObject:
    return {"measure": str(check.measure), "slice": check.slice, "figures": check}


def share_threshold(figures: WindowFigures) -> float | None:
    """The threshold of the class shares' check of a window; None where it did not run."""
    checks = figures.outcomes.checks if figures.outcomes else []
    return next((check.threshold for check in checks if check.measure is OutcomeMeasure.CLASS_SHARES), None)
