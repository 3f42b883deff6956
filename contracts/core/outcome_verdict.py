"""What the checks on a window's labels found, as it is stored in the window's verdict."""

from enum import StrEnum

from msgspec import Struct


class OutcomeMeasure(StrEnum):
    """What is measured on labels; each is larger the worse the model does.

    `LOSS_PROMISED`, `AUC_PROMISED`: the mean log loss above, the area under the curve below, what the model's
    own probabilities promise if they are right. `LOSS_TRAINED`, `AUC_TRAINED`: the same against the newest
    out-of-time windows at training. `AUC_IN_BLOCKS`: as `AUC_PROMISED`, but only rows of the same few hours
    are compared, so that a stormy day, which makes all rows alike, changes nothing. `CALIBRATION`: the root
    mean squared gap of promised and observed shares, by class and tenth of the rows. `CLASS_SHARES`: the
    divergence of the observed class shares from the promised ones, in nats. `NAIVE`: the mean log loss
    above that of always answering with the class shares at training.
    """

    LOSS_PROMISED = "log loss above promised"
    LOSS_TRAINED = "log loss above training"
    AUC_PROMISED = "AUC below promised"
    AUC_TRAINED = "AUC below training"
    AUC_IN_BLOCKS = "AUC below promised within hours"
    CALIBRATION = "calibration"
    CLASS_SHARES = "class shares"
    NAIVE = "log loss above class shares"


class OutcomeCheck(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measure of a window, of all its labelled rows or of one slice's.

    `effect`: how much worse than ordinary; `low` and `high`: its 95 % interval by sampling alone.
    `threshold`: the effect from which on it counts, by what windows at training did and the window's size.
    `p_value`: of an effect this large in unchanged traffic, corrected for the number of checks.
    """

    measure: OutcomeMeasure
    effect: float
    low: float
    high: float
    threshold: float
    p_value: float
    failed: bool
    rows: int
    slice: str = ""


class NotRun(Struct, frozen=True, kw_only=True):
    """A measure that could not be checked, and why."""

    measure: OutcomeMeasure
    why: str


class CalibrationBin(Struct, frozen=True, kw_only=True):
    """Rows of about the same probability of a class: the share promised and observed, and the 95 % interval
    in which the observed share lies if the promise is right."""

    rows: int
    promised: float
    observed: float
    low: float
    high: float


class OutcomeFigures(Struct, frozen=True, kw_only=True):
    """A model on labelled rows, realised against promised and against training.

    `loss_promised` and `auc_promised` follow from the model's own probabilities; `loss_trained`,
    `auc_trained`: means over the newest out-of-time windows at training. `naive_loss`: of always answering
    with the class shares at training. By class: `auc` (one against the rest), `calibration`. `since`,
    `slice`: from when on, and in which slice, the model does worse.
    """

    rows: int
    windows: int = 1
    loss: float | None = None
    loss_promised: float | None = None
    loss_trained: float | None = None
    naive_loss: float | None = None
    auc: dict[str, float] = {}
    auc_promised: dict[str, float] = {}
    auc_trained: float | None = None
    calibration: dict[str, list[CalibrationBin]] = {}
    checks: list[OutcomeCheck] = []
    not_run: list[NotRun] = []
    since: str | None = None
    slice: str | None = None

    @property
    def excess(self) -> float | None:
        """The log loss that came true above the promised one; None without rows."""
        return None if self.loss is None or self.loss_promised is None else self.loss - self.loss_promised

    @property
    def failed(self) -> list[OutcomeCheck]:
        return [check for check in self.checks if check.failed]
