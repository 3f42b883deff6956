"""The events of a ledger, a struct each, and their stored form.

A stored event is `{"format", "digest", "seq", "prev", "at", "by", "kind",
"data"}`. Its digest is taken over the stored `data`, before it is read as a
struct, so that a newer reader still verifies what an older writer appended.
"""

from datetime import datetime
from enum import StrEnum
from typing import TypeAlias, get_args

import msgspec
from msgspec import Struct

from contracts.core.digests import JsonObject
from contracts.core.gate_verdict import GateVerdict
from contracts.core.retraining import RefusalRule
from contracts.core.verdict import CanaryVerdict, DataVerdict, WindowVerdict

# Raise it with a change that an older reader can't follow, and add the step from the old form to `upgraded`.
FORMAT = 2


# What some fields of an alert are called where it is stored, and in Prefect's events.
ALERT_KEYS = {"message": "what", "drift_scores": "far", "response": "doing"}


class AlertState(StrEnum):
    RAISED = "raised"
    OVER = "over"


class Recorded(Struct, frozen=True, kw_only=True, tag_field="event"):
    """What happened; a field that came later has a default, so that older events still read."""


class Ingested(Recorded, frozen=True, kw_only=True, tag="ingested"):
    """A data version was made: rows were looked for in [`start`, `end`). `newest`: the time of the newest
    row; `changed_from`: of the oldest row that was added or, `corrected` of them, replaced."""

    start: str
    end: str
    data: str
    rows: int
    bad: int
    newest: str | None = None
    corrected: int = 0
    changed_from: str | None = None


class IngestRefused(Recorded, frozen=True, kw_only=True, tag="ingest_refused"):
    start: str
    end: str
    verdict: DataVerdict


class LabelsStored(Recorded, frozen=True, kw_only=True, tag="labelled"):
    """Labels came for the ids of predictions; `labels` is the digest of them all. `by_replica`: whether they
    are stored in files by replica, or in one."""

    labels: str
    rows: int
    by_replica: bool = False


class Layer(Struct, frozen=True, kw_only=True):
    """How a version was recalibrated: from `base`, whose booster it has, on `rows` labelled events of
    [`start`, `until`)."""

    base: str
    start: str
    until: str
    rows: int


class Registered(Recorded, frozen=True, kw_only=True, tag="registered"):
    """A version was trained or, if it has a `layer`, recalibrated. `bins_of`: the champion whose bins its own
    divide. `challenger`: its name in the contract, if it is not the first of all rows."""

    version: str
    data: str = ""
    rounds: int = 0
    git: str | None = None
    bins_of: str | None = None
    challenger: str | None = None
    layer: Layer | None = None


class Judged(Recorded, frozen=True, kw_only=True, tag="judged"):
    """The gate's verdict on a version, against the champion of that time."""

    version: str
    against: str | None
    verdict: GateVerdict
    data: str = ""


class Promoted(Recorded, frozen=True, kw_only=True, tag="promoted"):
    version: str
    before: str | None = None


class RolledBack(Recorded, frozen=True, kw_only=True, tag="rolled_back", rename={"from_": "from"}):
    from_: str | None
    to: str
    reason: str


class Aliased(Recorded, frozen=True, kw_only=True, tag="aliased"):
    name: str
    version: str


class Tagged(Recorded, frozen=True, kw_only=True, tag="tagged"):
    version: str
    key: str
    value: str


class Noted(Recorded, frozen=True, kw_only=True, tag="noted"):
    version: str
    text: str


class Imaged(Recorded, frozen=True, kw_only=True, tag="imaged"):
    """A version's image was pushed; `image` is its reference by digest."""

    version: str
    image: str


class Released(Recorded, frozen=True, kw_only=True, tag="released"):
    """What serves from now on, and what a rollback starts again."""

    version: str
    image: str | None = None
    replicas: int | None = None


class RolloutFailed(Recorded, frozen=True, kw_only=True, tag="release_failed"):
    version: str
    why: str


class CanaryJudged(Recorded, frozen=True, kw_only=True, tag="canary_judged"):
    version: str
    against: str | None
    verdict: CanaryVerdict


class ShadowJudged(Recorded, frozen=True, kw_only=True, tag="shadow_judged"):
    version: str
    against: str | None
    verdict: CanaryVerdict


class WindowJudged(Recorded, frozen=True, kw_only=True, tag="window_judged"):
    """The verdict on the window that starts at `key`. `labels`: names all labels that were in."""

    key: str
    verdict: WindowVerdict
    champion: str | None = None
    labels: str | None = None


