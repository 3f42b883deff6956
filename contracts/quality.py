"""Is this batch what the contract says, and is this challenger good enough? Two Verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap
from sklearn.metrics import recall_score, roc_auc_score

from contracts.contract import Contract, Gate, Verdict
from contracts.drift import row_losses
from contracts.rules import ROW, Fault, faults

EXAMPLES = 3
CALIBRATION_BINS = 10
RESAMPLES = 1_000
TEXT = pd.StringDtype(na_value=np.nan)  # what `astype("str")` gives
SUM_ERROR = 1e-3  # a row's probabilities, in float32, add up to one but for this
MISSING, OTHERS = "(missing)", "(others)"  # the slices of rows without a value, and of values with too few rows


@dataclass(frozen=True)
class Checked:
    """A batch after its contract: the rows that passed, the Verdict, and the `faults` of `rows`, the whole batch."""

    good: pd.DataFrame
    verdict: Verdict
    rows: pd.DataFrame
    faults: tuple[Fault, ...] = ()

    @cached_property
    def bad(self) -> pd.DataFrame:
        """The rows set aside, with their `reasons`: told when asked for, for a batch that is refused may have millions."""
        reasons = _reasons(self.faults)
        return self.rows.loc[reasons.index].assign(reasons=reasons).reset_index(drop=True)


def check(contract: Contract, batch: pd.DataFrame) -> Checked:
    """Hold a batch against the contract's schema; units are read from `batch.attrs["units"]` where stated.

    Cells of another type, rows that repeat an earlier one's key and rows that break a rule are set aside; a missing
    column, a changed unit and a column of which most cells are of another type refuse the batch.
    """
    batch = batch.reset_index(drop=True)
    broken = _missing(contract, batch) + _changed_units(contract, batch)
    if broken:
        return _refused(batch, broken)
    rows = pd.DataFrame({name: cells(batch[name], contract.python_type(name)) for name in contract.columns}, copy=False)
    odd = _odd_cells(contract, batch, rows)
    broken = _changed_types(batch, odd)
    if broken:
        return _refused(rows, broken)
    typed = _typed(contract, _without(rows, _marked(odd, len(rows))))
    wrong = [*odd, *faults(contract.schema.to_schema(), typed)]
    broken = [f"{fault.column}: {fault.rule}, found {text}" for fault in wrong if fault.index is None for text in fault.texts()]
    if broken:
        return _refused(rows, broken)
    bad = _marked(wrong, len(rows))
    again = _repeated(contract, typed, bad)
    bad |= _marked(again, len(rows))
    wrong += again
    verdict = _data_verdict(contract, len(rows), int(bad.sum()), _by_rule(wrong))
    return Checked(_without(typed, bad).reset_index(drop=True), verdict, rows, tuple(wrong))


def _marked(wrong: list[Fault], rows: int) -> np.ndarray:
    """Whether a row has any of these faults, by its index in the batch."""
    marked = np.zeros(rows, dtype=bool)
    for fault in wrong:
        marked[fault.index] = True
    return marked


def _without(rows: pd.DataFrame, marked: np.ndarray) -> pd.DataFrame:
    return rows[~marked[rows.index]] if marked.any() else rows


def _typed(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers and bools as the schema declares them: no cell is missing there any more, unless it may be."""
    return pd.DataFrame({
        name: values.astype(contract.columns[name].dtype.type) if contract.python_type(name) in (int, bool) else values
        for name, values in rows.items()}, copy=False)


def _reasons(wrong: tuple[Fault, ...]) -> pd.Series:
    """All that is wrong with each bad row, by its index."""
    said: dict[int, str] = {}
    for fault in wrong:
        rule = f"{fault.column}: {fault.rule}"
        texts = [rule] * len(fault.index) if fault.column == ROW else [f"{rule}, found {text}" for text in fault.texts()]
        for index, text in zip(fault.index.tolist(), texts):
            said[index] = f"{said[index]}; {text}" if index in said else text
    index = sorted(said)
    return pd.Series([said[row] for row in index], index, dtype="str")


def cells(values: pd.Series, kind: type) -> pd.Series:
    """A column's cells as `kind`; missing where they are, and where they can't be read as one. Text is read as a CSV's."""
    if kind is str and isinstance(values.dtype, pd.StringDtype):
        return values if values.dtype == TEXT else values.astype(TEXT)
    if kind is bool and values.dtype == bool:
        return values.astype("boolean")
    if kind is int and values.dtype.kind == "i":
        return values.astype("Int64")
    if kind is datetime and values.dtype.kind != "O":
        naive = values.dtype.kind == "M" and values.dt.tz is None
        return values if naive else pd.Series(pd.NaT, values.index, "datetime64[us]", values.name)
    return _read(values.astype(object) if values.dtype.kind == "O" else values, kind)


