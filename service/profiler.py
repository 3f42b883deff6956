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
from service.atomic_files import write_atomically
from service.prediction_log import PredictionLog
from service.profiles import add, build_view, from_bytes, profile_rows, rows, to_bytes

Answered = tuple[Any, ...] | Counter[str]  # predictions, or how many values of each field were refused
REST_FACTOR = 15  # how many times as long as each column's work the thread rests, to leave requests the CPU
LARGE_ROUND = 1_000  # rows of a round from which on it rests
MAX_WAITING_BATCHES = 12  # of `rows` each, while the disk hangs; later rows are answered and not profiled
MAX_WINDOWS_AWAY = 32  # from the clock or from the recent traffic's median, within which a row is profiled
RECENT_BATCHES = 31  # that the median is of; few, so that it follows a replay that runs through a year
# Outside of these an event time is an error.
EARLIEST, LATEST = np.datetime64("1700-01-01"), np.datetime64("2200-01-01")

log = logging.getLogger("perennial.profiles")


class Profiler:
    """Profiles one replica's traffic in the background, and logs its predictions.

    Each event-time window has a file, which is replaced as it grows. A kill -9 loses at most the last
    `seconds` of traffic, or `rows` rows if those come sooner, and what arrives while they are being written:
    some 60,000 rows in all, where a core answers as many as it can. While writing fails, the newest `windows`
    are kept in memory; every loss is logged.

    A row is profiled if its event time is within MAX_WINDOWS_AWAY windows of the clock, or of the recent
    traffic's median, which follows a replay too. So a caller's wrong clock can't fill the disk: its rows are
    counted, not profiled. Refused records count in the window of their event time; where that is unreadable
    or too far away, in the window that grew last, or else in the clock's.
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
        self._recent: deque[np.datetime64] = deque(maxlen=RECENT_BATCHES)
        self._parts: dict[datetime, Part] = {}  # by window; the one that grew last is last
        self._lock, self._wake, self._closing = Lock(), Event(), False
        self._thread = Thread(target=self._run, name="profiler", daemon=True)
        self._thread.start()

    def add(self, columns: Columns, probabilities: np.ndarray, classes: np.ndarray, first: int = 0) -> None:
        """Queue predictions, whose ids count on from `first`; the arrays must not change afterwards."""
        numbers = np.arange(first, first + len(classes))
        self._queue(columns[self._contract.event_time], (columns, probabilities, classes, numbers))

    def bad(self, times: np.ndarray, fields: Iterable[str] = ()) -> None:
        """Queue refused records: their event times (NaT: unreadable) and the fields at fault."""
        self._queue(times, Counter(fields))

    def _queue(self, times: np.ndarray, answered: Answered) -> None:
        with self._lock:
            if self._waiting >= MAX_WAITING_BATCHES * self._rows:
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
            self._wake.wait(self._seconds / 2)  # the other half is for profiling and writing
            self._wake.clear()
            closing = self._closing  # read before the queue: what was added before `close` is in this round
            try:
                self._process_queue()
            except Exception:
                log.exception("%s: traffic was not profiled", self._folder)
            self._log.save()
            for part in self._parts.values():
                self._save(part)

    def _process_queue(self) -> None:
        with self._lock:
            cumulative = np.cumsum([len(times) for times, _ in self._batches])
            # About `rows` rows a round: larger arrays hold up requests.
            end = len(cumulative) if self._closing else int(np.searchsorted(cumulative, self._rows)) + 1
            batches, skipped = self._batches[:end], self._skipped
            self._batches, self._skipped = self._batches[end:], 0
            self._waiting -= sum(len(times) for times, _ in batches)
        if self._waiting >= self._rows:
            self._wake.set()
        self._busy = sum(len(times) for times, _ in batches) >= LARGE_ROUND
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
        sampled = (batch[name] for batch in columns[::len(columns) // RECENT_BATCHES + 1])
        self._recent.extend(_median(times[_is_plausible(times)]) for times in sampled
                            if _is_plausible(times).any())
        is_near = self._is_near(np.concatenate([batch[name] for batch in columns]))
        index = _index_of(is_near)
        selected = {name: np.concatenate([batch[name] for batch in columns])[index]
                 for name in self._with_rests(columns[0])}
        probabilities, classes, numbers = (np.concatenate(parts)[index] for parts in answers)
        for start, _, mask in by_window(self._contract.drift.window, selected[name]):
            index_in_window = _index_of(mask)
            in_window = {name: selected[name][index_in_window] for name in self._with_rests(selected)}
            answers_in_window = probabilities[index_in_window], classes[index_in_window]
            self._log.add(start.strftime(WINDOW_FORMAT), numbers[index_in_window], in_window,
                          answers_in_window[0], self._with_rests)
            self._add_to_window(start, profile_rows(self._contract, self._bins, in_window, *answers_in_window,
                                                    self._with_rests))
        if far_rows := int((~is_near).sum()):
            log.error("%s: %d rows were counted, not profiled: their event times are far from all others",
                      self._folder, far_rows)
            self._add_to_window(self._latest_window(), build_view({}, unprofiled=far_rows))

    def _with_rests(self, columns: Iterable[str]) -> Iterator[str]:
        """The columns one after another, with a rest after the work
        on each, in which requests have the interpreter to themselves."""
        for name in columns:
            begun = thread_time()
            yield name
            # No rest while the next round is already full.
            if self._busy and not self._closing and self._waiting < self._rows:
                sleep(REST_FACTOR * (thread_time() - begun))

    def _count_refused(self, times: np.ndarray, at_fault: Counter[str]) -> None:
        is_near = self._is_near(times)
        for start, _, index_in_window in by_window(self._contract.drift.window, times[is_near]):
            self._add_to_window(start, build_view({}, bad=int(index_in_window.sum())))
        # The fields at fault are counted in one window, whichever their records' is.
        view = build_view({}, bad=int((~is_near).sum()), at_fault=at_fault)
        self._add_to_window(self._latest_window(), view)

    def _is_near(self, times: np.ndarray) -> np.ndarray:
        """Whether each event time lies in a window to profile, bool (n,)."""
        plausible = _is_plausible(times)
        typical = np.array(self._recent) if self._recent else times[plausible]
        centres = [np.datetime64("now"), *([_median(typical)] if len(typical) else [])]
        distance = MAX_WINDOWS_AWAY * np.timedelta64(self._contract.drift.window)
        return np.asarray(plausible & np.any([abs(times - centre) <= distance for centre in centres], axis=0))

    def _latest_window(self) -> datetime:
        return next(reversed(self._parts), None) or self._contract.window_of(np.datetime64("now").item())[0]

    def _add_to_window(self, start: datetime, view: DatasetProfileView) -> None:
        path = self._folder / start.strftime(WINDOW_FORMAT) / f"{self._replica}.bin"
        if part := self._parts.pop(start, None):
            view = add(part.view, view, self._with_rests)
        elif path.exists():
            view = add(from_bytes(path.read_bytes()), view, self._with_rests)
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
            except Exception as error:  # whatever it is, the thread must go on
                log.error("%s: not written, kept for the next try: %s", part.path, error)
        return part.saved


@dataclass
class Part:
    """One replica's profile of one window, and its file."""

    path: Path
    view: DatasetProfileView
    saved: bool = False


def _index_of(mask: np.ndarray) -> np.ndarray | slice:
    """An index of the rows of a mask; a slice, which copies nothing, where it is all of them."""
    return slice(None) if mask.all() else mask


def _is_plausible(times: np.ndarray) -> np.ndarray:
    return (times >= EARLIEST) & (times < LATEST)  # False for NaT


def _median(times: np.ndarray) -> np.datetime64:
    middle: np.datetime64 = np.sort(times)[len(times) // 2]
    return middle
