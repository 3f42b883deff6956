"""Profile a replica's traffic in the background, window by window, and save it at intervals."""

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Lock, Thread
from time import sleep, thread_time
from typing import Any
from uuid import uuid4

import numpy as np
from whylogs.core import DatasetProfileView

from contracts.core.binning import Bins
from contracts.core.contract import Contract
from contracts.core.features import Columns
from contracts.core.windows import WINDOW_FORMAT, by_window
from service.files import write_atomically
from service.prediction_log import PredictionLog
from service.profiles import add, build_view, from_bytes, profile_rows, rows, to_bytes

Answered = tuple[Any, ...] | Counter[str]  # what was answered, or how many values of each field were refused
# Times as long as each step of a background profile takes, so that it is spread over the time that it has.
RESTS = 15
BUSY = 1_000  # rows at a time from which on the profile is made with rests
BACKLOG = 12  # batches of `rows` that may wait while a disk hangs; later rows are served and not profiled
REACH = 32  # windows around the clock, and around what the traffic is about, that are profiled
RECENT = 31  # batches whose median says what the traffic is about; few, so that a replay's year is followed
# Event times that can be anybody's.
EARLIEST, LATEST = np.datetime64("1700-01-01"), np.datetime64("2200-01-01")

log = logging.getLogger("perennial.profiles")


