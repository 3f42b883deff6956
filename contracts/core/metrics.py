"""A model's metrics on labelled rows, and the limits of the gate that they break, as verdicts store them."""

from msgspec import Struct


class Metrics(Struct, frozen=True, kw_only=True):
    """A classifier on labelled rows; None where undefined, as the AUC of a class that is absent."""

    rows: int
    log_loss: float | None = None
    auc: float | None = None
    calibration_error: float | None = None
    recall: dict[str, float | None] = {}


class BrokenLimit(Struct, frozen=True, kw_only=True):
    """A metric and the limit of the gate that it breaks."""

    name: str
    value: float
    limit: float

    def __str__(self) -> str:
        side = "above" if self.value > self.limit else "below"
        return f"{self.name} {self.value:.4f} is {side} {self.limit}"
