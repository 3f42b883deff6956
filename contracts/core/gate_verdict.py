"""The gate's verdict on a challenger, and the figures behind it."""

from msgspec import Struct

from contracts.core.verdict import Verdict


class Metrics(Struct, frozen=True, kw_only=True):
    """A classifier on labelled rows; None where undefined, as the AUC of a class that is absent."""

    rows: int
    log_loss: float | None = None
    auc: float | None = None
    calibration_error: float | None = None
    recall: dict[str, float | None] = {}


class Difference(Struct, frozen=True, kw_only=True):
    """Challenger minus champion, mean log loss of the same rows, and its bootstrap interval."""

    difference: float
    low: float
    high: float


class SliceDifference(Struct, frozen=True, kw_only=True):
    """By how much the challenger's log loss exceeds the champion's in one slice."""

    column: str
    value: str
    rows: int
    behind: float


class GateFigures(Struct, frozen=True, kw_only=True, rename={"class_distance": "apart"}):
    """What the gate judged by; what compares with a champion is None where there is none to compare with.

    `disagreement`: largest difference of the saved model's probabilities, from a new process, and the
    trainer's. `refit_shift`: mean difference of the judged model's probabilities and those of the one
    refitted on every row. `class_distance`: total variation distance of the two models' class shares, 0 to 1.
    """

    challenger: Metrics
    latency_ms: float | None = None
    size_mb: float | None = None
    disagreement: float | None = None
    refit_shift: float | None = None
    champion: Metrics | None = None
    paired: Difference | None = None
    class_distance: float | None = None
    slices: list[SliceDifference] = []


class GateVerdict(Verdict, frozen=True, kw_only=True, tag="gate"):
    figures: GateFigures
