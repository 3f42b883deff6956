"""The HTML page of a judged window."""

from datetime import datetime
from pathlib import Path

from flows.monitoring.decision import decided
from flows.monitoring.evaluation import recount_window
from flows.reporting import window_report
from flows.reporting.charts import HEIGHT, WIDTH
from flows.reporting.templates import environment
from flows.reporting.window_report import Report
from registry.context import ModelContext


def report(context: ModelContext, window: str) -> bytes:
    """The HTML page of a judged window, with the current contents of ledger and store."""
    verdict, start = window_report.judged(context, window), datetime.fromisoformat(window)
    action = decided(context.ledger.state(), window, context.contract.drift)
    return render_window(window_report.window_report(context, window, action,
                                                     recount_window(context, start, verdict)))


FILTERS = {
    "short": lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.3g}",
    "figure": lambda value: f"{round(value, 4) + 0.0:.4f}",  # without the sign of a negative zero
    "chance": lambda value: f"{value:.4f}" if value >= 1e-4 else "< 0.0001",
    "share": lambda value: f"{value:.1%}",
    "at": lambda value: f"{value:.1f}",
    "day": lambda time: time.removesuffix("T00:00:00").replace("T", " "),
}


def render_window(report: Report) -> bytes:
    """One self-contained HTML document, without scripts or links to other files."""
    page = environment(Path(__file__).parent)
    page.filters |= FILTERS
    return page.get_template("window.html.j2").render(report, wide=WIDTH, high=HEIGHT).encode()