def _read(plain: pd.Series, kind: type) -> pd.Series:
    if kind is str:
        return plain.where(plain.map(lambda cell: isinstance(cell, str)), None).astype(TEXT)
    if kind is bool:
        return plain.astype(str).str.lower().map({"true": True, "false": False}).astype("boolean")
    if kind is datetime:
        return pd.to_datetime(plain.map(_time)).astype("datetime64[us]")
    numbers = pd.to_numeric(plain if plain.dtype.kind in "iufO" else plain.map(lambda _: None), errors="coerce")
    return numbers.where(numbers % 1 == 0).astype("Int64") if kind is int else numbers.astype(float)


def _time(cell: Any) -> datetime | None:
    """A time without a zone, or its text in ISO 8601."""
    try:
        found = datetime.fromisoformat(cell) if isinstance(cell, str) else cell
    except ValueError:
        return None
    return found if isinstance(found, datetime) and found.tzinfo is None else None


def _missing(contract: Contract, batch: pd.DataFrame) -> list[str]:
    return [f"{name}: column missing, rule: the schema declares it" for name in contract.columns if name not in batch]


def _changed_units(contract: Contract, batch: pd.DataFrame) -> list[str]:
    stated = batch.attrs.get("units", {})
    declared = {name: spec.metadata["unit"] for name, spec in contract.columns.items()}
    return [
        f"{name}: unit {unit!r}, rule: {declared[name]!r}"
        for name, unit in stated.items() if name in declared and unit != declared[name]
    ]


def _odd_cells(contract: Contract, batch: pd.DataFrame, rows: pd.DataFrame) -> list[Fault]:
    """The cells that are not of the declared type, the empty ones of numpy's whole numbers and bools among them."""
    found = []
    for name, spec in contract.columns.items():
        kind, unread = contract.python_type(name), rows[name].isna().to_numpy()
        if not (kind in (int, bool) and isinstance(spec.dtype.type, np.dtype)):  # these are never empty
            unread = unread & batch[name].notna().to_numpy()
        if unread.any():
            rule = f"type {kind.__name__}{' without a zone' if kind is datetime else ''}"
            found.append(Fault(name, rule, np.flatnonzero(unread), batch[name][unread]))
    return found


def _changed_types(batch: pd.DataFrame, odd: list[Fault]) -> list[str]:
    """The columns of which most values are of another type."""
    wrong = [Fault(fault.column, fault.rule, fault.index[there], fault.found[there])
             for fault in odd if (there := fault.found.notna().to_numpy()).any()]
    return [_said(rule, f", found {batch[rule['column']].dtype}") for rule in _by_rule(wrong)
            if rule["count"] > batch[rule["column"]].notna().sum() / 2]


def _repeated(contract: Contract, rows: pd.DataFrame, bad: np.ndarray) -> list[Fault]:
    """The rows whose key an earlier row has, among those that are not bad."""
    if not contract.key:
        return []
    key = rows[list(contract.key)]
    alike = key[pd.Series(_mixed(key), key.index).duplicated(keep=False) & ~bad[key.index]]
    again = alike[alike.duplicated()]
    return [Fault(ROW, "an earlier row has its key", again.index.to_numpy(), again)] if len(again) else []


def _mixed(key: pd.DataFrame) -> np.ndarray:
    """A number for each row, the same where the key is: those that share one are few, and are compared in full."""
    mixed = np.zeros(len(key), dtype=np.uint64)
    factors = np.random.default_rng(0).integers(2**63, size=key.shape[1], dtype=np.uint64) * 2 + 1
    for factor, (_, values) in zip(factors, key.items()):
        whole = isinstance(values.dtype, np.dtype) and values.dtype.kind in "iM"
        numbers = values.to_numpy().astype(np.int64) if whole else values.factorize()[0]
        mixed += numbers.astype(np.uint64) * factor
    return mixed


def _refused(rows: pd.DataFrame, reasons: list[str]) -> Checked:
    figures = {"rows": len(rows), "bad": len(rows), "by_rule": []}
    verdict = Verdict("data", "failed", tuple(reasons), figures, "broken contract")
    return Checked(rows.iloc[:0], verdict, rows.iloc[:0])


def _by_rule(wrong: list[Fault]) -> list[dict[str, Any]]:
    return [
        {"column": fault.column, "rule": fault.rule, "count": len(fault.index), "examples": [
            {"row": int(row), "value": text} for row, text in zip(fault.index, fault.texts(EXAMPLES))]}
        for fault in sorted(wrong, key=lambda fault: (fault.column, fault.rule))
    ]


