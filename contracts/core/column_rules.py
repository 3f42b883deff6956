"""Run a contract's Pandera rules on whole columns and list the cells that break them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pandera.errors
import pandera.pandas as pa
from pandera.api.function_dispatch import Dispatcher
from pandera.engines.pandas_engine import Engine

ROW_RULE = "row"  # what a rule across columns or rows names as its column


@dataclass(frozen=True)
class RuleViolation:
    """A rule and the rows that break it: their index, ascending, and the value `found` in each.

    An index of None: the column as a whole breaks the rule.
    """

    column: str
    rule: str
    index: np.ndarray | None
    found: pd.Series | pd.DataFrame

    @property
    def rows(self) -> np.ndarray:
        return np.zeros(0, np.int64) if self.index is None else self.index

    def texts(self, most: int | None = None) -> list[str]:
        """The value found in each row, as text; of the first `most` rows where that is given."""
        values = self.found.head(most) if most is not None else self.found
        if isinstance(values, pd.DataFrame):
            return [" ".join(map(str, row)) for row in values.itertuples(index=False)]
        return list(map(str, values))


def find_violations(schema: pa.DataFrameSchema, rows: pd.DataFrame) -> list[RuleViolation]:
    """Every rule that some of the rows break, rules across columns first.

    The rows have the schema's columns and a unique index.
    """
    if not _is_separable(schema, rows):
        return _validate_with_pandera(schema, rows)
    violations = []
    for check in schema.checks:
        broken = _row_violations(check, rows)
        violations += (_validate_with_pandera(pa.DataFrameSchema(checks=[check]), rows) if broken is None
                       else broken)
    violations = _merge_by_rule(violations)
    for name, spec in schema.columns.items():
        broken = _column_violations(spec, rows[name])
        violations += _validate_with_pandera(spec, _columns_read(spec, rows)) if broken is None else broken
    return violations


def _merge_by_rule(violations: list[RuleViolation]) -> list[RuleViolation]:
    """The violations of rules that share a name, merged into one."""
    by_rule: dict[str, list[RuleViolation]] = {}
    for violation in violations:
        by_rule.setdefault(violation.rule, []).append(violation)
    return [same[0] if len(same) == 1 or any(violation.index is None for violation in same) else _merged(same)
            for same in by_rule.values()]


def _merged(same: list[RuleViolation]) -> RuleViolation:
    found = pd.concat([pd.Series(violation.found.to_numpy(dtype=object), violation.index)
                       for violation in same])
    found = found[~found.index.duplicated()].sort_index()
    return RuleViolation(same[0].column, same[0].rule, found.index.to_numpy(), found)


def _is_separable(schema: pa.DataFrameSchema, rows: pd.DataFrame) -> bool:
    """Whether columns and rules can be checked one by one, without Pandera's pass over the whole schema."""
    whole_schema = schema.parsers or schema.index or schema.unique or schema.dtype or schema.drop_invalid_rows
    coerced = (schema.coerce
               and not all(_has_declared_type(spec, rows[name]) for name, spec in schema.columns.items()))
    return not whole_schema and not coerced


def _has_declared_type(spec: pa.Column, values: pd.Series) -> bool:
    return (spec.dtype is None
            or bool(np.all(np.asarray(spec.dtype.check(Engine.dtype(values.dtype), values)))))


def _columns_read(spec: pa.Column, rows: pd.DataFrame) -> pd.DataFrame:
    return rows if any(check.groupby is not None for check in spec.checks) else rows[[spec.name]]


def _row_violations(check: pa.Check, rows: pd.DataFrame) -> list[RuleViolation] | None:
    """The rows that break a rule across columns, each with its first value.

    None: only Pandera can check this rule.
    """
    passed = _passes(check, rows)
    if passed is None or passed.all():
        return None if passed is None else []
    found = rows.iloc[:, 0][~passed]
    empty = found.isna()
    if empty.any():
        found = found.astype(object)
        found[empty] = [next(iter(row.dropna()), None)
                        for _, row in rows[~passed][empty].astype(object).iterrows()]
        found = found.dropna()  # a row without any value breaks no rule
    return [RuleViolation(ROW_RULE, _rule_name(check), found.index.to_numpy(), found)] if len(found) else []


