"""Every key of the store, built here alone and read back here alone.

    ledger/MODEL/00000000.json                  the events, one by one: what holds
    ledger/MODEL/head.json                      the newest events, and the segments of those before
    ledger/MODEL/segments/00000000.jsonl        copies of the events from a number on, one a line
    ledger/MODEL/snapshots/FOLD/00000000.json   what the events of a segment amount to, by one code's fold
    data/MODEL, data/MODEL.bad                  Delta tables: the data versions, the rows set aside
    looks/MODEL.json                            until when data was looked for
    models/MODEL/VERSION/FILE                   the files of a version
    profiles/MODEL/VERSION/WINDOW/REPLICA.bin   traffic in counts
    predictions/MODEL/VERSION/WINDOW/*.parquet  logged predictions
    labels/MODEL/REPLICA/*.parquet              labels sent for the ids of a replica's predictions; the names
                                                say of which numbers (FIRST-LAST-DIGEST-PART)
    labels/MODEL/DIGEST.parquet                 the same, as releases until 0.1.0 stored them
    reports/MODEL/WINDOW.html                   the pages of judged windows
    steps/KEY                                   results of a flow's steps, for a run that resumes
"""

import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from contracts.core.windows import WINDOW_FORMAT

PROFILES, PREDICTIONS = "profiles", "predictions"
EVENT_KEY = re.compile(r"ledger/[^/]+/(\d{8,})\.json")
TRAFFIC_KEY = re.compile(rf"(?:{PROFILES}|{PREDICTIONS})/[^/]+/([^/]+)/([^/]+)/[^/]+\.(?:bin|parquet)")


LABELS_KEY = re.compile(r"labels/[^/]+/[^/]+/(-?[0-9a-f]+)-(-?[0-9a-f]+)-([0-9a-f]+)-(\d+)\.parquet")


class LabelsKey(NamedTuple):
    """The parts of the key of labels: the least and the greatest number of their predictions, the digest of
    all that were sent at once, and which part of them it is."""

    first: int
    last: int
    digest: str
    part: int


class TrafficKey(NamedTuple):
    """The parts of the key of a profile or of a file of predictions."""

    version: str
    start: datetime


def events(model: str) -> str:
    return f"ledger/{model}/"


def event(model: str, seq: int) -> str:
    return f"{events(model)}{seq:08d}.json"


def head(model: str) -> str:
    return f"{events(model)}head.json"


def segment(model: str, first: int) -> str:
    return f"{events(model)}segments/{first:08d}.jsonl"


def snapshots(model: str, fold: str) -> str:
    return f"{events(model)}snapshots/{fold}/"


def snapshot(model: str, fold: str, first: int) -> str:
    return f"{snapshots(model, fold)}{first:08d}.json"


def data_table(model: str) -> str:
    return f"data/{model}"


def bad_rows_table(model: str) -> str:
    return f"{data_table(model)}.bad"


def first_commit(table: str) -> str:
    """The key of the commit that makes a Delta table."""
    return f"{table}/_delta_log/{0:020d}.json"


def look(model: str) -> str:
    return f"looks/{model}.json"


def version_file(model: str, version: str, name: str) -> str:
    return f"models/{model}/{version}/{name}"


def traffic(kind: str, model: str, version: str | None = None, start: datetime | None = None) -> str:
    """The prefix of PROFILES or PREDICTIONS: of a model, of one of its versions, of one window of that."""
    parts = [kind, model, version, start and f"{start:{WINDOW_FORMAT}}"]
    return "/".join(part for part in parts if part) + "/"


def from_spool(kind: str, spool: Path, path: Path) -> str:
    """The key of a file or folder that replicas wrote as MODEL/VERSION/WINDOW/… in their spool."""
    return f"{kind}/{path.relative_to(spool).as_posix()}"


def event_number(key: str) -> int | None:
    """The number of an event by its key under `events`; None for another object, such as a folder's marker.

    >>> event_number("ledger/flights/00000012.json"), event_number("ledger/flights/head.json")
    (12, None)
    """
    found = EVENT_KEY.fullmatch(key)
    return int(found[1]) if found else None


def traffic_keys(keys: Iterable[str]) -> dict[str, TrafficKey]:
    """The keys of profiles or of files of predictions among these, and their parts."""
    return {key: parts for key in keys if (parts := parse_traffic(key))}


def parse_window(name: str) -> datetime | None:
    """The start of the window of a folder's name; None for the name of another folder."""
    try:
        return datetime.strptime(name, WINDOW_FORMAT)
    except ValueError:
        return None


def parse_traffic(key: str) -> TrafficKey | None:
    """Read a key under `traffic`; None for one that no replica wrote, such as a folder's marker.

    >>> parse_traffic("profiles/flights/4f1c/2013-07-01T0000/replica-1.bin")
    TrafficKey(version='4f1c', start=datetime.datetime(2013, 7, 1, 0, 0))
    """
    found = TRAFFIC_KEY.fullmatch(key)
    start = parse_window(found[2]) if found else None
    return TrafficKey(found[1], start) if found and start else None


def undivided_labels(model: str, digest: str) -> str:
    """The key of labels as releases until 0.1.0 stored them: all that were sent at once."""
    return f"labels/{model}/{digest}.parquet"


def labels_of(model: str, replica: str) -> str:
    """The prefix of labels for a replica's predictions."""
    return f"labels/{model}/{replica}/"


def labels(model: str, replica: str, part: LabelsKey) -> str:
    return f"{labels_of(model, replica)}{part.first:x}-{part.last:x}-{part.digest}-{part.part}.parquet"


def parse_labels(key: str) -> LabelsKey | None:
    """Read a key under `labels_of`; None for another object.

    >>> parse_labels("labels/flights/4f1c/0-ff-9a-0.parquet")
    LabelsKey(first=0, last=255, digest='9a', part=0)
    """
    found = LABELS_KEY.fullmatch(key)
    return LabelsKey(int(found[1], 16), int(found[2], 16), found[3], int(found[4])) if found else None


def window_page(model: str, start: datetime) -> str:
    return f"reports/{model}/{start:{WINDOW_FORMAT}}.html"


def step_result(key: str) -> str:
    return f"steps/{key}"
