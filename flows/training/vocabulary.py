"""The vocabulary of a categorical feature, counted while its rows are read."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from contracts.core.errors import PerennialError
from service.model import UNKNOWN

MOST_TEXTS = 2**24  # of a category: a float32 tells no more numbers apart
RARE = 20  # rows below which a category counts as unknown, so that "unknown" is learnt from something


class CategoryVocabulary:
    """The texts of one category, numbered as they come, and
    how many rows have each: of the older ones, and of all."""

    def __init__(self, feature: str):
        self._feature = feature
        self._numbers: dict[str, int] = {}
        self._older = self._all = np.zeros(0, np.int64)

    def numbered(self, values: np.ndarray, older: np.ndarray) -> np.ndarray:
        """The number of each of n values' texts, NaN where it is missing,
        float64 (n,); `older` is a mask of those that count as such."""
        ids, texts = pd.factorize(values)
        for text in texts:
            if not isinstance(text, str):
                raise PerennialError(f"feature {self._feature!r} is a category and has the value {text}, no "
                                     f"text; let its `compute` give texts")
            self._numbers.setdefault(text, len(self._numbers))
        if len(self._numbers) > MOST_TEXTS:
            raise PerennialError(f"feature {self._feature!r} is a category with more than {MOST_TEXTS:,} "
                                 f"texts; let its `compute` group them")
        numbers = np.array([*(self._numbers[text] for text in texts), -1])[ids]  # -1 finds the last
        self._older, self._all = self._counted(self._older, numbers[older]), self._counted(self._all, numbers)
        return np.where(numbers < 0, np.nan, numbers)

    def _counted(self, before: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return _added(before, numbers[numbers >= 0], None, len(self._numbers))

    @classmethod
    def of_all(cls, parts: Sequence["CategoryVocabulary"]) -> "CategoryVocabulary":
        """What several went through."""
        whole = cls(parts[0]._feature)
        for part in parts:
            for text in part._numbers:
                whole._numbers.setdefault(text, len(whole._numbers))
            places = np.array([whole._numbers[text] for text in part._numbers], int)
            whole._older, whole._all = (_added(before, places, counts, len(whole._numbers))
                                        for before, counts in ((whole._older, part._older),
                                                               (whole._all, part._all)))
        return whole

    def vocabulary(self, older: bool) -> tuple[str, ...]:
        """The texts that are not rare, in order."""
        counts = self._older if older else self._all
        return tuple(sorted(text for text, number in self._numbers.items() if counts[number] >= RARE))

    def codes(self, vocabulary: tuple[str, ...]) -> np.ndarray:
        """For each number the text's code in a model with this vocabulary, and NaN at the end, float32."""
        known = {text: code for code, text in enumerate(vocabulary, start=UNKNOWN + 1)}
        return np.array([*(known.get(text, UNKNOWN) for text in self._numbers), np.nan], np.float32)


def _added(before: np.ndarray, numbers: np.ndarray, times: np.ndarray | None, size: int) -> np.ndarray:
    counts = np.bincount(numbers, times, size).astype(np.int64)
    counts[:len(before)] += before
    return counts
