"""The gate's verdict on a challenger, and the figures behind it."""

from msgspec import Struct

from contracts.core.metrics import Metrics
from contracts.core.verdict import CheckResult, Verdict


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


class BrokenByBoth(Struct, frozen=True, kw_only=True):
    """A limit that challenger and champion both break on the same rows: their metrics, and by how much the
    challenger is `behind` (above 0: worse), with the interval of `Gate.confidence`.

    `forgiven`: the challenger may break it, as it is better than the champion and no worse in this.
    """

    name: str
    limit: float
    challenger: float
    champion: float
    behind: float
    low: float
    high: float
    forgiven: bool


class AbsentClass(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A class that no row of the gate's window has.

    `share` of the labelled rows before, `rows_before` in all; None where they aren't known. `rows_until`,
    `days_until`: within how many more rows, and days at the window's pace, one comes with a chance of 95 %.
    `window_days`: the least `Gate.window` that holds the newest row of it.
    """

    name: str
    share: float | None = None
    rows_before: int | None = None
    rows_until: int | None = None
    days_until: float | None = None
    window_days: int | None = None


class GateFigures(Struct, frozen=True, kw_only=True, rename={"class_distance": "apart"}):
    """What the gate judged by; what compares with a champion is None where there is none to compare with.

    `checks`: what each rule came to. `since`: the event time from which on the rows were judged.
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
    checks: list[CheckResult] = []
    broken_by_both: list[BrokenByBoth] = []
    absent: list[AbsentClass] = []
    since: str | None = None


class GateVerdict(Verdict, frozen=True, kw_only=True, tag="gate"):
    figures: GateFigures