class RetrainClaimed(Recorded, frozen=True, kw_only=True, tag="retrain_claimed"):
    """A retraining was granted to the window that starts at `key`, at event time `now`."""

    key: str
    now: datetime
    reason: str


class RetrainRefused(Recorded, frozen=True, kw_only=True, tag="retrain_refused"):
    key: str
    now: datetime
    reason: str
    why: str
    rule: RefusalRule | None = None


class RetrainStarted(Recorded, frozen=True, kw_only=True, tag="retrain_started"):
    """The Prefect run `run` works on a granted retraining."""

    key: str
    run: str


class RetrainFailed(Recorded, frozen=True, kw_only=True, tag="retrain_failed"):
    """A run of a granted retraining failed; it may be run again."""

    key: str
    why: str
    failures: int


class RetrainFinished(Recorded, frozen=True, kw_only=True, tag="retrain_finished"):
    key: str
    outcome: str
    version: str | None = None
    why: str | None = None


class AlertRaised(Recorded, frozen=True, kw_only=True, tag="alert_raised", rename=ALERT_KEYS):
    """An alert was raised. `drift_scores`: those of the columns that drifted most;
    `response`: what is being done about it; `since`: the window where its cause began."""

    key: str
    kind: str
    window: str
    message: str
    drift_scores: dict[str, float]
    since: str
    response: str
    version: str


class AlertOver(Recorded, frozen=True, kw_only=True, tag="alert_over", rename={"ended_by": "over"}):
    """An alert ended. `ended_by`: the window without its cause; `ended`: why, in words."""

    key: str
    ended_by: str
    ended: str


class AlertSent(Recorded, frozen=True, kw_only=True, tag="alert_sent"):
    """Prefect has confirmed the alert's event of this state."""

    key: str
    state: AlertState


Data: TypeAlias = (Ingested | IngestRefused | LabelsStored | Registered | Judged | Promoted | RolledBack
                   | Aliased | Tagged | Noted | Imaged | Released | RolloutFailed | CanaryJudged
                   | ShadowJudged | WindowJudged | RetrainClaimed | RetrainRefused | RetrainStarted
                   | RetrainFailed | RetrainFinished | AlertRaised | AlertOver | AlertSent)

KINDS = {kind.__struct_config__.tag: kind for kind in get_args(Data)}


class Event(Struct, frozen=True, kw_only=True):
    """A link of the chain: `at` in UTC (ISO-8601), `by` whom, `prev` the digest of the event before."""

    seq: int
    prev: str
    at: str
    by: str
    digest: str
    data: Data

    @property
    def kind(self) -> str:
        """The event's name, as it is stored."""
        return kind_of(self.data)


def kind_of(data: Recorded) -> str:
    """The name under which an event is stored."""
    return str(data.__struct_config__.tag)


def encode_data(data: Recorded) -> JsonObject:
    """An event's data as JSON values, as its digest is taken over them."""
    plain: JsonObject = msgspec.to_builtins(data, str_keys=True)
    del plain["event"]
    return plain


def decode_data(kind: str, stored: JsonObject, stored_format: int) -> Data:
    """An event's data from its stored form; raises KeyError or msgspec.ValidationError."""
    if stored_format < FORMAT:
        stored = upgraded(kind, stored)
    data: Data = msgspec.convert(stored, KINDS[kind])
    return data


def upgraded(kind: str, stored: JsonObject) -> JsonObject:
    """Data of format 1 in the form of format 2: a refusal names its rule, an estimate all its figures."""
    if kind == "retrain_refused":
        rules = (rule for words, rule in WORDS_OF_FORMAT_1.items() if words in stored["why"])
        return stored | {"rule": next(rules, None)}
    if kind == "window_judged" and isinstance(stored["verdict"]["figures"].get("estimate"), float):
        verdict = stored["verdict"]
        figures = verdict["figures"] | {"estimate": {"log_loss": verdict["figures"]["estimate"]}}
        return stored | {"verdict": verdict | {"figures": figures}}
    return stored


WORDS_OF_FORMAT_1 = {"circuit breaker": RefusalRule.CIRCUIT_BREAKER,
                     "labelled rows are new": RefusalRule.NEW_ROWS, "is in flight": RefusalRule.IN_FLIGHT,
                     "cooldown until": RefusalRule.COOLDOWN, "weekly budget": RefusalRule.WEEKLY_BUDGET}
