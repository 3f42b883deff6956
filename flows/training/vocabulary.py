"""The vocabulary of a categorical feature, counted while its rows are read."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from contracts.core.digests import JsonObject
from contracts.core.errors import PerennialError
from service.model import UNKNOWN

MAX_TEXTS = 2**24  # of a category: a float32 holds no larger numbers exactly
RARE = 20  # rows below which a value counts as unknown, so that "unknown" is learnt from some rows


class CategoryVocabulary:
    """The texts of one categorical feature, numbered in the order they occur, and
    how many of the older rows, and of all rows, have each."""

    def __init__(self, feature: str):
        self._feature = feature
        self._numbers: dict[str, int] = {}
        self._older = self._all = np.zeros(0, np.int64)

    def numbers(self, values: np.ndarray, older: np.ndarray) -> np.ndarray:
        """Count n values and give each text's number, float64 (n,), NaN
        where it is missing; `older`: which of them are older rows, bool (n,)."""
        ids, texts = pd.factorize(values)
        for text in texts:
            if not isinstance(text, str):
                raise PerennialError(f"feature {self._feature!r} is a category and has the value {text}, not "
                                     f"a text; let its `compute` return texts")
            self._numbers.setdefault(text, len(self._numbers))
        if len(self._numbers) > MAX_TEXTS:
            raise PerennialError(f"feature {self._feature!r} is a category with more than {MAX_TEXTS:,} "
                                 f"texts; let its `compute` group them")
        # A missing value's id is -1: it finds the appended -1.
        numbers = np.array([*(self._numbers[text] for text in texts), -1])[ids]
        self._older, self._all = self._counted(self._older, numbers[older]), self._counted(self._all, numbers)
        return np.where(numbers < 0, np.nan, numbers)

    def _counted(self, before: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return _added(before, numbers[numbers >= 0], None, len(self._numbers))

    def counts(self) -> JsonObject:
        """The texts in the order of their numbers and their counts, as JSON values."""
        return {"texts": [*self._numbers], "older": self._older.tolist(), "all": self._all.tolist()}

    @classmethod
    def from_counts(cls, feature: str, counts: JsonObject) -> "CategoryVocabulary":
        """The vocabulary that `counts` described."""
        vocabulary = cls(feature)
        vocabulary._numbers = {text: number for number, text in enumerate(counts["texts"])}
        vocabulary._older, vocabulary._all = (np.array(counts[rows], np.int64) for rows in ("older", "all"))
        return vocabulary

    @classmethod
    def of_all(cls, parts: Sequence["CategoryVocabulary"]) -> "CategoryVocabulary":
        """The counts of several, added up."""
        whole = cls(parts[0]._feature)
        for part in parts:
            for text in part._numbers:
                whole._numbers.setdefault(text, len(whole._numbers))
            numbers = np.array([whole._numbers[text] for text in part._numbers], int)
            whole._older, whole._all = (_added(before, numbers, counts, len(whole._numbers))
                                        for before, counts in ((whole._older, part._older),
                                                               (whole._all, part._all)))
        return whole

    def vocabulary(self, older: bool) -> tuple[str, ...]:
        """The texts that are not rare, sorted."""
        counts = self._older if older else self._all
        return tuple(sorted(text for text, number in self._numbers.items() if counts[number] >= RARE))

    def codes(self, vocabulary: tuple[str, ...]) -> np.ndarray:
        """Each number's code in a model with this vocabulary, and NaN at the end, float32 (numbers + 1,)."""
        codes = {text: code for code, text in enumerate(vocabulary, start=UNKNOWN + 1)}
        return np.array([*(codes.get(text, UNKNOWN) for text in self._numbers), np.nan], np.float32)


def _added(before: np.ndarray, numbers: np.ndarray, weights: np.ndarray | None, size: int) -> np.ndarray:
    """The counts `before`, (≤ size,), plus those of the numbers, int64 (size,)."""
    counts = np.bincount(numbers, weights, size).astype(np.int64)
    counts[:len(before)] += before
    return counts
