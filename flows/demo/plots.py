"""The plots of the replay's report."""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.dates import date2num
from matplotlib.figure import Figure

from contracts.core.classification import is_output
from contracts.core.digests import JsonObject

Report = JsonObject
DAY, WEEK = "datetime64[D]", np.timedelta64(7, "D")
WIDTH, LEFT, TOP, BOTTOM = 11.0, 1.7, 0.5, 0.42  # inches, the same in every plot: dates line up down the page
INK, SOFT, BLUE, PALE, GREY, GREEN, RED = ("#1c2733", "#5b6875", "#0072b2", "#9cc3de", "#87909a", "#009e73",
                                           "#d55e00")
LOOKS: dict[str, dict[str, Any]] = {"live": {"color": BLUE, "lw": 2.4, "zorder": 4},
                                    "frozen": {"color": GREY, "lw": 1.6, "ls": (0, (4, 1.5))},
                                    "calendar": {"color": GREEN, "lw": 1.6, "ls": (0, (1, 1))}}
HEAT = LinearSegmentedColormap.from_list("drift",
                                         [(0, "#f1f5f8"), (.5, "#a3c3dc"), (.5, "#f6bf4c"), (1, "#7d1d0c")])
LEGEND = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1), "ncols": 4, "frameon": False,
          "borderaxespad": 0.2}
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.grid": True,
                         "axes.axisbelow": True, "axes.edgecolor": "#c5ccd3", "axes.labelcolor": SOFT,
                         "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e8ecf0",
                         "xtick.color": SOFT, "ytick.color": SOFT, "xtick.major.size": 0,
                         "ytick.major.size": 0, "date.converter": "concise"}


def drawing(plot: Callable[[Axes, Report], float], report: Report) -> str:
    """A plot as inline SVG with the page's font; `plot` draws it and returns its height in inches."""
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        starts = [*column(report["weeks"], "start", DAY), *column(report["versions"], "promoted", DAY)]
        # Dates, not numbers: they make the axis one of dates, whatever is drawn on it.
        axes.set_xlim(min(starts), np.datetime64(report["until"], "D"))  # type: ignore[arg-type]
        inches = plot(axes, report)
        height = inches + TOP + BOTTOM
        figure.set_size_inches(WIDTH, height)
        axes.set_position((LEFT / WIDTH, BOTTOM / height, 0.98 - LEFT / WIDTH, inches / height))
        return inline(figure, plot.__name__)


def inline(figure: Figure, name: str) -> str:
    """A figure as SVG inside a page; its `name` makes its ids different from those of other plots."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r'(?s)^.*?<svg[^>]*(viewBox="[^"]*")[^>]*>', r'<svg role="img" \1>', file.getvalue(),
                 count=1)
    return re.sub(r'<g id="[^"]*"', "<g", svg)


def column(rows: list[JsonObject], key: str, kind: str = "float") -> np.ndarray:
    return np.array([row[key] for row in rows], kind)


def log_loss_by_week(axes: Axes, report: Report) -> float:
    """Lower is better, on the same records. Live is the loop; frozen the
    first model, never retrained; calendar one retrained at each month's start
    without a gate. A line marks each promotion, a red cross each refusal."""
    middles = column(report["weeks"], "start", DAY) + WEEK // 2
    for name, look in LOOKS.items():
        axes.plot(middles, column(report["weeks"], f"logloss_{name}"), label=name, **look)
    for number, date in zip(column(report["versions"], "number", "int"),
                            column(report["versions"], "promoted", DAY)):
        axes.axvline(date, color=INK, lw=0.8)
        axes.annotate(f"v{number}", (date, 1.02), xycoords=axes.get_xaxis_transform(), ha="center",
                      weight="bold")
    refused = column(report["refused"], "at", DAY)
    axes.plot(refused, np.full(len(refused), 1.04), "x", color=RED, ms=6, mew=2, clip_on=False,
              label="refused", transform=axes.get_xaxis_transform())
    axes.legend(**LEGEND | {"bbox_to_anchor": (-0.01, 1.07)})
    axes.set_ylabel("log loss")
    return 3.3


def gain_by_month(axes: Axes, report: Report) -> float:
    """Higher is better: how far the log loss lies below the frozen model's."""
    months = [month for month in report["months"] if month["logloss_live"] is not None]
    starts = column(months, "month", "datetime64[M]")
    days = (np.minimum((starts + 1).astype(DAY), np.datetime64(report["until"]))
            - starts.astype(DAY)).astype(float)
    for name, place, alpha in (("live", 0.1, 1), ("calendar", 0.5, 0.5)):
        gain = column(months, "logloss_frozen") - column(months, f"logloss_{name}")
        bars = axes.bar(date2num(starts) + days * place, gain, days * 0.4, align="edge", label=name,
                        color=LOOKS[name]["color"], alpha=alpha)
        axes.bar_label(bars, fmt="{:+.3f}", fontsize=7, padding=2, color=SOFT)
    axes.axhline(0, color=SOFT, lw=0.8)
    axes.legend(**LEGEND)
    axes.set_ylabel("gain in log loss")
    axes.margins(y=0.12)
    return 2.2


