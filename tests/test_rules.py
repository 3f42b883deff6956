"""Rules on whole columns: the same faults as Pandera's own
lazy validation finds, on frames with all kinds of them."""

from collections import Counter

import numpy as np
import pandas as pd
import pandera.errors
import pandera.pandas as pa
import pytest

from contracts.core import column_rules as rules
from contracts.core.column_rules import find_violations
from contracts.flights import contract as flights
from contracts.pumps import contract as pumps


class Shop(pa.DataFrameModel):
    """Rules that can't all be judged by distinct values or whole arrays."""

    name: str = pa.Field(str_length={"max_value": 4}, str_startswith="a", notin=["abc"])
    town: str = pa.Field(isin=["x", "y"], nullable=True)
    price: float = pa.Field(gt=0, lt=50, ne=7, nullable=True)
    count: int = pa.Field(in_range={"min_value": 0, "max_value": 40})
    place: int = pa.Field(unique=True)
    open: bool = pa.Field(eq=True)
    since: pd.Timestamp = pa.Field(ge=pd.Timestamp("2024-01-01"), nullable=True)
    code: float = pa.Field(nullable=True)

    @pa.check("name", element_wise=True, error="no z")
    def no_z(cls, value):
        return "z" not in value

    @pa.check("price", error="not far from the mean")
    def near_the_mean(cls, values):
        return (values - values.mean()).abs() < 30

    @pa.check("code", ignore_na=False, error="told")
    def told(cls, values):
        return values.notna()

    @pa.check("count", groupby="town", error="towns have shops")
    def by_town(cls, groups):
        return all(len(values) > 0 for values in groups.values())

    @pa.dataframe_check(error="cheap in x")
    def cheap_in_x(cls, rows):
        return (rows["town"] != "x") | ~(rows["price"] > 30)

    @pa.dataframe_check(element_wise=True, error="open shops count")
    def open_shops_count(cls, row):
        return not row["open"] or row["count"] >= 0


def shops(rng, n):
    price = rng.normal(20, 12, n)
    return pd.DataFrame(
        {"name": pd.Series(rng.choice(["a", "ab", "abc", "abcde", "b", "az", None], n), dtype="str"),
         "town": pd.Series(rng.choice(["x", "y", "q", None], n), dtype="str"),
         "price": np.where(rng.random(n) < 0.2, np.nan, price), "count": rng.integers(-3, 45, n),
         "place": rng.integers(0, 3 * n + 1, n), "open": rng.random(n) < 0.9,
         "since": pd.Series(rng.choice(np.array(["2023-01-01", "2024-06-01", "NaT"], "M8[us]"), n)),
         "code": rng.choice([1.0, np.nan], n)})


def spoiled_flights(rng, n):
    rows = flights.source(
        pd.Timestamp("2013-01-01"), pd.Timestamp("2013-01-15")).sample(n,
                                                                       random_state=int(rng.integers(1_000)))
    rows = rows.reset_index(drop=True)
    for name in rows:
        hit = rng.random(n) < rng.choice([0, 0.02, 0.3])
        kind = flights.python_type(name)
        if kind is str:
            rows[name] = rows[name].mask(
                hit, pd.Series(rng.choice(["lower", "", "JFK", "ÄÖ", "AA\n", None], n), dtype="str"))
        elif kind is int:
            rows.loc[hit, name] = rng.integers(-10, 20_000, hit.sum())
        elif kind is float:
            rows.loc[hit, name] = rng.choice([np.nan, -1e9, 1e9, np.inf, 0.0], hit.sum())
        else:
            rows.loc[hit, name] = rng.choice(np.array(["NaT", "1999-12-31", "2100-01-01"], "M8[us]"),
                                             hit.sum())
    return rows


