"""What a replay found, as one page that opens offline: a verdict in words, key figures, plots and tables."""

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from contracts.contract import Drift
from contracts.drift import is_output
from deployments.replicas import write_whole

DAY, WEEK = "datetime64[D]", np.timedelta64(7, "D")
WIDTH, LEFT = 11.0, 1.75  # inches, the same in every plot over time: their dates line up down the page
INK, SOFT, BLUE, PALE, GREY, GREEN, RED = "#1c2733", "#5b6875", "#0072b2", "#9cc3de", "#87909a", "#009e73", "#d55e00"
LOOKS = {
    "live": {"label": "live: the loop", "color": BLUE, "lw": 2.4, "zorder": 4},
    "frozen": {"label": "frozen: the first model", "color": GREY, "lw": 1.6, "ls": (0, (4, 1.5))},
    "calendar": {"label": "calendar: retrained monthly, no gate", "color": GREEN, "lw": 1.6, "ls": (0, (1, 1))},
}
HEAT = LinearSegmentedColormap.from_list("drift", [(0, "#f1f5f8"), (.5, "#a3c3dc"), (.5, "#f6bf4c"), (1, "#7d1d0c")])
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "text.color": INK, "legend.frameon": False,
    "axes.edgecolor": "#c5ccd3", "axes.labelcolor": SOFT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e8ecf0", "xtick.color": SOFT, "ytick.color": SOFT,
    "xtick.major.size": 0, "ytick.major.size": 0, "ytick.minor.size": 0, "date.converter": "concise",
}


def write(report: dict[str, Any], folder: Path) -> None:
    """Put report.json and report.html into `folder`, each whole or not at all."""
    write_whole(folder / "report.html", render(report))
    write_whole(folder / "report.json", json.dumps(report, indent=1, allow_nan=False))


def render(report: dict[str, Any]) -> str:
    """The page: one HTML document that asks nothing of the network and runs no script."""
    plots = []
    for plot in (log_loss_by_week, gain_by_month, versions_in_service, drift_by_week, calibration, requests_by_day):
        title = plot.__name__.replace("_", " ").capitalize()
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):
            plots.append((title, plot.__doc__, _svg(plot(report))))
    page = Environment(autoescape=True, trim_blocks=True)
    page.filters["score"] = lambda value: "–" if value is None else f"{value:.4f}"
    return page.from_string(PAGE).render(report=report, headline=headline(report), cards=cards(report), plots=plots)


def headline(report: dict[str, Any]) -> str:
    """The verdict in one sentence, whichever way it went; under a twentieth of a percent counts as level."""
    live, beaten, said = report["total"]["logloss_live"], [], []
    if live is None:
        return "No verdict: no record was scored against its label."
    for peer, name in (("frozen model", "frozen"), ("monthly calendar", "calendar")):
        gain = round(1 - live / report["total"][f"logloss_{name}"], 3)
        beaten += [peer] * (gain > 0)
        way = f"{abs(gain):.1%} {'lower than' if gain > 0 else 'higher than'}" if gain else "level with"
        said.append(f"{way} the {peer}’s")
    lead = ("The loop did not pay", f"The loop beat only the {''.join(beaten)}", "The loop beat both rivals")[len(beaten)]
    return f"{lead}: its log loss is {' and '.join(said)}."


