"""Features: the columns of the training matrix and the functions that compute them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Columns = Mapping[str, np.ndarray]
"""Columns of one length: float64 for numbers (missing: NaN), datetime64, object for text (missing: None)."""

Record = dict[str, Any]
"""One event as a caller sends it: its values by column."""


@dataclass(frozen=True)
class Feature:
    """One column of the training matrix: a number or a category, computed from the columns it `needs`.

    `compute` takes those columns as arrays (n,) and returns an array (n,); None: the one column as it is.
    """

    name: str
    kind: Literal["number", "category"]
    needs: tuple[str, ...]
    compute: Callable[..., np.ndarray] | None = None

    def values(self, columns: Columns) -> np.ndarray:
        if self.compute is None:
            return columns[self.needs[0]]
        return self.compute(*(columns[name] for name in self.needs))


def number(name: str, *needs: str, compute: Callable[..., np.ndarray] | None = None) -> Feature:
    """A numeric feature: the column itself, or `compute` of the columns it needs."""
    return Feature(name, "number", needs or (name,), compute)


def category(name: str, *needs: str, compute: Callable[..., np.ndarray] | None = None) -> Feature:
    """A categorical feature; values unseen in training become the explicit category "unknown"."""
    return Feature(name, "category", needs or (name,), compute)
