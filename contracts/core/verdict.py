"""The answer to a "may this pass?": outcome, kind, reasons, and the figures behind them.

Each of the four questions has its verdict: `DataVerdict` (a batch), `GateVerdict` (a challenger, in
`gate_verdict.py`), `CanaryVerdict` (a challenger that serves a share of the traffic) and `WindowVerdict`
(a window of traffic). All are stored as JSON: a field that came later has a default, and a renamed one keeps
its first name there (`rename`), so that older JSON still reads.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar, cast

import msgspec
from msgspec import Struct

from contracts.core.digests import JsonObject
from contracts.core.metrics import Metrics
from contracts.core.outcome_verdict import OutcomeFigures


class Outcome(StrEnum):
    """`INSUFFICIENT`: there is too little data to judge by."""

    PASSED = "passed"
    FAILED = "failed"
    INSUFFICIENT = "insufficient"


class CheckOutcome(StrEnum):
    """`NOT_RUN`: there was nothing to check, or too little; never the same as passed."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


class CheckResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one check of a verdict came to; `why`: it failed, wasn't run, or passed by an exception."""

    name: str
    outcome: CheckOutcome
    why: str = ""


class WindowKind(StrEnum):
    """The findings of a window, the gravest first. `STALE`: traffic without labels, or labelled rows without
    traffic. `DECAYED`: worse on labels than promised, or than at training; `WORSE_ON_LABELS`: other class
    shares. `INSUFFICIENT`: too few rows or labels to judge by."""

    BROKEN_CONTRACT = "broken contract"
    SKEW = "training/serving skew"
    STALE = "stale"
    DECAYED = "decayed"
    WORSE_ON_LABELS = "worse on labels"
    INPUT_DRIFT = "input drift"
    PREDICTION_DRIFT = "prediction drift"
    INSUFFICIENT = "insufficient"
    FINE = "fine"


class CanaryKind(StrEnum):
    """The findings of a canary, the gravest first. `UNSEEN`: a figure is missing."""

    DIED = "died"
    ERRORS = "errors"
    DIFFERENT_ANSWERS = "different answers"
    SLOW = "slow"
    MEMORY = "memory"
    UNSEEN = "unseen"
    INSUFFICIENT = "insufficient"
    FINE = "fine"


class CheckKind(StrEnum):
    """What a drift check compares: the values, the share missing, the share never seen in training."""

    VALUES = "values"
    MISSING = "missing"
    NEW = "new"


class Severity(StrEnum):
    """What a drifted check leads to: a person is paged, the window counts as drifted, or it is only shown."""

    PAGE = "page"
    DRIFT = "drift"
    NOTE = "note"


class Action(StrEnum):
    """What follows from a judged window."""

    RETRAIN = "retrain"  # a retraining was asked for, and no rule (cooldown, budget, …) refused it
    PAGE = "page"  # a person must look
    WATCH = "watch"  # drift must persist before a retraining starts
    # A retraining is wanted and refused for now: cooldown, budget, one in flight, too few new rows.
    WAIT = "wait"
    NOTED = "noted"  # no cause to retrain under this contract
    INSUFFICIENT = "insufficient"
    FINE = "fine"


class Example(Struct, frozen=True, kw_only=True):
    """One cell that broke a rule."""

    row: int
    value: str


class BrokenRule(Struct, frozen=True, kw_only=True):
    """A rule of the contract and the rows that broke it."""

    column: str
    rule: str
    count: int
    examples: list[Example] = []


class DataFigures(Struct, frozen=True, kw_only=True):
    """Rows of a batch, those set aside, the rules they broke; `limit`: the share of bad rows allowed."""

    rows: int
    bad: int
    by_rule: list[BrokenRule] = []
    limit: float | None = None


class SideFigures(Struct, frozen=True, kw_only=True):
    """One side of a canary: requests (`refused`: answered 4xx, the caller's mistake; `failed`: 5xx or no
    answer), memory growth in MB, 99th percentile in seconds, records by predicted class."""

    requests: int
    answered: int
    failed: int
    refused: int
    deaths: int
    grown_mb: float | None = None
    p99_seconds: float | None = None
    classes: dict[str, int] = {}


