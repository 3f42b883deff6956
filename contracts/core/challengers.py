"""Which rows a challenger is trained on, and which of several challengers takes part: pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from contracts.core.challenger_policy import Challenger
from contracts.core.errors import PerennialError
from contracts.core.gate import paired_difference
from contracts.core.policies import Gate


@dataclass(frozen=True)
class RowChoice:
    """The rows of a challenger: those from `since` on, weighted by their age before `latest`. `scale`: of the
    weights, so that they are 1 in the mean and the booster's limits mean what they say."""

    latest: np.datetime64
    since: datetime | None = None
    half_life: timedelta | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, challenger: Challenger, times: np.ndarray, latest: datetime) -> "RowChoice":
        """The choice of a challenger from rows before `latest`; `times`: those of an even sample of them.
        Raises PerennialError where none is left."""
        end = np.datetime64(latest, "s")
        since = latest - challenger.newest if challenger.newest else None
        inside = times[times < end]
        if since:
            inside = inside[inside >= np.datetime64(since, "s")]
        if not len(inside):
            raise PerennialError(f"the challenger {challenger.name!r} has no row of [{since}, {latest}) to "
                                 f"learn from; lengthen its `newest`, or ingest more")
        choice = cls(end, since, challenger.half_life)
        weights = choice.weights(inside)
        mean = 1.0 if weights is None else float(weights.mean())
        return cls(end, since, challenger.half_life, 1 / mean)

    def weights(self, times: np.ndarray) -> np.ndarray | None:
        """The weight of each row, float32 (n,); None where all count the same."""
        if self.half_life is None:
            return None
        seconds = (self.latest - times.astype("datetime64[s]")).astype(np.float64)
        return np.asarray(0.5 ** (seconds / self.half_life.total_seconds()) * self.scale, np.float32)


def best_challenger(limits: Gate, labels: np.ndarray, answers: Sequence[np.ndarray]) -> int:
    """The index of the challenger to choose, by the answers of all, (n, classes) each, to the same rows; the
    simplest is the first. A later one is chosen if it is better than the choice so far by the paired
    interval."""
    best = 0
    for index in range(1, len(answers)):
        if paired_difference(limits, labels, answers[index], answers[best]).high < 0:
            best = index
    return best
