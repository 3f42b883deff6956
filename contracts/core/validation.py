"""Check a batch of rows against the contract, and set the bad rows aside."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import pandas as pd

from contracts.core.cells import read_cells
from contracts.core.contract import Contract
from contracts.core.rules import ROW_RULE, RuleViolation, find_violations
from contracts.core.verdict import BrokenRule, DataFigures, DataVerdict, Example, Outcome

EXAMPLES = 3


@dataclass(frozen=True)
class CheckedBatch:
    """A batch after its contract: the rows that passed, the
    Verdict, and the `faults` of `rows`, the whole batch."""

    good: pd.DataFrame
    verdict: DataVerdict
    rows: pd.DataFrame
    faults: tuple[RuleViolation, ...] = ()

    @cached_property
    def bad(self) -> pd.DataFrame:
        """The rows set aside, with their `reasons`: told when asked
        for, for a batch that is refused may have millions."""
        reasons = _reasons(self.faults)
        return self.rows.loc[reasons.index].assign(reasons=reasons).reset_index(drop=True)


def check_batch(contract: Contract, batch: pd.DataFrame) -> CheckedBatch:
    """Hold a batch against the contract's schema; units are read from `batch.attrs["units"]` where stated.

    Cells of another type, rows that repeat an earlier one's key and rows that break a rule are set aside;
    a missing column, a changed unit and a column of which most cells are of another type refuse the batch.
    """
    batch = batch.reset_index(drop=True)
    broken = _missing(contract, batch) + _changed_units(contract, batch)
    if broken:
        return _refused(batch, broken)
    rows = pd.DataFrame({name: read_cells(batch[name], contract.python_type(name))
                         for name in contract.columns}, copy=False)
    odd = _odd_cells(contract, batch, rows)
    broken = _changed_types(batch, odd)
    if broken:
        return _refused(rows, broken)
    typed = _typed(contract, _without(rows, _marked(odd, len(rows))))
    wrong = [*odd, *find_violations(contract.schema.to_schema(), typed)]
    broken = [f"{fault.column}: {fault.rule}, found {text}" for fault in wrong if fault.index is None
              for text in fault.texts()]
    if broken:
        return _refused(rows, broken)
    bad = _marked(wrong, len(rows))
    again = _repeated(contract, typed, bad)
    bad |= _marked(again, len(rows))
    wrong += again
    verdict = _data_verdict(contract, len(rows), int(bad.sum()), _by_rule(wrong))
    return CheckedBatch(_without(typed, bad).reset_index(drop=True), verdict, rows, tuple(wrong))


def _marked(wrong: list[RuleViolation], rows: int) -> np.ndarray:
    """Whether a row has any of these faults, by its index in the batch."""
    marked = np.zeros(rows, dtype=bool)
    for fault in wrong:
        marked[fault.index] = True
    return marked


def _without(rows: pd.DataFrame, marked: np.ndarray) -> pd.DataFrame:
    return rows[~marked[rows.index]] if marked.any() else rows


def _typed(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers and bools as the schema declares them:
    no cell is missing there any more, unless it may be."""
    return pd.DataFrame({name: values.astype(contract.columns[name].dtype.type)
                         if contract.python_type(name) in (int, bool) else values
                         for name, values in rows.items()}, copy=False)


def _reasons(wrong: tuple[RuleViolation, ...]) -> pd.Series:
    """All that is wrong with each bad row, by its index."""
    said: dict[int, str] = {}
    for fault in wrong:
        rule = f"{fault.column}: {fault.rule}"
        texts = ([rule] * len(fault.rows) if fault.column == ROW_RULE
                 else [f"{rule}, found {text}" for text in fault.texts()])
        for index, text in zip(fault.rows.tolist(), texts):
            said[index] = f"{said[index]}; {text}" if index in said else text
    index = sorted(said)
    return pd.Series([said[row] for row in index], index, dtype="str")


def _missing(contract: Contract, batch: pd.DataFrame) -> list[str]:
    return [f"{name}: column missing, rule: the schema declares it" for name in contract.columns
            if name not in batch]


def _changed_units(contract: Contract, batch: pd.DataFrame) -> list[str]:
    stated = batch.attrs.get("units", {})
    declared = {name: spec.metadata["unit"] for name, spec in contract.columns.items()}
    return [
        f"{name}: unit {unit!r}, rule: {declared[name]!r}"
        for name, unit in stated.items() if name in declared and unit != declared[name]
    ]


