"""A model's metrics on labelled rows, as they are stored in verdicts."""

from msgspec import Struct


class Metrics(Struct, frozen=True, kw_only=True):
    """A classifier on labelled rows; None where undefined, as the AUC of a class that is absent."""

    rows: int
    log_loss: float | None = None
    auc: float | None = None
    calibration_error: float | None = None
    recall: dict[str, float | None] = {}