def _column_violations(spec: pa.Column, values: pd.Series) -> list[RuleViolation] | None:
    """The rows that break a rule of one column; None: only Pandera can check this column."""
    changed = (spec.parsers or spec.default is not None or spec.drop_invalid_rows
               or not _has_declared_type(spec, values))
    if changed or spec.unique or spec.regex:
        return None
    missing = values.isna().to_numpy()
    broken = {} if spec.nullable or not missing.any() else {"not_nullable": missing}
    for check, passed in zip(spec.checks, _check_all(spec.checks, values, missing)):
        if passed is None:
            return None
        if not passed.all():
            broken[_rule_name(check)] = ~passed | broken.get(_rule_name(check), False)
    index = values.index.to_numpy()
    return [RuleViolation(spec.name, rule, index[bad], values[bad]) for rule, bad in broken.items()]


def _check_all(checks: list[pa.Check], values: pd.Series, missing: np.ndarray) -> Iterator[np.ndarray | None]:
    """For each check whether each row passes, as rows without a value do; None where only Pandera can check.

    Pandera's built-in checks look at one value at a time. So text is checked by its
    distinct values, and numbers without a copy that leaves the missing ones out.
    """
    plain = isinstance(values.dtype, pd.StringDtype) and any(map(_judges_distinct_values, checks))
    codes, distinct = values.factorize() if plain else (None, None)
    present = None
    for check in checks:
        if plain and _judges_distinct_values(check):
            passed = _passes(check, pd.Series(distinct, dtype=values.dtype))
            # The code of a missing value is -1: it finds the appended True.
            yield None if passed is None else np.append(passed, True)[codes]
        elif values.dtype.kind in "fM" and _judges_distinct_values(check):
            passed = _passes(check, values)
            yield None if passed is None else passed | missing
        else:
            present = values.dropna() if present is None else present
            passed = _passes(check, present)
            yield None if passed is None else _over_all_rows(passed, missing)


def _over_all_rows(passed: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """What the rows that have a value passed, spread over all rows; the others pass."""
    all_rows = missing.copy()
    all_rows[~missing] = passed
    return all_rows


def _judges_distinct_values(check: pa.Check) -> bool:
    return _is_builtin(check) and check.determined_by_unique and not check.element_wise


def _is_builtin(check: pa.Check) -> bool:
    """Whether the check is one of Pandera's built-in ones."""
    return isinstance(check._check_fn, Dispatcher)


def _apply(check: pa.Check, values: pd.Series | pd.DataFrame) -> pd.Series:
    # Looked up by name, as Pandera does: its pandas version is registered after the check was made.
    if _is_builtin(check) and not check.element_wise:
        return pa.Check.get_builtin_check_fn(check._check_fn.__name__)(values, **check._check_kwargs)
    return pa.Check.get_backend(values)(check).apply(values)


def _passes(check: pa.Check, values: pd.Series | pd.DataFrame) -> np.ndarray | None:
    """Whether each value, or row, passes the check; None: only Pandera can tell."""
    if (check.groupby is not None or not check.ignore_na or check.n_failure_cases is not None
        or check.raise_warning):
        return None
    try:
        passed = _apply(check, values)
    except Exception:  # a rule may raise anything: Pandera runs it again and reports the error
        return None
    if not isinstance(passed, pd.Series) or not passed.index.equals(values.index):
        return None
    if passed.empty or passed.dtype == bool:
        return np.asarray(passed, bool)
    return None


def _rule_name(check: pa.Check) -> str:
    return next(name for name in (check.error, check.name, str(check)) if name is not None)


def _validate_with_pandera(schema: pa.DataFrameSchema | pa.Column, rows: pd.DataFrame) -> list[RuleViolation]:
    try:
        schema.validate(rows, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        cases = errors.failure_cases.sort_values("index", kind="stable")
        cases["column"] = cases["column"].where(cases["schema_context"] != "DataFrameSchema", ROW_RULE)
        return [_violation(names, found) for names, found in cases.groupby(["column", "check"], sort=False)]
    return []


def _violation(names: tuple[str, str], cases: pd.DataFrame) -> RuleViolation:
    if cases["index"].isna().any():
        return RuleViolation(*names, None, cases["failure_case"])
    cases = cases.drop_duplicates("index")
    return RuleViolation(*names, cases["index"].to_numpy(dtype=np.int64), cases["failure_case"])
