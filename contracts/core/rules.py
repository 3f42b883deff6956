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
    """A rule that some rows break: their index, ascending,
    and what was found in each; no index: the whole column."""

    column: str
    rule: str
    index: np.ndarray | None
    found: pd.Series | pd.DataFrame

    @property
    def rows(self) -> np.ndarray:
        return np.zeros(0, np.int64) if self.index is None else self.index

    def texts(self, most: int | None = None) -> list[str]:
        """What was found in each row, or in the first ones."""
        found = self.found.head(most) if most is not None else self.found
        if isinstance(found, pd.DataFrame):
            return [" ".join(map(str, values)) for values in found.itertuples(index=False)]
        return list(map(str, found))


def find_violations(schema: pa.DataFrameSchema, rows: pd.DataFrame) -> list[RuleViolation]:
    """All that is wrong with these rows, rules across columns first.
    Their columns are the schema's, no index is there twice."""
    if not _apart(schema, rows):
        return _told_by_pandera(schema, rows)
    wrong = []
    for check in schema.checks:
        found = _row_faults(check, rows)
        wrong += _told_by_pandera(pa.DataFrameSchema(checks=[check]), rows) if found is None else found
    wrong = _told_once(wrong)
    for name, spec in schema.columns.items():
        found = _column_faults(spec, rows[name])
        wrong += _told_by_pandera(spec, _needed(spec, rows)) if found is None else found
    return wrong


def _told_once(wrong: list[RuleViolation]) -> list[RuleViolation]:
    """Rules of one name as one."""
    named: dict[str, list[RuleViolation]] = {}
    for fault in wrong:
        named.setdefault(fault.rule, []).append(fault)
    return [same[0] if len(same) == 1 or any(one.index is None for one in same) else _united(same)
            for same in named.values()]


def _united(same: list[RuleViolation]) -> RuleViolation:
    found = pd.concat([pd.Series(one.found.to_numpy(dtype=object), one.index) for one in same])
    found = found[~found.index.duplicated()].sort_index()
    return RuleViolation(same[0].column, same[0].rule, found.index.to_numpy(), found)


def _apart(schema: pa.DataFrameSchema, rows: pd.DataFrame) -> bool:
    """Whether columns and rules can be judged one by one."""
    together = schema.parsers or schema.index or schema.unique or schema.dtype or schema.drop_invalid_rows
    coerced = (schema.coerce
               and not all(_of_its_type(spec, rows[name]) for name, spec in schema.columns.items()))
    return not together and not coerced


def _of_its_type(spec: pa.Column, values: pd.Series) -> bool:
    return (spec.dtype is None
            or bool(np.all(np.asarray(spec.dtype.check(Engine.dtype(values.dtype), values)))))


def _needed(spec: pa.Column, rows: pd.DataFrame) -> pd.DataFrame:
    return rows if any(check.groupby is not None for check in spec.checks) else rows[[spec.name]]


def _row_faults(check: pa.Check, rows: pd.DataFrame) -> list[RuleViolation] | None:
    """The rows that break a rule across columns, each with its first value; None: Pandera must judge."""
    kept = _kept(check, rows)
    if kept is None or kept.all():
        return None if kept is None else []
    found = rows.iloc[:, 0][~kept]
    empty = found.isna()
    if empty.any():
        found = found.astype(object)
        found[empty] = [next(iter(row.dropna()), None)
                        for _, row in rows[~kept][empty].astype(object).iterrows()]
        found = found.dropna()  # a row without any value breaks no rule
    return [RuleViolation(ROW_RULE, _named(check), found.index.to_numpy(), found)] if len(found) else []