def _data_verdict(contract: Contract, rows: int, bad: int, by_rule: list[dict[str, Any]]) -> Verdict:
    figures = {"rows": rows, "bad": bad, "limit": contract.bad_rows, "by_rule": by_rule}
    if rows == 0:
        return Verdict("data", "insufficient", ("the batch has no rows",), figures)
    if bad / rows <= contract.bad_rows:
        return Verdict("data", "passed", (), figures)
    reasons = [f"{bad} of {rows} rows are bad, the limit is {contract.bad_rows:.2%}"]
    return Verdict("data", "failed", (*reasons, *map(_said, by_rule)), figures, "broken contract")


def _said(rule: dict[str, Any], more: str = "") -> str:
    examples = ", ".join(example["value"] for example in rule["examples"])
    return f"{rule['column']}: {rule['rule']}{more}, {rule['count']} rows, such as {examples}"


def scores(contract: Contract, labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """The absolute figures of a model on labelled rows; undefined ones are None, of wrong probabilities all."""
    classes, rows = np.arange(len(contract.label.classes)), len(labels)
    if wrong(contract, probabilities):
        labels, probabilities = labels[:0], np.empty((0, len(classes)))
    named = (probabilities * contract.weights).argmax(axis=1)
    present = np.isin(classes, labels)
    recalls = recall_score(labels, named, labels=classes, average=None, zero_division=np.nan) if len(labels) else []
    return {
        "rows": rows,
        "log_loss": float(row_losses(labels, probabilities).mean()) if len(labels) else None,
        "auc": float(_auc(labels, probabilities)) if present.all() else None,
        "calibration_error": calibration_error(labels, probabilities) if len(labels) else None,
        "recall": {
            name: float(recall) if there else None
            for name, recall, there in zip(contract.label.classes, recalls, present)
        },
    }


def wrong(contract: Contract, probabilities: np.ndarray) -> str:
    """What keeps these from being one probability a class in each row; empty if nothing does."""
    given, wanted = probabilities.shape[1], len(contract.label.classes)
    if given != wanted:
        return f"answers {given} classes, the contract names {wanted}"
    bad = ~((probabilities >= 0).all(axis=1) & (abs(probabilities.sum(axis=1) - 1) < SUM_ERROR))
    return f"answers {bad.sum()} of {len(bad)} rows with what are no probabilities, such as {probabilities[bad][0]}" if bad.any() else ""


def _auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Area under the curve, each class against the rest, unweighted mean."""
    return float(np.mean([roc_auc_score(labels == k, p) for k, p in enumerate(probabilities.T)]))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error, the mean over the classes, ten equal bins (Naeini et al., 2015)."""
    hits = labels[:, None] == np.arange(probabilities.shape[1])
    return float(np.mean([_bin_gaps(p, hit) for p, hit in zip(probabilities.T, hits.T)]))


def _bin_gaps(probability: np.ndarray, hit: np.ndarray) -> float:
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=probability - hit, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(hit))


def gate(
    contract: Contract, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray | None,
    slices: Mapping[str, np.ndarray], *, latency_ms: float, size_mb: float, disagreement: float, refit_shift: float,
) -> Verdict:
    """May this challenger be promoted? Both models' probabilities are of the same newest labelled rows.

    `latency_ms`: 99th percentile of one record. `disagreement`: the largest difference between the saved
    model's probabilities, computed by a new process, and the trainer's. `refit_shift`: the mean absolute
    difference between the probabilities judged here and those of the model refitted on every row, which serves.
    """
    limits = contract.gate
    costs = {"latency_ms": latency_ms, "size_mb": size_mb, "disagreement": disagreement, "refit_shift": refit_shift}
    figures: dict[str, Any] = {"challenger": scores(contract, labels, challenger)}
    figures |= {name: cost if np.isfinite(cost) else None for name, cost in costs.items()}  # the ledger holds no NaN
    flaw = wrong(contract, challenger)
    unknown = [] if flaw else _undefined(limits, figures["challenger"])
    reasons = [f"the challenger {flaw}"] if flaw else [] if unknown else _absolute(limits, figures["challenger"])
    for name, value, limit in (("latency", latency_ms, limits.latency_ms), ("size", size_mb, limits.size_mb),
                               ("disagreement with the saved model", disagreement, 0.0),
                               ("shift of the refitted model", refit_shift, limits.refit_shift)):
        if not value <= limit:
            reasons.append(f"{name} {value:.4g} is above {limit:.4g}")
    if champion is not None and (lack := wrong(contract, champion)):
        unknown.append(f"the champion {lack}: nothing to compare with")
    elif champion is not None and not flaw and not unknown:
        figures["champion"] = scores(contract, labels, champion)
        figures["paired"] = paired(limits, labels, challenger, champion)
        figures["apart"] = apart(contract, challenger, champion)
        figures["slices"], thin = _slices(limits, labels, challenger, champion, slices)
        reasons += _not_better(limits, figures["paired"]) + _behind(limits, figures["slices"])
        unknown += thin
    outcome = "failed" if reasons else "insufficient" if unknown else "passed"
    return Verdict("gate", outcome, (*reasons, *unknown), figures)


