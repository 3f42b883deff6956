"""The estimated performance of predictions whose labels are not in, with the interval of its own errors."""

from msgspec.structs import replace

from contracts.core.ordinary import BASELINE_FILE, OutcomeBaseline, decode_baseline, expected_loss
from contracts.core.verdict import Estimate
from flows.monitoring.unlabelled import unlabelled_windows
from registry.context import ModelContext, fetch_version


def baseline_of(context: ModelContext, version: str) -> OutcomeBaseline | None:
    """What is ordinary in a version's performance; None if it was trained without."""
    file = fetch_version(context, version) / BASELINE_FILE
    return decode_baseline(file.read_bytes()) if file.is_file() else None


def estimates(context: ModelContext) -> dict[str, Estimate]:
    """The estimated performance on windows whose labels are not all in, by their starts, oldest first."""
    champion = context.ledger.state().champion
    return {start: with_interval(context, champion, estimate, start) if champion else estimate
            for start, estimate in unlabelled_windows(context).items()}


def with_interval(context: ModelContext, version: str, estimate: Estimate, until: str) -> Estimate:
    """The estimate with the interval that the errors of such estimates give: on the version's windows before
    `until`, or if they are too few on those at training."""
    judged = [verdict.figures.outcomes for start, window in sorted(context.ledger.state().windows.items())
              if start < until and (verdict := window.verdict).figures.version == version]
    errors = [figures.excess for figures in judged
              if figures and figures.checks and figures.excess is not None]
    baseline = baseline_of(context, version)
    interval = expected_loss(estimate.log_loss, [*(baseline.estimate_errors if baseline else ()), *errors])
    return replace(estimate, low=interval[0], high=interval[1]) if interval else estimate