def _column_faults(spec: pa.Column, values: pd.Series) -> list[RuleViolation] | None:
    """The rows that break a rule of one column; None: Pandera must judge."""
    changed = (spec.parsers or spec.default is not None or spec.drop_invalid_rows
               or not _of_its_type(spec, values))
    if changed or spec.unique or spec.regex:
        return None
    missing = values.isna().to_numpy()
    broken = {} if spec.nullable or not missing.any() else {"not_nullable": missing}
    for check, kept in zip(spec.checks, _each_kept(spec.checks, values, missing)):
        if kept is None:
            return None
        if not kept.all():
            broken[_named(check)] = ~kept | broken.get(_named(check), False)
    index = values.index.to_numpy()
    return [RuleViolation(spec.name, rule, index[bad], values[bad]) for rule, bad in broken.items()]


def _each_kept(checks: list[pa.Check], values: pd.Series, missing: np.ndarray) -> Iterator[np.ndarray | None]:
    """For each check the rows that keep it, as those without a value do; None where Pandera must judge.

    Pandera's own checks look at one value at a time: of text the
    distinct ones will do, and numbers need no copy without the missing.
    """
    plain = isinstance(values.dtype, pd.StringDtype) and any(map(_of_one_value, checks))
    codes, distinct = values.factorize() if plain else (None, None)
    there = None
    for check in checks:
        if plain and _of_one_value(check):
            kept = _kept(check, pd.Series(distinct, dtype=values.dtype))
            yield None if kept is None else np.append(kept, True)[codes]  # the code of a missing value is -1
        elif values.dtype.kind in "fM" and _of_one_value(check):
            kept = _kept(check, values)
            yield None if kept is None else kept | missing
        else:
            there = values.dropna() if there is None else there
            kept = _kept(check, there)
            yield None if kept is None else _spread(kept, missing)


def _spread(kept: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Of the rows that have a value, over all rows."""
    everyone = missing.copy()
    everyone[~missing] = kept
    return everyone


def _of_one_value(check: pa.Check) -> bool:
    return _own(check) and check.determined_by_unique and not check.element_wise


def _own(check: pa.Check) -> bool:
    """Whether Pandera brings the rule along."""
    return isinstance(check._check_fn, Dispatcher)


def _applied(check: pa.Check, values: pd.Series | pd.DataFrame) -> pd.Series:
    # Found by name, as Pandera does: it learns of pandas after the check was made.
    if _own(check) and not check.element_wise:
        return pa.Check.get_builtin_check_fn(check._check_fn.__name__)(values, **check._check_kwargs)
    return pa.Check.get_backend(values)(check).apply(values)


def _kept(check: pa.Check, values: pd.Series | pd.DataFrame) -> np.ndarray | None:
    """Whether each value, or row, keeps the rule; None: Pandera must judge."""
    if (check.groupby is not None or not check.ignore_na or check.n_failure_cases is not None
        or check.raise_warning):
        return None
    try:
        kept = _applied(check, values)
    except Exception:  # a rule may raise anything: Pandera meets it again, and says so in its words
        return None
    if not isinstance(kept, pd.Series) or not kept.index.equals(values.index):
        return None
    if kept.empty or kept.dtype == bool:
        return np.asarray(kept, bool)
    return None


def _named(check: pa.Check) -> str:
    return next(name for name in (check.error, check.name, str(check)) if name is not None)


def _told_by_pandera(schema: pa.DataFrameSchema | pa.Column, rows: pd.DataFrame) -> list[RuleViolation]:
    try:
        schema.validate(rows, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        cases = errors.failure_cases.sort_values("index", kind="stable")
        cases["column"] = cases["column"].where(cases["schema_context"] != "DataFrameSchema", ROW_RULE)
        return [_fault(names, found) for names, found in cases.groupby(["column", "check"], sort=False)]
    return []


def _fault(names: tuple[str, str], cases: pd.DataFrame) -> RuleViolation:
    if cases["index"].isna().any():
        return RuleViolation(*names, None, cases["failure_case"])
    cases = cases.drop_duplicates("index")
    return RuleViolation(*names, cases["index"].to_numpy(dtype=np.int64), cases["failure_case"])
