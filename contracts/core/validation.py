"""Check a batch of rows against the contract, and set the bad rows aside."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import pandas as pd

from contracts.core.cells import read_cells
from contracts.core.column_rules import ROW_RULE, RuleViolation, find_violations
from contracts.core.contract import Contract
from contracts.core.verdict import BrokenRule, DataFigures, DataVerdict, Example, Outcome

EXAMPLES = 3


@dataclass(frozen=True)
class CheckedBatch:
    """The `good` rows of a batch, its verdict, and the `violations` found in `rows`, the whole batch."""

    good: pd.DataFrame
    verdict: DataVerdict
    rows: pd.DataFrame
    violations: tuple[RuleViolation, ...] = ()

    @cached_property
    def bad(self) -> pd.DataFrame:
        """The rows set aside, with their `reasons`; made when first asked for, as they may be millions."""
        reasons = _reasons(self.violations)
        return self.rows.loc[reasons.index].assign(reasons=reasons).reset_index(drop=True)


def check_batch(contract: Contract, batch: pd.DataFrame) -> CheckedBatch:
    """Check a batch against the contract's schema, and units where `batch.attrs["units"]` states them.

    Rows with a cell of the wrong type, rows that repeat an earlier row's key and rows that break a rule are
    set aside. A missing column, a changed unit, or a column mostly of the wrong type fails the whole batch.
    """
    batch = batch.reset_index(drop=True)
    problems = _missing_columns(contract, batch) + _changed_units(contract, batch)
    if problems:
        return _refused(batch, problems)
    rows = pd.DataFrame({name: read_cells(batch[name], contract.python_type(name))
                         for name in contract.columns}, copy=False)
    mistyped = _mistyped_cells(contract, batch, rows)
    changed = _changed_types(batch, mistyped)
    if changed:
        reasons = [_reason(rule, f", found {batch[rule.column].dtype}") for rule in changed]
        return _refused(rows, reasons, changed)
    cast = _cast_to_schema(contract, _drop_rows(rows, _row_mask(mistyped, len(rows))))
    violations = [*mistyped, *find_violations(contract.schema.to_schema(), cast)]
    problems = [f"{violation.column}: {violation.rule}, found {text}" for violation in violations
                if violation.index is None for text in violation.texts()]
    if problems:
        return _refused(rows, problems)
    bad = _row_mask(violations, len(rows))
    duplicates = _duplicate_keys(contract, cast, bad)
    bad |= _row_mask(duplicates, len(rows))
    violations += duplicates
    verdict = _data_verdict(contract, len(rows), int(bad.sum()), _by_rule(violations))
    return CheckedBatch(_drop_rows(cast, bad).reset_index(drop=True), verdict, rows, tuple(violations))


def _row_mask(violations: list[RuleViolation], rows: int) -> np.ndarray:
    """For each row of the batch, bool (rows,), whether it breaks any of these rules."""
    mask = np.zeros(rows, dtype=bool)
    for violation in violations:
        mask[violation.index] = True
    return mask


def _drop_rows(rows: pd.DataFrame, mask: np.ndarray) -> pd.DataFrame:
    return rows[~mask[rows.index]] if mask.any() else rows


def _cast_to_schema(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """Cast integers and bools to the types that the schema declares; their missing cells are gone by now."""
    return pd.DataFrame({name: values.astype(contract.columns[name].dtype.type)
                         if contract.python_type(name) in (int, bool) else values
                         for name, values in rows.items()}, copy=False)


def _reasons(violations: tuple[RuleViolation, ...]) -> pd.Series:
    """By the index of each bad row, all the rules that it breaks."""
    texts_by_row: dict[int, str] = {}
    for violation in violations:
        rule = f"{violation.column}: {violation.rule}"
        texts = ([rule] * len(violation.rows) if violation.column == ROW_RULE
                 else [f"{rule}, found {text}" for text in violation.texts()])
        for index, text in zip(violation.rows.tolist(), texts):
            texts_by_row[index] = f"{texts_by_row[index]}; {text}" if index in texts_by_row else text
    index = sorted(texts_by_row)
    return pd.Series([texts_by_row[row] for row in index], index, dtype="str")


def _missing_columns(contract: Contract, batch: pd.DataFrame) -> list[str]:
    return [f"{name}: column missing, rule: the schema declares it" for name in contract.columns
            if name not in batch]


def _changed_units(contract: Contract, batch: pd.DataFrame) -> list[str]:
    stated = batch.attrs.get("units", {})
    declared = {name: spec.metadata["unit"] for name, spec in contract.columns.items()}
    return [
        f"{name}: unit {unit!r}, rule: {declared[name]!r}"
        for name, unit in stated.items() if name in declared and unit != declared[name]
    ]


def _mistyped_cells(contract: Contract, batch: pd.DataFrame, rows: pd.DataFrame) -> list[RuleViolation]:
    """The cells that are not of the declared type; of numpy's integers and bools also the empty ones."""
    found = []
    for name, spec in contract.columns.items():
        expected, unreadable = contract.python_type(name), rows[name].isna().to_numpy()
        if not (expected in (int, bool) and isinstance(spec.dtype.type, np.dtype)):  # these can't be empty
            unreadable = unreadable & batch[name].notna().to_numpy()
        if unreadable.any():
            rule = f"type {expected.__name__}{' without a zone' if expected is datetime else ''}"
            found.append(RuleViolation(name, rule, np.flatnonzero(unreadable), batch[name][unreadable]))
    return found


def _changed_types(batch: pd.DataFrame, mistyped: list[RuleViolation]) -> list[BrokenRule]:
    """The columns of which most values are not of the declared type."""
    violations = [
        RuleViolation(violation.column, violation.rule, violation.rows[present], violation.found[present])
        for violation in mistyped if (present := violation.found.notna().to_numpy()).any()]
    return [rule for rule in _by_rule(violations) if rule.count > batch[rule.column].notna().sum() / 2]


def _duplicate_keys(contract: Contract, rows: pd.DataFrame, bad: np.ndarray) -> list[RuleViolation]:
    """Of the rows that are not bad, those whose key an earlier row has."""
    if not contract.key:
        return []
    key = rows[list(contract.key)]
    candidates = key[pd.Series(_key_hashes(key), key.index).duplicated(keep=False) & ~bad[key.index]]
    duplicates = candidates[candidates.duplicated()]
    return ([RuleViolation(ROW_RULE, "an earlier row has its key", duplicates.index.to_numpy(), duplicates)]
            if len(duplicates) else [])


def _key_hashes(key: pd.DataFrame) -> np.ndarray:
    """A hash of each row's key, uint64; rows that share one are few, and their keys are compared in full."""
    hashes = np.zeros(len(key), dtype=np.uint64)
    factors = np.random.default_rng(0).integers(2**63, size=key.shape[1], dtype=np.uint64) * 2 + 1
    for factor, (_, values) in zip(factors, key.items()):
        is_integer = isinstance(values.dtype, np.dtype) and values.dtype.kind in "iM"
        numbers = values.to_numpy().astype(np.int64) if is_integer else values.factorize()[0]
        hashes += numbers.astype(np.uint64) * factor
    return hashes


def _refused(rows: pd.DataFrame, reasons: list[str], by_rule: Sequence[BrokenRule] = ()) -> CheckedBatch:
    figures = DataFigures(rows=len(rows), bad=len(rows), by_rule=list(by_rule))
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
