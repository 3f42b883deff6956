"""Evaluate a window: collect its traffic, labels and events, and compute its verdict."""

from collections.abc import Iterator, Mapping
from datetime import datetime

from msgspec.structs import replace

from contracts.core.binning import REFERENCE_FILE, monitored_columns
from contracts.core.errors import NotFound
from contracts.core.localization import LoggedRows
from contracts.core.reference import BinnedComparison, decode_references, merge_versions
from contracts.core.skew import Skew, find_answer_skew, find_clock_skew, find_skew
from contracts.core.verdict import Estimate, Outcome, WindowFigures, WindowKind, WindowVerdict
from contracts.core.window_verdict import cumulative_drift, drift
from flows.monitoring.estimates import with_interval
from flows.monitoring.outcomes import INGESTED, Outcomes, join_outcomes
from flows.monitoring.performance import labelled_sums, metrics_of, outcome_figures, performance_of
from flows.monitoring.windows import MAX_WINDOWS, champions, first_traffic, labelled_until, traffic_gap
from registry import layout, models
from registry.context import ModelContext, fetch_version
from registry.traffic import window_counts
from service import profiles
from service.model import Model, load_model
from service.profiles import NO_TRAFFIC, WindowCounts


def evaluate_window(context: ModelContext, start: datetime) -> WindowVerdict:
    """The window's verdict: its traffic against the training data of the
    version that answered most of it, and that version's performance on matured
    labels. The figures name the version; without traffic it is the champion.

    A window with too few rows is judged together with those of the
    same version before it, MAX_WINDOWS in all.
    """
    gap = traffic_gap(context, start)
    if gap:
        return _verdict_of_gap(context, *gap)
    contract, (version, counts, others) = context.contract, _traffic_by_version(context, start)
    model = load_model(contract, fetch_version(context, version))
    outcomes = join_outcomes(context, version, start)
    sums = labelled_sums(context, model, outcomes, start)
    performance = performance_of(contract, outcomes, sums)
    on_labels = outcome_figures(context, model, version, start, outcomes, sums)
    skew, logged = skew_of(context, model, outcomes), logged_rows(context, model, outcomes)
    before = context.ledger.state().windows.get((start - contract.drift.window).isoformat())
    for compared in _widening_comparisons(context, start, version, counts, others):
        verdict = drift(contract, compared.reference, compared.counts, rows=compared.rows, bad=counts.bad,
                        performance=performance, outcomes=on_labels, skew=skew, logged=logged,
                        refused_fields=counts.at_fault, not_run=_not_run(context, start, outcomes),
                        events=outcomes.events if _must_have_traffic(context, start) else None,
                        previous=before.verdict.figures.checks if before else {})
        if verdict.outcome is not Outcome.INSUFFICIENT:
            break
    return replace(verdict, figures=replace(
        verdict.figures, version=version, since=compared.since.isoformat(),
        cumulative=_cumulative(context, version, compared), metrics=metrics_of(contract, outcomes, sums),
        estimate=_estimate(context, version, start, outcomes)))


def _estimate(context: ModelContext, version: str, start: datetime, outcomes: Outcomes) -> Estimate | None:
    """The estimated performance of the logged predictions; None if there are none."""
    estimate = outcomes.estimate
    return with_interval(context, version, estimate, start.isoformat()) if estimate else None


def _not_run(context: ModelContext, start: datetime, outcomes: Outcomes) -> dict[WindowKind, str]:
    """The kinds of findings that could not be looked for, and why."""
    not_run = {}
    if not outcomes.joined:
        not_run[WindowKind.SKEW] = "no logged prediction met its event by the contract's key"
    if not _must_have_traffic(context, start):
        not_run[WindowKind.STALE] = "the window's events are not all in, or no champion had served before it"
    return not_run


def _verdict_of_gap(context: ModelContext, start: datetime, end: datetime) -> WindowVerdict:
    windows = (end - start) // context.contract.drift.window
    reason = (f"no traffic in [{start}, {end}), {windows} windows: no replica was asked, or no profile was "
              f"shipped")
    return WindowVerdict(outcome=Outcome.FAILED, kind=WindowKind.STALE, reasons=(reason,),
                         figures=WindowFigures(version=context.ledger.state().champion,
                                               since=start.isoformat()))


def _must_have_traffic(context: ModelContext, start: datetime) -> bool:
    """Whether a champion had served before the window, and the window's events are all in."""
    started = first_traffic(context)
    return (started is not None and started <= start
            and start + context.contract.drift.window <= labelled_until(context))


