"""The absolute limits of the gate, and which of them a model breaks: asked of a challenger by the gate, and
of the champion on every window by the monitor."""

from collections.abc import Iterator
from dataclasses import dataclass

from contracts.core.contract import Contract
from contracts.core.metrics import BrokenLimit, Metrics
from contracts.core.policies import Gate

LOG_LOSS, AUC, CALIBRATION_ERROR = "log loss", "AUC", "calibration error"


@dataclass(frozen=True)
class MetricLimit:
    """A limit of the gate beside a model's metric, None where that is undefined. `is_highest`: the metric
    must not be above the limit; else not below it."""

    name: str
    value: float | None
    limit: float
    is_highest: bool = False

    @property
    def broken(self) -> BrokenLimit | None:
        """The broken limit; None if it is kept, or the metric undefined."""
        if self.value is None or (self.value <= self.limit if self.is_highest else self.value >= self.limit):
            return None
        return BrokenLimit(name=self.name, value=self.value, limit=self.limit)


def recall_of(name: str) -> str:
    """The name of the limit of a class's recall."""
    return f"recall of {name}"


def metric_limits(gate: Gate, metrics: Metrics) -> Iterator[MetricLimit]:
    """Every absolute limit beside the metric that it is about."""
    yield MetricLimit(LOG_LOSS, metrics.log_loss, gate.log_loss, is_highest=True)
    yield MetricLimit(AUC, metrics.auc, gate.auc)
    yield MetricLimit(CALIBRATION_ERROR, metrics.calibration_error, gate.calibration_error, is_highest=True)
    for name, least in gate.recall.items():
        yield MetricLimit(recall_of(name), metrics.recall.get(name), least)


def broken_limits(contract: Contract, metrics: Metrics) -> list[BrokenLimit]:
    """The absolute limits that a model's metrics break; none that is about an undefined metric. How many rows
    are enough to say so is the caller's to decide: `Gate.min_rows`."""
    return [limit.broken for limit in metric_limits(contract.gate, metrics) if limit.broken]
