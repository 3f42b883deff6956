"""The estimated performance of predictions whose labels are not in, with the interval of its own errors."""

from msgspec.structs import replace

from contracts.core.ordinary import BASELINE_FILE, OutcomeBaseline, decode_baseline, expected_loss
from contracts.core.verdict import Estimate
from flows.monitoring.unlabelled import unlabelled_windows
from registry.context import ModelContext, fetch_version

RECENT = 26  # windows that are looked through: half a year of weeks

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
    """The estimate with the interval that the errors of such estimates give: on the windows at training, and
    on those of the version among the RECENT ones before `until`."""
    windows = context.ledger.state().windows
    recent = sorted(start for start in windows if start < until)[-RECENT:]
    judged = [figures.outcomes for start in recent
              if (figures := windows[start].verdict.figures).version == version]
    errors = [outcomes.excess for outcomes in judged
              if outcomes and outcomes.checks and outcomes.excess is not None]
    baseline = baseline_of(context, version)
    interval = expected_loss(estimate.log_loss, [*(baseline.estimate_errors if baseline else ()), *errors])
    return replace(estimate, low=interval[0], high=interval[1]) if interval else estimate