def apart(contract: Contract, challenger: np.ndarray, champion: np.ndarray) -> float:
    """The total variation distance of the class shares that two models name for the same rows, 0 to 1."""
    shares = [np.bincount((each * contract.weights).argmax(axis=1), minlength=each.shape[1]) / len(each) for each in (challenger, champion)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _undefined(limits: Gate, figures: Mapping[str, Any]) -> list[str]:
    if figures["rows"] < limits.min_rows:
        return [f"{figures['rows']} labelled rows, at least {limits.min_rows} are needed"]
    absent = [name for name, recall in figures["recall"].items() if recall is None]
    return [f"no labelled row of class {', '.join(absent)}: AUC and recall are undefined"] if absent else []


def _absolute(limits: Gate, figures: Mapping[str, Any]) -> list[str]:
    reasons = []
    if not figures["log_loss"] <= limits.log_loss:
        reasons.append(f"log loss {figures['log_loss']:.4f} is above {limits.log_loss}")
    if not figures["auc"] >= limits.auc:
        reasons.append(f"AUC {figures['auc']:.4f} is below {limits.auc}")
    if not figures["calibration_error"] <= limits.calibration_error:
        reasons.append(f"calibration error {figures['calibration_error']:.4f} is above {limits.calibration_error}")
    for name, least in limits.recall.items():
        if not figures["recall"][name] >= least:
            reasons.append(f"recall of {name} {figures['recall'][name]:.4f} is below {least}")
    return reasons


def paired(limits: Gate, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray) -> dict[str, float]:
    """Challenger minus champion: mean log loss of the same rows and its bootstrap interval (below 0: better)."""
    difference = row_losses(labels, challenger) - row_losses(labels, champion)
    if np.ptp(difference) == 0:  # the very same model: scipy's interval would be NaN
        return {"difference": float(difference[0]), "low": float(difference[0]), "high": float(difference[0])}
    interval = bootstrap((difference,), np.mean, n_resamples=RESAMPLES, batch=50, method="percentile",
                         confidence_level=limits.confidence, rng=0).confidence_interval
    return {"difference": float(difference.mean()), "low": float(interval.low), "high": float(interval.high)}


def _not_better(limits: Gate, difference: Mapping[str, float]) -> list[str]:
    if difference["high"] <= limits.margin and difference["difference"] < limits.margin:
        return []
    return [
        f"not better than the champion: log loss differs by {difference['difference']:+.4f}, "
        f"{limits.confidence:.0%} interval [{difference['low']:+.4f}, {difference['high']:+.4f}], "
        f"its upper end must not exceed {limits.margin:+.4f}"
    ]


def _slices(
    limits: Gate, labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray, slices: Mapping[str, np.ndarray],
) -> tuple[list[dict[str, Any]], list[str]]:
    """How far the challenger is behind in each slice; and the columns of which no value has enough rows.

    Rows without a value are a slice; values with too few rows are one together.
    """
    difference = row_losses(labels, challenger) - row_losses(labels, champion)
    judged, thin = [], []
    for column in limits.slices:
        values = pd.Series(slices[column], dtype=object)
        enough = values.map(values.value_counts()) >= limits.slice_rows
        if not enough.any():
            thin.append(f"no slice of {column} has {limits.slice_rows} rows")
        groups = pd.Series(difference).groupby(values.where(enough, OTHERS).mask(values.isna(), MISSING).astype(str))
        judged += [{"column": column, "value": value, "rows": int(row["size"]), "behind": float(row["mean"])}
                   for value, row in groups.agg(["size", "mean"]).iterrows()]
    return judged, thin


def _behind(limits: Gate, judged: list[dict[str, Any]]) -> list[str]:
    """Too few rows, of all small slices together or of those without a value, are shown and not judged."""
    return [
        f"{one['column']}={one['value']} falls behind the champion by {one['behind']:.4f}, "
        f"the margin is {limits.slice_margin}"
        for one in judged if one["rows"] >= limits.slice_rows and one["behind"] > limits.slice_margin
    ]