def versions_in_service(axes: Axes, report: Report) -> float:
    """Which version answered when, and the rows it was
    trained on; a red cross: the gate refused a challenger."""
    versions, refused, until = report["versions"], report["refused"], np.datetime64(report["until"], "D")
    starts = column(versions, "promoted", DAY)
    axes.barh(range(len(versions)), np.append(starts[1:], until) - starts, 0.6, starts, color=BLUE)
    axes.plot(column(refused, "at", DAY), [len(versions)] * len(refused), "x", color=RED, ms=7, mew=2)
    names = [f"v{version['number']} · {version['version'][:6]} · {version['rows']:,} rows"
             for version in versions]
    axes.set_yticks(range(len(names) + 1), [*names, "refused" if refused else "none refused"], fontsize=8)
    axes.invert_yaxis()
    return 0.28 * (len(names) + 1)


def drift_by_week(axes: Axes, report: Report) -> float:
    """Distance from the training data in units of the threshold: above 1,
    amber to brown, is drift. Below the line: the model's outputs."""
    scores, limit = distances(report), report.get("distance_limit", 1.0)
    names, norm, height = list(scores), TwoSlopeNorm(limit, 0, 4 * limit), 0.2 * max(len(scores), 2)
    for week, start in enumerate(column(report["weeks"], "start", DAY)):
        heat = np.array([[scores[name][week]] for name in names]).reshape(-1, 1)
        axes.pcolormesh([start, start + WEEK], range(len(names) + 1), heat, cmap=HEAT, norm=norm, ec="white")
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    axes.set_ylim(max(len(names), 2), 0)
    axes.axhline(sum(not is_output(name) for name in names), color=INK, lw=1)
    axes.grid(False)
    bar = axes.figure.colorbar(matplotlib.cm.ScalarMappable(norm, HEAT),
                               cax=axes.inset_axes((0, 1 + 0.08 / height, 0.3, 0.12 / height)),
                               orientation="horizontal", ticklocation="top", extend="max",
                               ticks=[0, limit, 4 * limit])
    bar.set_ticklabels(["0", f"limit {limit:g}", f"{4 * limit:g}"])
    return height


def distances(report: Report) -> dict[str, list[float]]:
    """Each column's drift scores by week, NaN where unknown: inputs
    with the largest mean first, the model's outputs last."""
    weeks = [week["distances"] for week in report["weeks"]]
    scores = {name: [week.get(name, np.nan) for week in weeks]
              for name in {name for week in weeks for name in week}}
    return dict(sorted(scores.items(), key=lambda item: (is_output(item[0]), -np.nanmean(item[1]), item[0])))


def calibration(axes: Axes, report: Report) -> float:
    """The live model's expected frequencies against the observed ones: on the
    dashed line they agree. A dot's area grows with its records."""
    axes.axis("off")
    for place, (name, curve) in enumerate(report["calibration"].items()):
        panel = axes.inset_axes((place / len(report["calibration"]), 0, 0.84 / len(report["calibration"]), 1))
        expected, observed, n = (np.array(curve[key], float) for key in ("expected", "observed", "n"))
        panel.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 2)))
        panel.plot(expected, observed, color=BLUE, lw=1.4)
        panel.scatter(expected, observed, 14 + 400 * n / max(n.sum(), 1), color=BLUE, alpha=0.75, lw=0,
                      clip_on=False)
        panel.set(xlim=(0, 1), ylim=(0, 1), title=name, xlabel="expected",
                  ylabel="" if place else "observed")
    return 2.8


def requests_by_day(axes: Axes, report: Report) -> float:
    """Requests through the load balancer; a red mark on top: some of that day failed."""
    days, requests, failed = (column(report["days"], *what)
                              for what in (("day", DAY), ("requests",), ("failed",)))
    axes.bar(days, requests - failed, 1, color=PALE, label="answered", align="edge")
    axes.bar(days, failed, 1, requests - failed, color=RED, label="failed", align="edge")
    axes.plot(days[failed > 0], np.full((failed > 0).sum(), 1.08 * requests.max(initial=1)), "v", color=RED,
              ms=7)
    axes.set_ylim(0, 1.15 * requests.max(initial=1))
    axes.legend(**LEGEND)
    axes.set_ylabel("requests a day")
    return 1.5


def latency_by_day(axes: Axes, report: Report) -> float:
    """How long a request took at the client, on a logarithmic scale."""
    days = column(report["days"], "day", DAY)
    axes.plot(days, column(report["days"], "p50_ms"), color=BLUE, lw=1.6, label="median")
    axes.plot(days, column(report["days"], "p99_ms"), color=GREY, lw=1.2, label="99th percentile")
    axes.set_yscale("log", subs=[2, 5])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(**LEGEND)
    axes.set_ylabel("milliseconds")
    return 1.5
