"""The figures of the replay's report."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from contracts.core.classification import classification_metrics
from contracts.core.contract import Contract
from contracts.core.digests import JsonObject
from flows.demo.chain import all_runs, chains, started_by_nobody
from flows.demo.traffic import ReplayTraffic
from flows.monitoring.decision import decided
from registry.context import ModelContext
from registry.events import Event, Judged, Promoted


def report_figures(callers: Sequence[ReplayTraffic], frozen: np.ndarray, calendar: np.ndarray,
                   until: datetime) -> JsonObject:
    """The figures of the report. The first model is compared with its rivals, on the records that it
    answered; the chains, the requests and who started runs are told of all models."""
    traffic, runs = callers[0], all_runs()
    contract, context, state = traffic.contract, traffic.context, traffic.context.ledger.state()
    answered = ~np.isnan(traffic.answers).any(axis=1)
    answers = {"live": traffic.answers, "frozen": frozen, "calendar": calendar}
    labels, times = contract.labels_of(traffic.rows), traffic.rows[contract.event_time]
    months = times.dt.strftime("%Y-%m").to_numpy()

    def compare(chosen: np.ndarray) -> JsonObject:
        metrics = {name: classification_metrics(contract, labels[chosen], probabilities[chosen])
                   for name, probabilities in answers.items()}
        return ({"n": int(chosen.sum())}
                | {f"logloss_{name}": of_model.log_loss for name, of_model in metrics.items()}
                | {f"auc_{name}": of_model.auc for name, of_model in metrics.items()})

    weeks = weeks_of(context)
    faults = [{"name": fault.name, "from": fault.first.date().isoformat(), "named": fault.named(weeks),
               "said": [f"{week['start']}: {week['kind']}: {'; '.join(week['reasons'])}" for week in weeks
                        if fault.touches(week)]} for fault in traffic.faults if fault.first < until]
    for week in weeks:
        end = week.pop("end")
        week |= compare(answered & ((times >= week["window"]) & (times < end)).to_numpy())
    events = context.ledger.events()
    judged = {event.data.version: event.data.verdict for event in events
              if isinstance(event.data, Judged) and event.data.version not in state.layers}
    promoted = [event.data.version for event in events if isinstance(event.data, Promoted)]
    refused = [version for version, verdict in judged.items() if not verdict.passed]
    requests = [request for caller in callers for request in caller.requests]
    return {"model": contract.name, "models": [caller.model for caller in callers],
            "classes": list(contract.label.classes),
            "until": until.date().isoformat(), "requests_sent": len(requests),
            "requests_failed": sum(not worked for _, worked, _ in requests),
            "records_scored": int(answered.sum()),
            "retrains_triggered": sum(week["action"] == "retrain" for week in weeks),
            "promotions": sum(version not in state.layers for version in promoted), "refusals": len(refused),
            "recalibrations": sum(version in state.layers for version in promoted),
            "drift_events": sum("drift" in week["kind"] or "worse" in week["kind"] for week in weeks),
            "months": [{"month": month, **compare(answered & (months == month))}
                       for month in dict.fromkeys(months)], "distance_limit": 1.0,
            "total": compare(answered), "weeks": weeks, "versions": _versions(events, state, context),
            "refused": [{"version": version, "at": _data_end(context, version),
                         "reasons": list(judged[version].reasons)} for version in refused],
            "calibration": _calibration(contract, labels[answered], traffic.answers[answered]),
            "days": _days(requests), "faults": faults,
            "chains": {caller.model: chains(caller.context, runs) for caller in callers},
            "runs": len(runs), "started_by_hand": started_by_nobody(runs)}


def weeks_of(context: ModelContext) -> list[JsonObject]:
    """The judged windows of a model, oldest first, with what followed from each."""
    state, length = context.ledger.state(), context.contract.drift.window
    return [{"window": window, "start": window[:10], "end": datetime.fromisoformat(window) + length,
             "kind": str(judged.verdict.kind), "action": str(decided(state, window, context.contract.drift)),
             "reasons": list(judged.verdict.reasons), "distances": judged.verdict.figures.drift_scores}
            for window, judged in sorted(state.windows.items())]


def _data_end(context: Any, version: str) -> str:
    from registry import models

    return str(models.manifest(context.store, context.name, version)["data"]["end"])[:10]


def _versions(events: list[Event], state: Any, context: Any) -> list[JsonObject]:
    from registry import models

    promoted = [event.data.version for event in events
                if isinstance(event.data, Promoted) and event.data.version not in state.layers]
    manifests = {version: models.manifest(context.store, context.name, version) for version in promoted}
    return [{"version": version, "number": state.number(version),
             "promoted": max(manifest["data"]["end"][:10], "2013-03-01"), "rows": manifest["rows"],
             "rounds": manifest["metrics"]["rounds"]} for version, manifest in manifests.items()]


def _calibration(contract: Contract, labels: np.ndarray, probabilities: np.ndarray,
                 bins: int = 10) -> JsonObject:
    """Expected and observed frequency of each class in ten
    bins of its probability; None where a bin is empty."""
    curves: dict[str, JsonObject] = {}
    for index, name in enumerate(contract.label.classes):
        table = pd.DataFrame({"expected": probabilities[:, index], "observed": labels == index})
        groups = table.groupby((table["expected"] * bins).astype(int).clip(upper=bins - 1))
        table = groups.agg(expected=("expected", "mean"), observed=("observed", "mean"),
                          n=("observed", "size")).reindex(range(bins))
        means = {column: [None if np.isnan(value) else value for value in table[column]]
                 for column in ("expected", "observed")}
        curves[name] = {"n": table["n"].fillna(0).astype(int).tolist(), **means}
    return curves


def _days(requests: list[tuple[str, bool, float]]) -> list[JsonObject]:
    table = pd.DataFrame(requests, columns=["day", "worked", "seconds"])
    days = table.groupby("day").agg(requests=("worked", "size"),
                                    failed=("worked", lambda worked: int((~worked).sum())),
                                    p50_ms=("seconds", lambda s: s.median() * 1000),
                                    p99_ms=("seconds", lambda s: s.quantile(0.99) * 1000))
    return list(days.reset_index().to_dict("records"))
