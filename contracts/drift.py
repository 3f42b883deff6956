"""Is this window still the world that the champion was trained on? → Verdict."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from contracts.contract import Contract, Drift, Verdict, is_output

RETRAINABLE = ("worse on labels", "input drift", "prediction drift")  # the other kinds teach nothing good
FLOOR = 1e-3  # the least share of a bin, so that an empty one doesn't make the distance infinite
CHANCE = 1e-3  # a feature counts as gone when its rows would all be missing by chance more rarely than this


@dataclass(frozen=True)
class Compared:
    """One column in two worlds: each bin's share of all rows, missing values being a bin of their own.

    `n`: the current window's rows; 0 where the column is absent from it, which counts as all missing.
    """

    bins: tuple[str, ...]
    reference: np.ndarray
    current: np.ndarray
    reference_nulls: float
    current_nulls: float
    n: int


@dataclass(frozen=True)
class Scores:
    """A model on a window's matured labels: its log loss, and `gap`, how far the class shares are from expected.

    The gap is the Kullback-Leibler divergence, in nats, of the shares that came true from the mean probabilities:
    unlike the log loss it does not rise with a week that is merely hard to predict.
    """

    rows: int
    log_loss: float
    gap: float
    observed: dict[str, float]
    expected: dict[str, float]


def row_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Each row's log loss; labels int (n,), probabilities (n, classes), clipped at 1e-7."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(chosen.astype(np.float64), 1e-7, 1.0))


def scored(contract: Contract, labels: np.ndarray, probabilities: np.ndarray) -> Scores:
    """The scores of one or more labelled rows; labels int (n,), probabilities (n, classes)."""
    names = contract.label.classes
    shares = np.bincount(labels, minlength=len(names)) / len(labels)
    expected = probabilities.astype(np.float64).mean(axis=0)
    there = shares > 0
    gap = float(np.sum(shares[there] * np.log(shares[there] / np.maximum(expected[there], FLOOR))))
    loss = float(row_losses(labels, probabilities).mean())
    return Scores(len(labels), loss, gap, dict(zip(names, shares.tolist())), dict(zip(names, expected.tolist())))


def drift(compared: Mapping[str, Compared], policy: Drift, *, rows: int, scores: Scores | None, bad: int = 0) -> Verdict:
    """The Verdict on a window of `rows` answered and `bad` refused records; its `kind` is the gravest finding, its reasons are all of them.

    Distances and missing values count from `policy.min_rows` records on, the gap from as many matured labels.
    """
    enough = rows >= max(policy.min_rows, 1)
    distances = {name: distance(one.reference, one.current) for name, one in compared.items()}
    far = [name for name, value in distances.items() if value > policy.distance] if enough else []
    inputs = [name for name in far if not is_output(name)]
    findings = {  # the gravest first
        "broken contract": (_broken(compared, policy) if enough else []) + _refused(rows, bad, policy),
        "insufficient": [] if enough else [f"{rows} records of traffic, {max(policy.min_rows, 1)} are needed"],
        "worse on labels": _worse(scores, policy),
        "input drift": _far(inputs, distances, policy) if len(inputs) >= policy.features else [],
        "prediction drift": _far(filter(is_output, far), distances, policy),
    }
    kind = next((kind for kind, reasons in findings.items() if reasons), "fine")
    return Verdict(
        question="drift", outcome={"fine": "passed", "insufficient": "insufficient"}.get(kind, "failed"), kind=kind,
        reasons=tuple(reason for reasons in findings.values() for reason in reasons),
        figures=_figures(compared, distances, rows, scores) | {"bad": bad})


def wants_retraining(verdict: Verdict, policy: Drift) -> bool:
    """The world has moved in a way that the contract answers with a retraining."""
    return verdict.kind in RETRAINABLE and verdict.kind in policy.retrain_on


def pages(verdict: Verdict) -> bool:
    """The data is broken: a person must look, and training on it would teach the fault."""
    return verdict.kind == "broken contract"


def distance(reference: np.ndarray, current: np.ndarray) -> float:
    """The population stability index of two lists of shares: 0 when equal, symmetric, no upper bound."""
    before, now = np.maximum(reference, FLOOR), np.maximum(current, FLOOR)
    return float(np.sum((now - before) * np.log(now / before)))


def _broken(compared: Mapping[str, Compared], policy: Drift) -> list[str]:
    return [
        f"{name}: missing in {one.current_nulls:.0%} of the records, {one.reference_nulls:.0%} of the training data; "
        f"limit: {policy.null_share:.0%} more, or the loss of every value"
        for name, one in compared.items() if not is_output(name)
        and (one.current_nulls - one.reference_nulls > policy.null_share or _gone(one))
    ]


def _refused(rows: int, bad: int, policy: Drift) -> list[str]:
    if bad <= policy.bad_inputs * (rows + bad) or rows + bad < policy.min_rows:
        return []
    return [f"{bad} of {rows + bad} records were refused by the service, limit: {policy.bad_inputs:.0%}; its metric "
            "perennial_bad_inputs_total names the fields"]


def _gone(one: Compared) -> bool:
    return one.n == 0 or (one.current_nulls == 1 and one.reference_nulls ** one.n < CHANCE)


def _worse(scores: Scores | None, policy: Drift) -> list[str]:
    if scores is None or scores.rows < max(policy.min_rows, 1) or scores.gap <= policy.label_gap:
        return []  # a gap that is not a number gets no pass here
    shifts = ", ".join(f"{name} {share:.1%} for {scores.expected[name]:.1%}" for name, share in scores.observed.items())
    return [f"labels: {shifts} expected, on {scores.rows} rows: gap {scores.gap:.4f}, limit {policy.label_gap:g}"]


def _far(names: Iterable[str], distances: Mapping[str, float], policy: Drift) -> list[str]:
    return [f"{name}: distance (PSI) {distances[name]:.3f}, limit {policy.distance:g}" for name in names]


def _figures(
    compared: Mapping[str, Compared], distances: Mapping[str, float], rows: int, scores: Scores | None
) -> dict[str, Any]:
    nulls = {name: {"reference": one.reference_nulls, "current": one.current_nulls} for name, one in compared.items()}
    return {"rows": rows, "distances": dict(distances), "nulls": nulls, "scores": asdict(scores) if scores else None}
