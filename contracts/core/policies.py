"""What a contract sets: limits for gate, drift, retraining, rollout and training, and its schedule."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from contracts.core.verdict import CheckKind, Severity

# Least, greatest and the names of: minutes, hours, days, months, weekdays (0 and 7 are Sunday).
CRON_FIELDS = ((0, 59, ""), (0, 23, ""), (1, 31, ""),
               (1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
               (0, 7, "sun mon tue wed thu fri sat"))
CRON_PART = re.compile(r"(\*|(?P<first>\d{1,2})(-(?P<last>\d{1,2}))?)(/(?P<step>\d{1,2}))?")


@dataclass(frozen=True)
class Gate:
    """The limits that a challenger must keep on the newest `window` of labelled events.

    Highest `log_loss` and `calibration_error`, least `auc` and `recall` by class; 99th percentile of one
    record's `latency_ms`; `size_mb` of its files; `refit_shift`, the mean difference of probabilities between
    the judged model and the one refitted on every row. Against the champion: the upper end of the log loss
    difference's interval of `confidence` must not exceed `margin`, and in no value of the `slices`' columns
    with `slice_rows` rows or more may the challenger be behind by more than `slice_margin`.

    `absolute`: which of the limits on metrics (log loss, calibration error, AUC, recall) hold where there is
    a champion. "relative": a challenger whose log loss is the smaller by the interval may break those that
    the champion breaks on the same rows, no worse than it does; "strict": each of them, always. Limits of
    costs, and all limits of a first version, are always strict.
    """

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
    absolute: Literal["relative", "strict"] = "relative"


@dataclass(frozen=True)
class Drift:
    """When a window of traffic asks for a retraining, and how often it may.

    What counts as drift: `false_alarms` is the share of windows of unchanged traffic in which some check may
    fail. `detect` is the Jensen-Shannon distance (0.1: a normal column moved by a quarter of its deviation)
    that a window must be able to find; the rows it needs follow from that, or are set as `min_rows`. An
    effect below `min_distance`, or below `min_share` of the records missing or never seen, is never drift.
    Thresholds above these are learnt at training. `thresholds` and `severity` set a threshold, or what
    follows ("page", "drift", "note"), by hand: for a column ("temp") or for one of its checks
    ("temp.missing", "dest.new", "temp.values"). Columns to `ignore` are not checked.

    What else is a fault: more than `bad_inputs` (a share) of the records refused, if they are more than
    `bad_rows`; more than `skew` (a share) of the events sent with other values than were ingested; and a
    divergence of more than `label_gap`, in nats, of the observed class shares from those that the model
    promised, on `min_labels` labels or more that cover `coverage` of the logged predictions; and a model that
    does worse on them than it promised, or than it did at training, by more than `min_decay` (nats of log
    loss, or area under the curve). What windows do in the ordinary is learnt at training and added;
    `label_gap` set by hand is the threshold itself.

    When a retraining starts: on one of the kinds `retrain_on`, found in k of the last m windows (`persist`),
    the newest among them; no sooner than `cooldown` after the last, `weekly_budget` times in seven days, and
    with `new_rows` labelled rows that the champion has not seen. After `refusals` challengers in a row were
    refused, retraining stops until one is promoted, and a person is paged.
    """

    window: timedelta = timedelta(days=7)
    false_alarms: float = 0.005
    detect: float = 0.1
    min_rows: int | None = None
    min_distance: float = 0.02
    min_share: float = 0.005
    thresholds: Mapping[str, float] = field(default_factory=dict)
    severity: Mapping[str, Literal["page", "drift", "note"]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    persist: tuple[int, int] = (2, 3)
    label_gap: float | None = None
    min_decay: float = 0.02
    min_labels: int = 200
    coverage: float = 0.8
    skew: float = 0.01
    new_rows: int = 500
    refusals: int = 5
    retrain_on: tuple[str, ...] = ("decayed", "worse on labels", "input drift", "prediction drift")
    bad_inputs: float = 0.05
    bad_rows: int = 20
    cooldown: timedelta = timedelta(days=14)
    weekly_budget: int = 1

    def threshold_of(self, column: str, check: str) -> float | None:
        """The check's threshold that the contract sets by hand, if it does."""
        return self.thresholds.get(f"{column}.{check}", self.thresholds.get(column))

    def severity_of(self, column: str, check: str) -> Severity | None:
        """The check's severity that the contract sets by hand, if it does."""
        severity = self.severity.get(f"{column}.{check}", self.severity.get(column))
        return Severity(severity) if severity else None

    def min_effect(self, check: str) -> float:
        """The smallest effect of a check that can be drift."""
        return self.min_distance if check == CheckKind.VALUES else self.min_share