class CanaryFigures(Struct, frozen=True, kw_only=True):
    """Both sides of a canary; `distance` of their class shares (total variation), once both have answered."""

    stable: SideFigures
    challenger: SideFigures
    distance: float | None = None


class ColumnCheck(Struct, frozen=True, kw_only=True, omit_defaults=True,
                  rename={"threshold": "floor", "p_value": "chance"}):
    """One drift check of one column: `effect` against its `threshold`, and the p-value of all checks.

    `since`: the first day on which the effect was above the threshold; `slice`: the slice that carries it.
    """

    effect: float
    threshold: float
    p_value: float
    drifted: bool
    since: str | None = None
    slice: str | None = None

    @property
    def score(self) -> float:
        """The effect in units of its threshold; 1 at most where chance may have done it."""
        times = self.effect / max(self.threshold, 1e-9)
        return times if self.drifted else min(times, 1.0)


class Performance(Struct, frozen=True, kw_only=True):
    """A model on a window's matured labels: log loss with its
    95 % interval, and class shares expected and observed.

    `gap`: Kullback-Leibler divergence, in nats, of the observed class shares from the mean probabilities;
    unlike the log loss it does not rise in a week that is merely hard to predict. `coverage`: share of the
    logged predictions whose label is in; None where no prediction was logged and the model was asked again.
    """

    rows: int
    log_loss: float
    gap: float
    observed: dict[str, float] = {}
    expected: dict[str, float] = {}
    low: float | None = None
    high: float | None = None
    coverage: float | None = None


class Estimate(Struct, frozen=True, kw_only=True):
    """The log loss and accuracy of n predictions if their probabilities are right; `low` and `high`: the 95 %
    interval of the log loss that the errors of such estimates on earlier windows give."""

    log_loss: float
    rows: int | None = None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None


class WindowFigures(Struct, frozen=True, kw_only=True,
                    rename={"performance": "scores", "cumulative": "crept"}):
    """What a window was judged by.

    `rows` answered and `bad` refused records; `needed`: rows that the power calculation asks for. A window
    with too few rows is judged together with those before it; `since`: the start of the oldest of them.
    `cumulative`: drift scores against the first champion's training data. `outcomes`: the checks on labels.
    `results`: what each check came to.
    `metrics`: of the version, on `Gate.min_rows` labels or more that cover `Drift.coverage` of its answers.
    """

    rows: int = 0
    bad: int = 0
    needed: int | None = None
    checks: dict[str, dict[CheckKind, ColumnCheck]] = {}
    performance: Performance | None = None
    metrics: Metrics | None = None
    outcomes: OutcomeFigures | None = None
    kinds: list[WindowKind] = []
    results: list[CheckResult] = []
    version: str | None = None
    since: str | None = None
    cumulative: dict[str, float] = {}
    estimate: Estimate | None = None

    @property
    def drift_scores(self) -> dict[str, float]:
        """Each column's furthest check, in units of its threshold."""
        return {name: max(check.score for check in checks.values()) for name, checks in self.checks.items()}


class Verdict(Struct, frozen=True, kw_only=True, tag_field="question"):
    """What every verdict has in common."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """What was judged: "data", "gate", "canary" or "drift"."""
        return str(self.__struct_config__.tag)

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASSED


class DataVerdict(Verdict, frozen=True, kw_only=True, tag="data"):
    figures: DataFigures


class CanaryVerdict(Verdict, frozen=True, kw_only=True, tag="canary"):
    kind: CanaryKind
    figures: CanaryFigures


class WindowVerdict(Verdict, frozen=True, kw_only=True, tag="drift"):
    kind: WindowKind
    figures: WindowFigures = WindowFigures()


Kind = TypeVar("Kind", WindowKind, CanaryKind)


def gravest(reasons_by_kind: Sequence[tuple[Kind, Sequence[str]]], fine: Kind) -> tuple[Kind, Outcome]:
    """The first kind that has reasons, and its outcome; `fine` if none has."""
    kind = next((kind for kind, reasons in reasons_by_kind if reasons), fine)
    outcomes = {"fine": Outcome.PASSED, "insufficient": Outcome.INSUFFICIENT}
    return kind, outcomes.get(kind, Outcome.FAILED)


def as_json(value: Struct) -> JsonObject:
    """A struct as JSON values."""
    return cast(JsonObject, msgspec.to_builtins(value, str_keys=True))