def recount_window(context: ModelContext, start: datetime, verdict: WindowVerdict) -> BinnedComparison:
    """The counts behind a window's verdict, read again; raises NotFound if its profiles are gone."""
    version, since = str(verdict.figures.version), datetime.fromisoformat(str(verdict.figures.since))
    others = {other: window_counts(context, other, start) for other in champions(context) if other != version}
    others = {other: counts for other, counts in others.items() if counts.rows}
    own = window_counts(context, version, start)
    for compared in _widening_comparisons(context, start, version, own, others):
        if compared.since <= since:
            break
    if verdict.figures.rows and not compared.rows:
        raise NotFound(f"the traffic of {context.name} from {since.isoformat()} on was judged and is gone; "
                       f"restore {layout.traffic(layout.PROFILES, context.name, version)} in "
                       f"{context.store.address} from a backup, or name another window; what was judged is "
                       f"in: perennial history {context.name}")
    return compared


def _widening_comparisons(context: ModelContext, start: datetime, version: str, own: WindowCounts,
                          others: Mapping[str, WindowCounts]) -> Iterator[BinnedComparison]:
    """The version's training data and the window's counts (its `own` and
    other versions'); then the same with one more window before it, and so on."""
    reference = decode_references((fetch_version(context, version) / REFERENCE_FILE).read_bytes())
    for since in (start - back * context.contract.drift.window for back in range(MAX_WINDOWS)):
        own = own if since == start else window_counts(context, version, since) + own
        counts, compared = own.counts, reference
        # Another champion may have answered a part of the window: its requests are drift's evidence too.
        for other, other_counts in others.items():
            bins = profiles.bins_in(fetch_version(context, other))
            compared, counts = merge_versions(compared, counts, bins, other_counts.counts)
        rows = max((int(column.sum()) for column in counts.values()), default=0)
        yield BinnedComparison(compared, counts, rows, since)


def _cumulative(context: ModelContext, version: str, compared: BinnedComparison) -> dict[str, float]:
    first = champions(context)[:1]
    if not compared.counts or first == [version]:
        return {}
    references = (decode_references((fetch_version(context, first[0]) / REFERENCE_FILE).read_bytes()) if first
                  else {})
    scores = cumulative_drift(context.contract, references, compared.reference, compared.counts)
    return {name: round(score, 3) for name, score in scores.items()}


def _traffic_by_version(context: ModelContext,
                        start: datetime) -> tuple[str, WindowCounts, dict[str, WindowCounts]]:
    """The champion that answered most of the window, its counts, and those of other champions."""
    counts = {version: window_counts(context, version, start) for version in champions(context)}
    most = max(counts, key=lambda version: (counts[version].rows, counts[version].bad), default=None)
    version = (most if most and (counts[most].rows or counts[most].bad)
               else models.resolve(context.ledger, "champion"))
    others = {other: theirs for other, theirs in counts.items() if other != version and theirs.rows}
    return version, counts.get(version, NO_TRAFFIC), others


def skew_of(context: ModelContext, model: Model, outcomes: Outcomes) -> list[Skew]:
    """The differences between requests and ingested events, between answers and
    the registered model's, and between a caller's clock and ours."""
    contract, joined = context.contract, outcomes.sample_joined
    if joined.empty:
        return []
    sent, times = contract.columns_of(joined), joined[contract.event_time].to_numpy()
    both = [name for name in contract.request_columns if f"{name}{INGESTED}" in joined]
    ingested = contract.columns_of(joined[[f"{name}{INGESTED}" for name in both]].set_axis(both, axis=1),
                                   tuple(both))
    answered = contract.label.probabilities_in(joined)
    return [
        *find_skew(contract, sent, ingested),
        *find_answer_skew(contract, answered, model.probabilities(sent), times),
        *find_clock_skew(contract, outcomes.promised.rows - outcomes.joined, outcomes.shifted),
    ]


def logged_rows(context: ModelContext, model: Model, outcomes: Outcomes) -> LoggedRows | None:
    """The sampled predictions' times, monitored columns and slices; None if there are none."""
    contract, logged = context.contract, outcomes.sample
    if logged.empty:
        return None
    columns, probabilities = contract.columns_of(logged), contract.label.probabilities_in(logged)
    monitored = monitored_columns(contract, columns, probabilities, model.classes(probabilities))
    slices = {name: columns[name] for name in contract.gate.slices if name in columns}
    return LoggedRows(
        columns[contract.event_time], {name: column.values for name, column in monitored.items()}, slices)