def cards(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The key figures: what, its value, a note."""
    total, weeks = report["total"], [week for week in report["weeks"] if week["logloss_live"] is not None]
    won = {name: sum(week["logloss_live"] < week[f"logloss_{name}"] for week in weeks) for name in LOOKS}
    scores = {key: ["–" if total[f"{key}_{name}"] is None else f"{total[f'{key}_{name}']:.3f}" for name in LOOKS]
              for key in ("logloss", "auc")}
    return [
        ("Log loss", scores["logloss"][0], "frozen {1}, calendar {2}".format(*scores["logloss"])),
        ("AUC", scores["auc"][0], "frozen {1}, calendar {2}".format(*scores["auc"])),
        ("Better than frozen", f"{won['frozen']} of {len(weeks)}", f"weeks; than calendar in {won['calendar']}"),
        ("Failed requests", f"{report['requests_failed']:,}", f"of {report['requests_sent']:,}"),
        ("Retrainings", f"{report['retrains_triggered']}", f"promotions {report['promotions']}, refusals {report['refusals']}"),
        ("Drifted weeks", f"{report['drift_events']} of {len(report['weeks'])}", ", ".join(_distances(report).columns[:3])),
    ]


def log_loss_by_week(report: dict[str, Any]) -> Figure:
    """Lower is better. All three models on the same records; a line marks each promotion, a cross each refusal."""
    figure, axes = _over_time(report, "log loss", 3.3)
    for name, look in LOOKS.items():
        axes.plot(_column(report["weeks"], "start", DAY) + WEEK // 2, _column(report["weeks"], f"logloss_{name}"), **look)
    for number, date in zip(_column(report["versions"], "number", int), _column(report["versions"], "promoted", DAY)):
        axes.axvline(date, color=INK, lw=0.8)
        axes.annotate(f"v{number}", (date, 1.02), xycoords=axes.get_xaxis_transform(), ha="center", weight="bold")
    refused = _column(report["refused"], "at", DAY)
    axes.plot(refused, np.full(len(refused), 1.04), "x", color=RED, ms=6, mew=2, clip_on=False, label="refused",
              transform=axes.get_xaxis_transform())
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.08), ncols=4)
    return figure


def gain_by_month(report: dict[str, Any]) -> Figure:
    """Higher is better. How far the log loss lies below the frozen model's."""
    figure, axes = _over_time(report, "log loss below\nthe frozen model's", 2.2)
    months = [month for month in report["months"] if month["logloss_live"] is not None]
    starts = _column(months, "month", "datetime64[M]")
    days = (np.minimum((starts + 1).astype(DAY), np.datetime64(report["until"])) - starts).astype(float)
    for name, place, colour in (("live", 0.1, BLUE), ("calendar", 0.5, "#7fceb9")):
        gain = _column(months, "logloss_frozen") - _column(months, f"logloss_{name}")
        lefts = starts.astype("datetime64[h]") + (days * place * 24).astype("timedelta64[h]")
        bars = axes.bar(lefts, gain, days * 0.4, align="edge", color=colour, label=name)
        axes.bar_label(bars, fmt="{:+.3f}", fontsize=7, padding=2, color=SOFT)
    axes.axhline(0, color=SOFT, lw=0.8)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=2)
    return figure


def versions_in_service(report: dict[str, Any]) -> Figure:
    """Which version answered when, and on how many rows it was trained; a cross is a challenger that the gate refused."""
    versions, refused = report["versions"], report["refused"]
    figure, axes = _over_time(report, "", 0.28 * (len(versions) + 1))
    starts = _column(versions, "promoted", DAY)
    axes.barh(range(len(versions)), np.append(starts[1:], np.datetime64(report["until"], "D")) - starts, 0.6, starts, color=BLUE)
    axes.plot(_column(refused, "at", DAY), [len(versions)] * len(refused), "x", color=RED, ms=7, mew=2)
    names = [f"v{one['number']} · {one['version'][:6]} · {one['rows']:,} rows" for one in versions]
    axes.set_yticks(range(len(versions) + 1), [*names, "refused" if refused else "none refused"], fontsize=8)
    axes.invert_yaxis()
    return figure


def drift_by_week(report: dict[str, Any]) -> Figure:
    """Distance (PSI) from the training data. Orange to brown is beyond the limit; below the line, the model's own answers."""
    heat, limit = _distances(report), report.get("distance_limit", Drift.distance)
    figure, axes = _over_time(report, "", 0.3 + 0.2 * len(heat.columns))
    norm = TwoSlopeNorm(limit, 0, 4 * limit)
    for start, values in zip(heat.index, heat.to_numpy(float)):
        axes.pcolormesh([start, start + WEEK], np.arange(len(values) + 1), values[:, None], cmap=HEAT, norm=norm, ec="white")
    axes.set_yticks(np.arange(len(heat.columns)) + 0.5, heat.columns, fontsize=8)
    axes.set_ylim(max(len(heat.columns), 1), 0)
    axes.axhline(sum(not is_output(name) for name in heat.columns), color=INK, lw=1)
    axes.grid(False)
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, HEAT), cax=axes.inset_axes((0, 1.01, 0.3, 0.02)), extend="max",
                          orientation="horizontal", ticklocation="top", ticks=[0, limit, 4 * limit])
    bar.set_ticklabels(["0", f"limit {limit:g}", f"{4 * limit:g} and more"])
    return figure


def calibration(report: dict[str, Any]) -> Figure:
    """What the live model expected against what came true; on the dashed line they agree. A dot's area is its share."""
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    panels = figure.subplots(1, len(report["calibration"]), sharey=True, squeeze=False)[0]
    for axes, (name, curve) in zip(panels, report["calibration"].items()):
        expected, observed, n = (np.array(curve[key], float) for key in ("expected", "observed", "n"))
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 2)))
        axes.plot(expected, observed, color=BLUE, lw=1.4)
        axes.scatter(expected, observed, 14 + 400 * n / max(n.sum(), 1), color=BLUE, alpha=0.75, lw=0)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=f"expected share of “{name}”")
    panels[0].set_ylabel("share that came true")
    return figure


def requests_by_day(report: dict[str, Any]) -> Figure:
    """Requests through the load balancer, and how long they took; days with failures bear a red mark."""
    figure, axes = _over_time(report, "", 3.2)
    return figure
