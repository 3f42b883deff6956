"""Windows of event time: fixed lengths, counted from a Monday."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np

WEEK_ZERO = datetime(1970, 1, 5)  # a Monday: windows of a week start on Mondays


def window_of(time: datetime, length: timedelta) -> tuple[datetime, datetime]:
    """The half-open window [start, end) of event time that holds `time`."""
    start = WEEK_ZERO + (time - WEEK_ZERO) // length * length
    return start, start + length


WINDOW_FORMAT = "%Y-%m-%dT%H%M"  # of a window's folder


def by_window(length: timedelta, times: np.ndarray) -> Iterator[tuple[datetime, datetime, np.ndarray]]:
    """Each window that holds some of the event times, oldest
    first: its start, its end and a mask of its rows."""
    remaining = np.ones(len(times), bool)
    while remaining.any():
        start, end = window_of(times[remaining].min().item(), length)
        inside = remaining & (times < np.datetime64(end))
        yield start, end, inside
        remaining &= ~inside
