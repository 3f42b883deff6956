"""The Prometheus exporter: drift, scores, ages and alerts, read from the store at each scrape."""

import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from threading import Event, Lock

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from contracts.core.errors import NotFound, PerennialError
from contracts.core.verdict import WindowFigures
from flows.monitoring.decision import decided
from registry import data
from registry.context import ModelContext, open_model
from registry.traffic import newest_window

CLOCK = "now, on the clocks of the contract's time zone, minus event time"
GAUGES = {  # name: what it says, and its labels besides the model
    "perennial_up": ("1 where the model's ledger and store could be read for this scrape, else 0", ()),
    "perennial_champion_info": ("1 for the version that is champion, with its number", ("version", "number")),
    "perennial_drift_score": (
        "a column's largest effect in the last judged window, in units of its threshold; above 1: drift",
        ("feature",)),
    "perennial_log_loss": ("log loss of the last judged window on its matured labels", ()),
    "perennial_log_loss_low": ("lower end of the log loss's 95 % interval", ()),
    "perennial_log_loss_high": ("upper end of the log loss's 95 % interval", ()),
    "perennial_label_gap": (
        "how far the last judged window's class shares are from the expected ones, in nats", ()),
    "perennial_label_coverage": (
        "share of the last judged window's logged predictions whose label is in", ()),
    "perennial_newest_profile_age_seconds": (
        f"age of the newest window with traffic, from its start: {CLOCK}", ()),
    "perennial_newest_label_age_seconds": (f"age of the newest ingested label: {CLOCK}", ()),
    "perennial_labels_behind_traffic_seconds": (
        "event time from the newest ingested label to the start of the newest window with traffic, "
        "0 where labels are ahead; "
        "of replayed events too", ()),
    "perennial_open_alerts": ("alerts that are open, 0 for kinds that once were", ("kind",)),
    "perennial_windows": ("judged windows by what followed from them", ("action",)),
}
Sample = tuple[str, tuple[str, ...], float]  # a gauge's name, its labels besides the model, its value

log = logging.getLogger("perennial.exporter")


class MetricsCollector(Collector):
    """The gauges of some models; one that can't be read is down, and holds up no other."""

    def __init__(self, models: Sequence[str]) -> None:
        self._models, self._lock = models, Lock()
        self._known: dict[str, ModelContext] = {}

    def collect(self) -> Iterator[Metric]:
        families = {name: GaugeMetricFamily(name, help_, labels=("model", *labels))
                    for name, (help_, labels) in GAUGES.items()}
        with self._lock:  # two scrapes at once would read one ledger
            for model in self._models:
                for name, labels, value in self._of(model):
                    families[name].add_metric((model, *labels), value)
        yield from families.values()

    def _of(self, model: str) -> list[Sample]:
        try:
            context = self._known.get(model) or self._known.setdefault(model, open_model(model))
            return [*samples(context, context.now()), ("perennial_up", (), 1)]
        except Exception as error:
            # Of the store, the ledger, Delta Lake or the contract: the exporter outlives them all.
            log.error("%s can't be read, its gauges are missing: %s: %s", model, type(error).__name__, error)
            return [("perennial_up", (), 0)]


def samples(context: ModelContext, now: datetime) -> Iterator[Sample]:
    """A model's gauges at the time `now`, from its ledger and store."""
    state = context.ledger.state()
    if state.champion:
        yield "perennial_champion_info", (state.champion, str(state.number(state.champion))), 1
    if state.windows:
        yield from _figures(state.windows[max(state.windows)].verdict.figures)
    yield from _ages(context, now)
    open_kinds = Counter(alert.kind for alert in state.open_alerts)
    for kind in sorted({alert.kind for alert in state.alerts.values()}):
        yield "perennial_open_alerts", (kind,), open_kinds[kind]
    actions = Counter(decided(state, window, context.contract.drift) for window in state.windows)
    for action, windows in sorted(actions.items()):
        yield "perennial_windows", (action,), windows


def _figures(figures: WindowFigures) -> Iterator[Sample]:
    for feature, score in figures.drift_scores.items():
        yield "perennial_drift_score", (feature,), score
    gauges = {"log_loss": "log_loss", "low": "log_loss_low", "high": "log_loss_high", "gap": "label_gap",
              "coverage": "label_coverage"}
    for name, gauge in gauges.items():
        value = getattr(figures.performance, name, None)
        if value is not None:
            yield f"perennial_{gauge}", (), value


def _ages(context: ModelContext, now: datetime) -> Iterator[Sample]:
    traffic = newest_window(context)
    try:
        labels = datetime.fromisoformat(data.newest(context.store, context.name).newest)
    except NotFound:
        labels = None
    if traffic:
        yield "perennial_newest_profile_age_seconds", (), (now - traffic).total_seconds()
    if labels:
        yield "perennial_newest_label_age_seconds", (), (now - labels).total_seconds()
    if traffic and labels:
        yield "perennial_labels_behind_traffic_seconds", (), max(0.0, (traffic - labels).total_seconds())


def serve(models: Sequence[str], host: str, port: int, say: Callable[[str], None]) -> None:
    """Answer scrapes until SIGINT or SIGTERM."""
    stopping, registry = Event(), CollectorRegistry()
    registry.register(MetricsCollector(models))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise PerennialError(f"can't listen on {host}:{port}: {error.strerror}; choose another port: "
                             f"perennial metrics --port …") from None
    say(f"metrics of {', '.join(models)} at http://{host}:{port}/metrics; Ctrl-C ends it")
    stopping.wait()
    server.shutdown()
    server.server_close()
    thread.join()