def by_pandera(schema, rows):
    """Each failure that Pandera tells, once: column, rule, row, and what was found."""
    try:
        schema.validate(rows, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        cases = errors.failure_cases
        columns = cases["column"].where(cases["schema_context"] != "DataFrameSchema", "row")
        told = {}
        for column, rule, row, found in zip(columns, cases["check"], cases["index"], cases["failure_case"]):
            told.setdefault((column, rule, None if row is None or row != row else int(row)), found)
        return told
    return {}


def by_us(schema, rows):
    return {(fault.column, fault.rule, row): found for fault in find_violations(schema, rows)
            for row, found in zip([None] if fault.index is None else fault.index.tolist(), fault.found)}


def same(schema, rows):
    ours, theirs = by_us(schema, rows), by_pandera(schema, rows)
    assert ours.keys() == theirs.keys()
    assert all(str(ours[case]) == str(theirs[case]) or ours[case] == theirs[case] for case in ours)
    return ours


@pytest.mark.parametrize("seed", range(8))
def test_spoiled_flights(seed):
    rng = np.random.default_rng(seed)
    assert len(same(flights.schema.to_schema(), spoiled_flights(rng, 400))) > 50


@pytest.mark.parametrize("seed", range(8))
def test_rules_of_every_kind(seed):
    found = Counter(rule for _, rule, _ in same(Shop.to_schema(), shops(np.random.default_rng(seed), 300)))
    assert ({"no z", "not far from the mean", "told", "cheap in x", "open shops count", "field_uniqueness",
             "not_nullable"} <= {*found})


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_frames_of_hardly_any_row(rows):
    same(flights.schema.to_schema(), spoiled_flights(np.random.default_rng(5), rows))
    same(Shop.to_schema().remove_columns(["count"]).update_columns({"name": {"nullable": True}}),
         shops(np.random.default_rng(1), rows + 1))


def test_every_row_bad_and_every_row_missing():
    rows = spoiled_flights(np.random.default_rng(0), 50).assign(temp=500.0, carrier="lower", distance=np.nan,
                                                                departs=pd.NaT, dest=None)
    rows = rows.astype({"departs": "M8[us]", "dest": "str"})
    assert len(same(flights.schema.to_schema(), rows)) > 200


def test_rows_that_miss_their_first_value_show_the_next():
    rows = spoiled_flights(np.random.default_rng(0), 3).assign(dep_time=np.nan, arr_time=5.0,
                                                               departs=pd.NaT).astype({"departs": "M8[us]"})
    assert ("row", "an arrival needs a departure", 0) in same(flights.schema.to_schema(), rows)


@pytest.mark.parametrize("schema", [
    pa.DataFrameSchema({"a": pa.Column("float32")}),  # another type than the rows have
    pa.DataFrameSchema({"a": pa.Column(float, pa.Check.str_matches("x"))}),  # a rule that raises
    pa.DataFrameSchema({"a": pa.Column(float, pa.Check(lambda values: values.sum() > 1e9))}),  # one answer for the column  # noqa: E501
    pa.DataFrameSchema({"a": pa.Column(float)}, checks=pa.Check(lambda rows: rows["b"] > 0)),  # a column that is not there  # noqa: E501
    pa.DataFrameSchema({"a": pa.Column(float)}, checks=pa.Check(lambda rows: False)),
])
def test_a_fault_of_the_whole_column_has_no_row(schema):
    found = same(schema, pd.DataFrame({"a": [1.0, 2.0, 3.0]}))
    assert len(found) == 1 and {row for *_, row in found} == {None}


@pytest.mark.parametrize(
    "schema",
    [pa.DataFrameSchema({"a": pa.Column(float, pa.Check.gt(2, n_failure_cases=1))}),
     pa.DataFrameSchema({"a": pa.Column(float, pa.Check.gt(2),
                                        parsers=pa.Parser(lambda values: values - 1))}),
     pa.DataFrameSchema({"a": pa.Column(float, pa.Check.gt(0))}, parsers=pa.Parser(lambda rows: rows - 2)),
     pa.DataFrameSchema({"a": pa.Column("float32", pa.Check.gt(2))}, coerce=True),
     pa.DataFrameSchema({"a": pa.Column(float, pa.Check.gt(2))}, coerce=True),
     pa.DataFrameSchema({"a": pa.Column(float), "c": pa.Column(float)}, unique=["c"]),
     pa.DataFrameSchema({"a": pa.Column(float, [pa.Check.gt(2, error="big"), pa.Check.lt(3, error="big")])}),
     pa.DataFrameSchema({"a": pa.Column(float)},
                        checks=[pa.Check(lambda rows: rows["a"] > 2, error="big"),
                                pa.Check(lambda rows: rows["a"] > 1, error="big")]),
     pa.DataFrameSchema({"a": pa.Column(float)}, checks=pa.Check(lambda rows: rows > 1))])
def test_what_pandera_must_judge_itself_is_enforced_too(schema):
    assert same(schema, pd.DataFrame({"a": [1.0, 2.0, 3.0], "c": [1.0, 1.0, 1.0]}))


@pytest.mark.parametrize("contract", [flights, pumps], ids=lambda contract: contract.name)
def test_a_contracts_ordinary_rules_never_wait_for_pandera(contract, monkeypatch):
    monkeypatch.setattr(rules, "_validate_with_pandera", None)
    rows = contract.source(pd.Timestamp("2013-01-01"), pd.Timestamp("2013-01-03"))
    assert find_violations(contract.schema.to_schema(), rows) == []