def _odd_cells(contract: Contract, batch: pd.DataFrame, rows: pd.DataFrame) -> list[RuleViolation]:
    """The cells that are not of the declared type, the empty
    ones of numpy's whole numbers and bools among them."""
    found = []
    for name, spec in contract.columns.items():
        kind, unread = contract.python_type(name), rows[name].isna().to_numpy()
        if not (kind in (int, bool) and isinstance(spec.dtype.type, np.dtype)):  # these are never empty
            unread = unread & batch[name].notna().to_numpy()
        if unread.any():
            rule = f"type {kind.__name__}{' without a zone' if kind is datetime else ''}"
            found.append(RuleViolation(name, rule, np.flatnonzero(unread), batch[name][unread]))
    return found


def _changed_types(batch: pd.DataFrame, odd: list[RuleViolation]) -> list[str]:
    """The columns of which most values are of another type."""
    wrong = [RuleViolation(fault.column, fault.rule, fault.rows[there], fault.found[there])
             for fault in odd if (there := fault.found.notna().to_numpy()).any()]
    return [_reason(rule, f", found {batch[rule.column].dtype}") for rule in _by_rule(wrong)
            if rule.count > batch[rule.column].notna().sum() / 2]


def _repeated(contract: Contract, rows: pd.DataFrame, bad: np.ndarray) -> list[RuleViolation]:
    """The rows whose key an earlier row has, among those that are not bad."""
    if not contract.key:
        return []
    key = rows[list(contract.key)]
    alike = key[pd.Series(_mixed(key), key.index).duplicated(keep=False) & ~bad[key.index]]
    again = alike[alike.duplicated()]
    return ([RuleViolation(ROW_RULE, "an earlier row has its key", again.index.to_numpy(), again)]
            if len(again) else [])


def _mixed(key: pd.DataFrame) -> np.ndarray:
    """A number for each row, the same where the key is: those
    that share one are few, and are compared in full."""
    mixed = np.zeros(len(key), dtype=np.uint64)
    factors = np.random.default_rng(0).integers(2**63, size=key.shape[1], dtype=np.uint64) * 2 + 1
    for factor, (_, values) in zip(factors, key.items()):
        whole = isinstance(values.dtype, np.dtype) and values.dtype.kind in "iM"
        numbers = values.to_numpy().astype(np.int64) if whole else values.factorize()[0]
        mixed += numbers.astype(np.uint64) * factor
    return mixed


def _refused(rows: pd.DataFrame, reasons: list[str]) -> CheckedBatch:
    figures = DataFigures(rows=len(rows), bad=len(rows))
    verdict = DataVerdict(outcome=Outcome.FAILED, reasons=tuple(reasons), figures=figures)
    return CheckedBatch(rows.iloc[:0], verdict, rows.iloc[:0])


def _by_rule(violations: list[RuleViolation]) -> list[BrokenRule]:
    return [BrokenRule(column=violation.column, rule=violation.rule, count=len(violation.rows),
                       examples=[Example(row=int(row), value=text)
                                 for row, text in zip(violation.rows, violation.texts(EXAMPLES))])
            for violation in sorted(violations, key=lambda violation: (violation.column, violation.rule))]


def _data_verdict(contract: Contract, rows: int, bad: int, by_rule: list[BrokenRule]) -> DataVerdict:
    figures = DataFigures(rows=rows, bad=bad, limit=contract.bad_rows, by_rule=by_rule)
    if rows == 0:
        return DataVerdict(outcome=Outcome.INSUFFICIENT, reasons=("the batch has no rows",), figures=figures)
    if bad / rows <= contract.bad_rows:
        return DataVerdict(outcome=Outcome.PASSED, figures=figures)
    reason = f"{bad} of {rows} rows are bad, the limit is {contract.bad_rows:.2%}"
    return DataVerdict(outcome=Outcome.FAILED, reasons=(reason, *map(_reason, by_rule)), figures=figures)


def _reason(rule: BrokenRule, more: str = "") -> str:
    examples = ", ".join(example.value for example in rule.examples)
    return f"{rule.column}: {rule.rule}{more}, {rule.count} rows, such as {examples}"
