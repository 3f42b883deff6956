"""The limits a contract sets: for the gate, for drift and retraining, and for a rollout."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from contracts.core.verdict import CheckKind, Severity


@dataclass(frozen=True)
class Gate:
    """The limits a challenger must keep; against the champion on the newest `window` of labelled events."""

    window: timedelta
    log_loss: float
    auc: float
    calibration_error: float
    recall: Mapping[str, float]
    slices: tuple[str, ...] = ()
    slice_margin: float = 0.05
    slice_rows: int = 200
    margin: float = 0.0
    confidence: float = 0.95
    min_rows: int = 500
    latency_ms: float = 50.0
    size_mb: float = 50.0
    refit_shift: float = 0.1


@dataclass(frozen=True)
class Drift:
    """When a window of traffic asks for a retraining, and how often it may.

    `false_alarms`: share of windows of unchanged traffic that any check may fail. `detect`: the
    Jensen-Shannon distance (0.1: a normal column moved by a quarter of its deviation) that a window must be
    able to find, from which follow the rows it needs; `min_rows` sets these by hand. `ordinary`: the least
    distance, and `share` the least part of the records missing or never seen, that matter at all, however
    sure they are. Floors above these are learnt at training. `floors` and `severity` set a floor, or what
    follows ("page", "drift", "note"), by hand: for a column ("temp") or for one of its checks
    ("temp.missing", "dest.new", "temp.values"). Columns to `ignore` are not judged.

    `persist`: of how many of the last windows drift must be told, the newest among them, before it starts a
    retraining. `bad_inputs`: share of records that were refused, as a broken caller sends them, if they are
    more than `bad_rows`. `label_gap`: divergence, in nats, of the class shares that came true, on
    `min_labels` labels or more and for `coverage` of the logged predictions, from those that the model
    expected (calibration in the large). `skew`: share of the events that may have been sent otherwise than
    they were ingested. `new_rows`: labelled since the champion was trained, that a retraining needs. After
    `refusals` of challengers in a row retraining stops, until one is promoted, and a person is paged.
    """

    window: timedelta = timedelta(days=7)
    false_alarms: float = 0.005
    detect: float = 0.1
    min_rows: int | None = None
    ordinary: float = 0.02
    share: float = 0.005
    floors: Mapping[str, float] = field(default_factory=dict)
    severity: Mapping[str, Literal["page", "drift", "note"]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    persist: tuple[int, int] = (2, 3)
    label_gap: float = 0.02
    min_labels: int = 500
    coverage: float = 0.8
    skew: float = 0.01
    new_rows: int = 500
    refusals: int = 5
    retrain_on: tuple[str, ...] = ("input drift", "prediction drift", "worse on labels")
    bad_inputs: float = 0.05
    bad_rows: int = 20
    cooldown: timedelta = timedelta(days=14)
    weekly_budget: int = 1

    def floor(self, column: str, check: str) -> float | None:
        """What the contract says of the check's floor, if anything."""
        return self.floors.get(f"{column}.{check}", self.floors.get(column))

    def severity_of(self, column: str, check: str) -> Severity | None:
        """What the contract says should follow from the check, if anything."""
        severity = self.severity.get(f"{column}.{check}", self.severity.get(column))
        return Severity(severity) if severity else None

    def least(self, check: str) -> float:
        """The least effect of a check that matters at all."""
        return self.ordinary if check == CheckKind.VALUES else self.share


@dataclass(frozen=True)
class Rollout:
    """How a version takes over the traffic, and what it must keep while it has a `share` of it.

    `requests`: that it must answer before it takes over, waited for at most `minutes`; `alone`: what to do
    when too few came. `errors`: share of its requests that it may fail though the champion does not.
    `slower`: times the champion's 99th percentile, where that is more than the gate's `latency_ms`. `shift`:
    total variation distance of the class shares from the champion's, beyond what the gate saw and chance
    gives. `memory_mb`: growth of a replica.
    """

    share: float = 0.1
    requests: int = 100
    minutes: float = 10.0
    errors: float = 0.0
    slower: float = 3.0
    shift: float = 0.2
    memory_mb: float = 100.0
    alone: Literal["go on", "stop"] = "go on"