class Profiler:
    """Profiles one replica's traffic in the background: a file for each
    event-time window, replaced as it grows; and logs its predictions beside it.

    A kill -9 loses at most the last `seconds` of traffic, or `rows` rows where those come sooner, and what
    arrives while these are being written: some 60,000 rows in all, where a core answers as many as it can.
    While writing fails, the newest `windows` wait in memory; every loss is logged. A window is profiled when
    it lies within REACH windows of the clock or of the recent traffic's median, which holds in a replay too.
    So a caller's wrong clock can't fill the disk: its rows are counted, not profiled. Refused records count
    in the window of their event time. Where that is unreadable or far, they count in the window that grew
    last, or the clock's.
    """

    def __init__(self, contract: Contract, bins: Mapping[str, Bins], version: str, folder: Path,
                 seconds: float = 5.0, rows: int = 25_000, windows: int = 8, replica: str | None = None):
        self._contract, self._bins, self._version, self._folder = (contract, bins, version,
                                                                   folder / contract.name / version)
        self._seconds, self._rows, self._windows = seconds, rows, windows
        self._replica = replica or uuid4().hex
        self._log = PredictionLog(contract, self._folder, self._replica)
        self._batches: list[tuple[np.ndarray, Answered]] = []  # with their event times
        self._waiting = self._skipped = 0
        self._busy = False
        self._recent: deque[np.datetime64] = deque(maxlen=RECENT)
        self._parts: dict[datetime, Part] = {}  # by window; the one that grew last is last
        self._lock, self._wake, self._closing = Lock(), Event(), False
        self._thread = Thread(target=self._run, name="profiler", daemon=True)
        self._thread.start()

    def add(self, columns: Columns, probabilities: np.ndarray, classes: np.ndarray, first: int = 0) -> None:
        """Take note of predictions, whose ids count on from `first`;
        the arrays are read later, so they must not change."""
        numbers = np.arange(first, first + len(classes))
        self._note(columns[self._contract.event_time], (columns, probabilities, classes, numbers))

    def bad(self, times: np.ndarray, fields: Iterable[str] = ()) -> None:
        """Take note of records that were refused: their event times,
        NaT where that can't be read, and the fields at fault."""
        self._note(times, Counter(fields))

    def _note(self, times: np.ndarray, answered: Answered) -> None:
        with self._lock:
            if self._waiting >= BACKLOG * self._rows:
                self._skipped += len(times)
                return
            self._batches.append((times, answered))
            self._waiting += len(times)
        if self._waiting >= self._rows:
            self._wake.set()

    def close(self) -> None:
        """Write what is left and stop."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(self._seconds / 2)  # the other half is for making and writing the profile
            self._wake.clear()
            closing = self._closing  # read first: what came before `close` is in this round
            try:
                self._absorb()
            except Exception:
                log.exception("%s: traffic was not profiled", self._folder)
            self._log.save()
            for part in self._parts.values():
                self._save(part)

    def _absorb(self) -> None:
        with self._lock:
            upto = np.cumsum([len(times) for times, _ in self._batches])
            # No more: large arrays hold requests up.
            end = len(upto) if self._closing else int(np.searchsorted(upto, self._rows)) + 1
            batches, skipped = self._batches[:end], self._skipped
            self._batches, self._skipped = self._batches[end:], 0
            self._waiting -= sum(len(times) for times, _ in batches)
        if self._waiting >= self._rows:
            self._wake.set()
        self._busy = sum(len(times) for times, _ in batches) >= BUSY
        if skipped:
            log.error("%s: %d rows were not profiled: writing can't keep up", self._folder, skipped)
        answered = [answer for _, answer in batches if isinstance(answer, tuple)]
        refused = [(times, fields) for times, fields in batches if isinstance(fields, Counter)]
        if answered:
            self._profile(*zip(*answered))
        if refused:
            self._count_refused(np.concatenate([times for times, _ in refused]),
                                sum((fields for _, fields in refused), Counter()))

    def _profile(self, columns: tuple[Columns, ...], *answers: tuple[np.ndarray, ...]) -> None:
        name = self._contract.event_time
        some = (batch[name] for batch in columns[::len(columns) // RECENT + 1])
        self._recent.extend(_middle(times[_sane(times)]) for times in some if _sane(times).any())
        near = self._near(np.concatenate([batch[name] for batch in columns]))
        kept = _chosen(near)
        whole = {name: np.concatenate([batch[name] for batch in columns])[kept]
                 for name in self._rested(columns[0])}
        probabilities, classes, numbers = (np.concatenate(parts)[kept] for parts in answers)
        for start, _, mask in by_window(self._contract.drift.window, whole[name]):
            here = _chosen(mask)
            inside = {name: whole[name][here] for name in self._rested(whole)}
            self._log.add(start.strftime(WINDOW_FORMAT), numbers[here], inside, probabilities[here],
                          self._rested)
            self._grow(start,
                       profile_rows(self._contract, self._bins, inside, probabilities[here], classes[here],
                                    self._rested))
        if far := int((~near).sum()):
            log.error("%s: %d rows were counted, not profiled: their event times are far from all others",
                      self._folder, far)
            self._grow(self._latest(), build_view({}, elsewhere=far))

    def _rested(self, columns: Iterable[str]) -> Iterator[str]:
        """The columns one after another, with a rest after the work
        on each, in which the requests have Python to themselves."""
        for name in columns:
            begun = thread_time()
            yield name
            # While the next profile waits, there is no rest.
            if self._busy and not self._closing and self._waiting < self._rows:
                sleep(RESTS * (thread_time() - begun))

    def _count_refused(self, times: np.ndarray, at_fault: Counter[str]) -> None:
        near = self._near(times)
        for start, _, here in by_window(self._contract.drift.window, times[near]):
            self._grow(start, build_view({}, bad=int(here.sum())))
        # The fields of all, in one window.
        self._grow(self._latest(), build_view({}, bad=int((~near).sum()), at_fault=at_fault))

    def _near(self, times: np.ndarray) -> np.ndarray:
        """A mask of the event times that lie in windows to profile."""
        sane = _sane(times)
        usual = np.array(self._recent) if self._recent else times[sane]
        centres = [np.datetime64("now"), *([_middle(usual)] if len(usual) else [])]
        reach = REACH * np.timedelta64(self._contract.drift.window)
        return np.asarray(sane & np.any([abs(times - centre) <= reach for centre in centres], axis=0))

    def _latest(self) -> datetime:
        return next(reversed(self._parts), None) or self._contract.window_of(np.datetime64("now").item())[0]

    def _grow(self, start: datetime, view: DatasetProfileView) -> None:
        path = self._folder / start.strftime(WINDOW_FORMAT) / f"{self._replica}.bin"
        if part := self._parts.pop(start, None):
            view = add(part.view, view, self._rested)
        elif path.exists():
            view = add(from_bytes(path.read_bytes()), view, self._rested)
        end = start + self._contract.drift.window
        view.metadata.update(
            model=self._contract.name, version=self._version, start=start.isoformat(), end=end.isoformat())
        self._parts[start] = Part(path, view)
        if len(self._parts) > self._windows:
            evicted = self._parts.pop(next(iter(self._parts)))
            if not self._save(evicted):
                log.error("%s: %d rows are lost to the profile", evicted.path, rows(evicted.view))

    def _save(self, part: "Part") -> bool:
        if not part.saved:
            try:
                write_atomically(part.path, to_bytes(part.view))
                part.saved = True
            except Exception as error:  # whatever it is, the thread goes on
                log.error("%s: not written, kept for the next try: %s", part.path, error)
        return part.saved


@dataclass
class Part:
    """What one replica saw of one window, and the file that says so."""

    path: Path
    view: DatasetProfileView
    saved: bool = False


def _chosen(mask: np.ndarray) -> np.ndarray | slice:
    """What indexes the same rows, without a copy where it is all of them."""
    return slice(None) if mask.all() else mask


def _sane(times: np.ndarray) -> np.ndarray:
    return (times >= EARLIEST) & (times < LATEST)  # NaT is neither


def _middle(times: np.ndarray) -> np.datetime64:
    middle: np.datetime64 = np.sort(times)[len(times) // 2]
    return middle
