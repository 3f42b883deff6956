"""The HTML page of a judged window."""

from datetime import datetime
from pathlib import Path

from flows.monitoring.decision import decided
from flows.monitoring.evaluation import recount_window
from flows.reporting import window_report
from flows.reporting.charts import HIGH, WIDE
from flows.reporting.templates import environment
from flows.reporting.window_report import Report
from registry.context import ModelContext


def report(context: ModelContext, window: str) -> bytes:
    """A judged window as one HTML page, from what the ledger and the store hold now."""
    verdict, start = window_report.judged(context, window), datetime.fromisoformat(window)
    action = decided(context.ledger.state(), window, context.contract.drift)
    return render_window(window_report.window_report(context, window, action,
                                                     recount_window(context, start, verdict)))


FILTERS = {
    "short": lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.3g}",
    "figure": lambda value: f"{round(value, 4) + 0.0:.4f}",  # a negative zero is a zero
    "chance": lambda value: f"{value:.4f}" if value >= 1e-4 else "< 0.0001",
    "share": lambda value: f"{value:.1%}",
    "at": lambda value: f"{value:.1f}",
    "day": lambda time: time.removesuffix("T00:00:00").replace("T", " "),
}


def render_window(report: Report) -> bytes:
    """The page: one HTML document that asks nothing of the network and runs no script."""
    page = environment(Path(__file__).parent)
    page.filters |= FILTERS
    return page.get_template("window.html.j2").render(report, wide=WIDE, high=HIGH).encode()
