"""Evaluate a window: gather its traffic, labels and events, and ask for the drift verdict."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime

import pandas as pd

from contracts.core.binning import REFERENCE_FILE, monitored_columns
from contracts.core.drift import cumulative_drift, drift
from contracts.core.errors import NotFound
from contracts.core.localization import LoggedRows
from contracts.core.performance import Performance, estimate_performance, measure_performance
from contracts.core.reference import BinnedComparison, decode_references, merge_versions
from contracts.core.skew import Skew, find_answer_skew, find_clock_skew, find_skew
from contracts.core.verdict import Verdict
from flows.monitoring.outcomes import LATER, Outcomes, ingested_events, join_outcomes, probabilities_of, shifted
from flows.monitoring.windows import WIDEST, champions, first_traffic, labelled_until
from registry import layout, models
from registry.context import ModelContext, fetch_version
from registry.traffic import window_counts
from service import profiles
from service.model import Model, load_model
from service.profiles import NO_TRAFFIC, WindowCounts


def evaluate_window(memory: ModelContext, start: datetime) -> Verdict:
    """The window's Verdict: its traffic against the training data of the version that answered most of it, and that version's
    score on matured labels. The figures name the version; without traffic it is the champion.

    Where the window has too few rows it is widened by those before it, of the same version, WIDEST windows in all.
    """
    contract, (version, seen, others) = memory.contract, _served(memory, start)
    events = ingested_events(memory, start)
    model, found = load_model(contract, fetch_version(memory, version)), join_outcomes(memory, version, start, events)
    scores, skew, logged = score(memory, model, found, events), skew_of(memory, model, found, events), rows_of(memory, model, found)
    started = first_traffic(memory)
    expected = started and started <= start and start + contract.drift.window <= labelled_until(memory)
    before = memory.ledger.state().windows.get((start - contract.drift.window).isoformat(), {"verdict": {"figures": {}}})["verdict"]["figures"]
    for compared in _ever_wider(memory, start, version, seen, others):
        verdict = drift(contract, compared.reference, compared.counts, rows=compared.rows, bad=seen.bad, scores=scores, skew=skew,
                        seen=logged, at_fault=seen.at_fault, events=len(events) if expected else None,
                        before=before.get("checks", {}))
        if verdict.outcome != "insufficient":
            break
    return replace(verdict, figures={
        **verdict.figures, "version": version, "since": compared.since.isoformat(), "crept": _crept(memory, version, compared),
        "estimate": estimate_performance(probabilities_of(contract, found.logged)) if len(found.logged) else None})


def recount_window(memory: ModelContext, start: datetime, verdict: Verdict) -> BinnedComparison:
    """What a window's Verdict was given on, counted anew; raises NotFound where its profiles are gone."""
    version, since = verdict.figures["version"], datetime.fromisoformat(verdict.figures["since"])
    others = {other: window_counts(memory, other, start) for other in champions(memory) if other != version}
    others = {other: seen for other, seen in others.items() if seen.rows}
    for compared in _ever_wider(memory, start, version, window_counts(memory, version, start), others):
        if compared.since <= since:
            break
    if verdict.figures["rows"] and not compared.rows:
        raise NotFound(f"the traffic of {memory.name} from {since.isoformat()} on was judged and is gone; restore "
                        f"{layout.traffic(layout.PROFILES, memory.name, version)} in {memory.store.address} from a backup, "
                        f"or name another window; what was judged is in: perennial history {memory.name}")
    return compared


def _ever_wider(
    memory: ModelContext, start: datetime, version: str, seen: WindowCounts, others: Mapping[str, WindowCounts],
) -> Iterator[BinnedComparison]:
    """The version's training data with what was `seen` of the window, by it and by `others`; then with windows before it."""
    reference = decode_references((fetch_version(memory, version) / REFERENCE_FILE).read_bytes())
    for since in (start - back * memory.contract.drift.window for back in range(WIDEST)):
        seen = seen if since == start else window_counts(memory, version, since) + seen
        counts, compared = seen.counts, reference
        for other, theirs in others.items():  # a week whose first days another champion answered is a week all the same
            compared, counts = merge_versions(compared, counts, profiles.bins_in(fetch_version(memory, other)), theirs.counts)
        yield BinnedComparison(compared, counts, max((int(now.sum()) for now in counts.values()), default=0), since)


def _crept(memory: ModelContext, version: str, compared: BinnedComparison) -> dict[str, float]:
    first = champions(memory)[:1]
    if not compared.counts or first == [version]:
        return {}
    references = decode_references((fetch_version(memory, first[0]) / REFERENCE_FILE).read_bytes()) if first else {}
    return {name: round(far, 3) for name, far in cumulative_drift(memory.contract, references, compared.reference, compared.counts).items()}


def _served(memory: ModelContext, start: datetime) -> tuple[str, WindowCounts, dict[str, WindowCounts]]:
    """Of all champions so far, the one that answered most of the window, what it saw, and what the others did."""
    seen = {version: window_counts(memory, version, start) for version in champions(memory)}
    most = max(seen, key=lambda version: (seen[version].rows, seen[version].bad), default=None)
    version = most if most and (seen[most].rows or seen[most].bad) else models.resolve(memory.ledger, "champion")
    return version, seen.get(version, NO_TRAFFIC), {other: found for other, found in seen.items() if other != version and found.rows}


def score(memory: ModelContext, model: Model, found: Outcomes, events: pd.DataFrame) -> Performance | None:
    """How the answers did on the window's matured labels; where none can meet its label, as without a log or a key, how the
    model does. None while there are no labels."""
    contract = memory.contract
    if len(found.labelled):
        return measure_performance(contract, contract.labels_of(found.labelled), probabilities_of(contract, found.labelled), found.coverage)
    if events.empty or found.could_meet:
        return None
    return measure_performance(contract, contract.labels_of(events), model.probabilities(contract.columns_of(events)))


def skew_of(memory: ModelContext, model: Model, found: Outcomes, events: pd.DataFrame) -> list[Skew]:
    """Where what was sent and answered is not what was ingested, and what the registered model answers."""
    contract, met = memory.contract, found.met
    if met.empty:
        return []
    sent, times = contract.columns_of(met), met[contract.event_time].to_numpy()
    both = [name for name in contract.request_columns if f"{name}{LATER}" in met]
    later = contract.columns_of(met[[f"{name}{LATER}" for name in both]].set_axis(both, axis=1), tuple(both))
    apart = find_answer_skew(contract, probabilities_of(contract, met), model.probabilities(sent), times)
    return find_skew(contract, sent, later) + apart + [*find_clock_skew(contract, len(found.unmet), shifted(contract, found, events))]


def rows_of(memory: ModelContext, model: Model, found: Outcomes) -> LoggedRows | None:
    """The logged predictions as drift is judged by them; None without any."""
    contract = memory.contract
    if found.logged.empty:
        return None
    columns, probabilities = contract.columns_of(found.logged), probabilities_of(contract, found.logged)
    values = {name: one.values for name, one in monitored_columns(contract, columns, probabilities, model.classes(probabilities)).items()}
    return LoggedRows(columns[contract.event_time], values, {name: columns[name] for name in contract.gate.slices if name in columns})
