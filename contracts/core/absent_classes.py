"""Classes without a labelled row in the gate's window: how rare they are, and how long to wait for one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil, log

import numpy as np

from contracts.core.contract import Contract
from contracts.core.gate_verdict import AbsentClass

CHANCE = 0.95  # that a row of the class has come after the time that is named
DAY = timedelta(days=1)


@dataclass(frozen=True)
class ClassHistory:
    """The labelled rows before the gate's window, which began at `until`: how many of each class, and the
    event time of the newest; a class without any is absent in both."""

    until: datetime
    rows: Mapping[str, int]
    newest: Mapping[str, datetime]


def has_every_class(contract: Contract, labels: np.ndarray) -> bool:
    """Whether each class has a row; `labels`: class indices (n,)."""
    return len(np.unique(labels)) == len(contract.label.classes)


def absent_classes(contract: Contract, labels: np.ndarray,
                   history: ClassHistory | None = None) -> list[AbsentClass]:
    """The classes that no row of the gate's window has; `labels`: class indices (n,) of these rows."""
    present = np.bincount(labels, minlength=len(contract.label.classes)) > 0
    return [_absent_class(contract, name, len(labels), history)
            for name, is_present in zip(contract.label.classes, present) if not is_present]


def _absent_class(contract: Contract, name: str, rows: int, history: ClassHistory | None) -> AbsentClass:
    """Of a class with share p one of n rows is, with a chance of 1 - (1 - p)^n; n is solved for CHANCE."""
    before = sum(history.rows.values()) if history else 0
    if history is None or not before:
        return AbsentClass(name=name)
    known = history.rows.get(name, 0)
    if not known:
        return AbsentClass(name=name, share=0.0, rows_before=before)
    window, share = contract.gate.window, known / before
    wait = ceil(log(1 - CHANCE) / log(1 - share)) if share < 1 else 1
    reach = window + history.until - history.newest[name]
    return AbsentClass(name=name, share=share, rows_before=before, rows_until=wait,
                       days_until=wait / rows * (window / DAY) if rows else None,
                       window_days=ceil(reach / DAY))


def absent_reasons(contract: Contract, absent: Sequence[AbsentClass]) -> list[str]:
    """A sentence on each absent class: that metrics are undefined without it, and what can be done."""
    window = _days(contract.gate.window / DAY)
    return [f"no labelled row of class {one.name} in the newest {window}, so that AUC and recall are "
            f"undefined{_remedy(one)}" for one in absent]


def _remedy(absent: AbsentClass) -> str:
    if absent.share is None:
        return ""
    if not absent.share:
        return (f": none of the {absent.rows_before:,} rows before has it either; wait for the first, or "
                f"take it out of the label's classes")
    days = "" if absent.days_until is None else f" ({_days(absent.days_until)})"
    return (f": one in {1 / absent.share:,.0f} of the {absent.rows_before:,} rows before has it; expect one "
            f"within {absent.rows_until:,} more rows{days}, by a chance of {CHANCE:.0%}, or widen "
            f"Gate.window to {absent.window_days} days, which holds the last one")


def _days(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"
