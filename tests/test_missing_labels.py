"""The alert about labels that do not come: raised once when it lasts, ended when a window was checked."""

import pytest

from contracts.core.outcome_verdict import NotRun, OutcomeFigures, OutcomeMeasure
from flows.monitoring.missing_labels import TOO_FEW_LABELS, record_missing_labels
from registry.context import ModelContext, open_model
from registry.events import WindowJudged
from tests.conftest import PUMPS
from tests.test_monitor import trained  # noqa: F401  a fixture
from tests.verdicts import outcome_check, window_verdict

FEW = OutcomeFigures(rows=120, not_run=[
    NotRun(measure=measure, why="120 labelled rows, 200 are needed") for measure in OutcomeMeasure])
ENOUGH = OutcomeFigures(rows=900, checks=[outcome_check("AUC below promised", 0.01)])


@pytest.fixture
def context(trained, addresses) -> ModelContext:  # noqa: F811
    return open_model(PUMPS)


def judge(context: ModelContext, day: int, outcomes: OutcomeFigures | None) -> list[tuple[str, str]]:
    """Record the window that starts on that day of March; the alerts about labels, and their states."""
    kind = "fine" if outcomes is None or outcomes.checks else "insufficient"
    context.ledger.window_judged(WindowJudged(key=f"2024-03-{day:02d}T00:00:00", verdict=window_verdict(
        kind, outcomes=outcomes)), lambda _: True)
    record_missing_labels(context)
    return [(alert.since[8:10], str(alert.state)) for alert in context.ledger.state().alerts.values()
            if alert.kind == TOO_FEW_LABELS]


def test_three_windows_in_a_row_page_once_and_the_first_with_labels_ends_it(context):
    assert judge(context, 4, FEW) == judge(context, 11, FEW) == []
    assert judge(context, 18, FEW) == [("04", "raised")]
    assert judge(context, 25, FEW) == [("04", "raised")]
    [alert] = context.ledger.state().open_alerts
    assert "120 labelled rows, 200 are needed" in alert.message and "perennial status pumps" in alert.response
    assert judge(context, 26, ENOUGH) == [("04", "over")]
    assert judge(context, 27, FEW) == judge(context, 28, FEW) == [("04", "over")]
    assert judge(context, 29, FEW) == [("04", "over"), ("27", "raised")]


def test_windows_with_labels_between_and_windows_without_checks_do_not_page(context):
    for day, outcomes in ((4, FEW), (11, ENOUGH), (18, FEW), (19, FEW), (20, None), (21, FEW), (22, FEW)):
        assert judge(context, day, outcomes) == []