@dataclass(frozen=True)
class Recalibration:
    """How the champion is recalibrated on labels between its trainings: the same booster, with a layer on its
    probabilities that is fitted anew. It is no training: no cooldown and no budget count it.

    `every`: event time between two recalibrations. `labels`: how old a labelled answer may be that counts, at
    `half_life` it counts half. `shrinkage`: how much speaks for no layer beside what the labels say: 0
    nothing; 1 as much as they do, so that about half of what they show is done, as a calm week follows a bad
    one; and `prior_rows` labels more, so that few labels do little.
    """

    every: timedelta = timedelta(days=7)
    labels: timedelta = timedelta(days=28)
    half_life: timedelta = timedelta(days=7)
    shrinkage: float = 1.0
    prior_rows: int = 1_000

    def settings(self) -> Iterator[tuple[str, Any, bool, str]]:
        """Each setting that can be invalid: its name, its value, whether it is valid, and the rule."""
        for name in ("every", "labels", "half_life"):
            value = getattr(self, name)
            yield f"recalibration.{name}", value, value > timedelta(0), "more than 0"
        for name in ("shrinkage", "prior_rows"):
            value = getattr(self, name)
            yield f"recalibration.{name}", value, value >= 0, "0 or more"


@dataclass(frozen=True)
class Rollout:
    """How a version takes over the traffic, and what it must keep while it has a `share` of it.

    It takes over after `requests` answered requests, waited for at most `minutes`; `alone` says what to do
    when too few came. `errors`: the share of its requests that may fail beyond the champion's. `slower`: its
    99th percentile may be this many times the champion's, or the gate's `latency_ms` if that is more.
    `shift`: total variation distance, 0 to 1, of its class shares from the champion's, beyond what the gate
    measured and what chance gives. `memory_mb`: how much a replica's memory may grow.
    """

    share: float = 0.1
    requests: int = 100
    minutes: float = 10.0
    errors: float = 0.0
    slower: float = 3.0
    shift: float = 0.2
    memory_mb: float = 100.0
    alone: Literal["go on", "stop"] = "go on"


@dataclass(frozen=True)
class Schedule:
    """When data is looked for and judged, and how late it may be.

    `data`: how often the source is asked for new rows, as cron text ("0 6 * * *") or an interval; None:
    only by hand. `judge`: when windows are judged besides after every new data version; None: hourly, with
    all else that is overdue. `time_zone`: of the cron text, and of the event times, which name none.
    `since`: event time at which the first look begins. `lateness`: how far before the newest known row
    is read again, for rows that came late or were corrected. `stale_after`: how much older than matured
    labels should be the newest row may get, before a person is paged; also the longest gap between rows
    that goes without saying. `time_limit`: after which a look is ended; what it has stored by then stays.
    """

    data: str | timedelta | None = timedelta(hours=1)
    judge: str | timedelta | None = None
    time_zone: str = "UTC"
    since: datetime | None = None
    lateness: timedelta = timedelta(0)
    stale_after: timedelta = timedelta(days=2)
    time_limit: timedelta = timedelta(hours=1)

    def settings(self) -> Iterator[tuple[str, Any, bool, str]]:
        """Each setting that can be invalid: its name, its value, whether it is valid, and the rule."""
        for name, when in (("schedule.data", self.data), ("schedule.judge", self.judge)):
            yield name, when, _is_recurrence(when), "cron text of five fields, an interval above 0, or None"
        yield "schedule.time_zone", self.time_zone, _is_zone(self.time_zone), "a zone such as Europe/Berlin"
        yield ("schedule.since", self.since, self.since is None or self.since.tzinfo is None,
               "without a zone, as event times are")
        yield "schedule.lateness", self.lateness, self.lateness >= timedelta(0), "0 or more"
        yield "schedule.stale_after", self.stale_after, self.stale_after > timedelta(0), "more than 0"
        yield "schedule.time_limit", self.time_limit, self.time_limit > timedelta(0), "more than 0"


@dataclass(frozen=True)
class TrainingLimits:
    """What a training may take. `time`: after which a run of it is ended; `memory_gb`: of a run's process;
    `attempts`: runs of a granted retraining, after which it counts as failed; `start_within`: how long a
    granted retraining may wait for a worker before a person is paged."""

    time: timedelta = timedelta(hours=2)
    memory_gb: float = 8.0
    attempts: int = 3
    start_within: timedelta = timedelta(minutes=30)

    def settings(self) -> Iterator[tuple[str, Any, bool, str]]:
        """Each setting that can be invalid: its name, its value, whether it is valid, and the rule."""
        yield "training.time", self.time, self.time > timedelta(0), "more than 0"
        yield "training.memory_gb", self.memory_gb, self.memory_gb > 0, "more than 0"
        yield "training.attempts", self.attempts, self.attempts >= 1, "1 or more"
        yield "training.start_within", self.start_within, self.start_within > timedelta(0), "more than 0"


def _is_recurrence(when: str | timedelta | None) -> bool:
    if isinstance(when, timedelta):
        return when > timedelta(0)
    if when is None:
        return True
    fields = when.lower().split()
    return len(fields) == len(CRON_FIELDS) and all(map(_is_cron_field, fields, CRON_FIELDS))


def _is_cron_field(text: str, limits: tuple[int, int, str]) -> bool:
    """Whether each part of a field is "*", a value or a range in order, with a step above 0 or without."""
    low, high, names = limits
    for number, name in enumerate(names.split(), low):
        text = text.replace(name, str(number))
    parts = [CRON_PART.fullmatch(part) for part in text.split(",")]
    return all(part and low <= int(part["first"] or low) <= int(part["last"] or part["first"] or high) <= high
               and int(part["step"] or 1) > 0 for part in parts)


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo("UTC")
    except ZoneInfoNotFoundError:  # a replica's image may lack the zones; it does not read the clock
        return True
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
