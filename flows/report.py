"""What a replay found, as one page that opens offline: a verdict in words, key figures, plots and tables."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure

from contracts.contract import is_output
from deployments.replicas import write_whole

Report = dict[str, Any]
DAY, WEEK = "datetime64[D]", np.timedelta64(7, "D")
WIDTH, LEFT, TOP, BOTTOM = 11.0, 1.7, 0.5, 0.42  # inches, the same in every plot: dates line up down the page
INK, SOFT, BLUE, PALE, GREY, GREEN, RED = "#1c2733", "#5b6875", "#0072b2", "#9cc3de", "#87909a", "#009e73", "#d55e00"
LOOKS = {"live": {"color": BLUE, "lw": 2.4, "zorder": 4}, "frozen": {"color": GREY, "lw": 1.6, "ls": (0, (4, 1.5))},
         "calendar": {"color": GREEN, "lw": 1.6, "ls": (0, (1, 1))}}
HEAT = LinearSegmentedColormap.from_list("drift", [(0, "#f1f5f8"), (.5, "#a3c3dc"), (.5, "#f6bf4c"), (1, "#7d1d0c")])
LEGEND = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1), "ncols": 4, "frameon": False, "borderaxespad": 0.2}
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.grid": True, "axes.axisbelow": True,
    "axes.edgecolor": "#c5ccd3", "axes.labelcolor": SOFT, "axes.spines.top": False, "axes.spines.right": False,
    "grid.color": "#e8ecf0", "xtick.color": SOFT, "ytick.color": SOFT, "xtick.major.size": 0, "ytick.major.size": 0,
    "date.converter": "concise",
}


def write(report: Report, folder: Path) -> None:
    """Put report.html and report.json into `folder`, each whole or not at all."""
    write_whole(folder / "report.html", render(report))
    write_whole(folder / "report.json", json.dumps(report, indent=1, allow_nan=False))


def render(report: Report) -> str:
    """The page: one HTML document that asks nothing of the network and runs no script."""
    plots = (log_loss_by_week, gain_by_month, versions_in_service, drift_by_week, calibration, requests_by_day,
             latency_by_day)
    drawn = [(plot.__name__.replace("_", " ").capitalize(), plot.__doc__, drawing(plot, report)) for plot in plots]
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page.filters["score"] = lambda value: "–" if value is None else f"{value:.4f}"
    return page.from_string(PAGE).render(report, look=LOOK, headline=headline(report), plots=drawn, models=list(LOOKS),
                                         drifted=list(distances(report))[:3])


def headline(report: Report) -> str:
    """The verdict in one sentence, whichever way it went; under a twentieth of a percent counts as level."""
    live, beaten, said = report["total"]["logloss_live"], [], []
    if live is None:
        return "No verdict: no record was scored against its label."
    for rival, name in (("frozen model", "frozen"), ("monthly calendar", "calendar")):
        gain = round(1 - live / report["total"][f"logloss_{name}"], 3)
        beaten += [rival] * (gain > 0)
        way = f"{abs(gain):.1%} {'lower' if gain > 0 else 'higher'} than" if gain else "level with"
        said.append(f"{way} the {rival}’s")
    lead = ("The loop did not pay", f"The loop beat only the {''.join(beaten)}", "The loop beat both rivals")[len(beaten)]
    return f"{lead}: its log loss is {' and '.join(said)}."


def drawing(plot: Callable[[Axes, Report], float], report: Report) -> str:
    """A plot as inline SVG whose text takes the page's font; `plot` says how many inches high it is."""
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        starts = [*column(report["weeks"], "start", DAY), *column(report["versions"], "promoted", DAY)]
        axes.set_xlim(min(starts), np.datetime64(report["until"], "D"))
        inches = plot(axes, report)
        height = inches + TOP + BOTTOM
        figure.set_size_inches(WIDTH, height)
        axes.set_position((LEFT / WIDTH, BOTTOM / height, 0.98 - LEFT / WIDTH, inches / height))
        return inline(figure, plot.__name__)


def inline(figure: Figure, name: str) -> str:
    """A figure as SVG inside a page; `name` is its own there, for the ids of one plot must not meet another's."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r'(?s)^.*?<svg[^>]*(viewBox="[^"]*")[^>]*>', r'<svg role="img" \1>', file.getvalue(), count=1)
    return re.sub(r'<g id="[^"]*"', "<g", svg)


def column(rows: list[dict[str, Any]], key: str, kind: str = "float") -> np.ndarray:
    return np.array([row[key] for row in rows], kind)


def log_loss_by_week(axes: Axes, report: Report) -> float:
    """Lower is better, on the same records. Live is the loop; frozen the first model, never retrained; calendar one
    retrained at each month's start without a gate. A line marks each promotion, a red cross each refusal."""
    middles = column(report["weeks"], "start", DAY) + WEEK // 2
    for name, look in LOOKS.items():
        axes.plot(middles, column(report["weeks"], f"logloss_{name}"), label=name, **look)
    for number, date in zip(column(report["versions"], "number", "int"), column(report["versions"], "promoted", DAY)):
        axes.axvline(date, color=INK, lw=0.8)
        axes.annotate(f"v{number}", (date, 1.02), xycoords=axes.get_xaxis_transform(), ha="center", weight="bold")
    refused = column(report["refused"], "at", DAY)
    axes.plot(refused, np.full(len(refused), 1.04), "x", color=RED, ms=6, mew=2, clip_on=False, label="refused",
              transform=axes.get_xaxis_transform())
    axes.legend(**LEGEND | {"bbox_to_anchor": (-0.01, 1.07)})
    axes.set_ylabel("log loss")
    return 3.3


def gain_by_month(axes: Axes, report: Report) -> float:
    """Higher is better: how far the log loss lies below the frozen model's."""
    months = [month for month in report["months"] if month["logloss_live"] is not None]
    starts = column(months, "month", "datetime64[M]")
    days = (np.minimum((starts + 1).astype(DAY), np.datetime64(report["until"])) - starts.astype(DAY)).astype(float)
    for name, place, alpha in (("live", 0.1, 1), ("calendar", 0.5, 0.5)):
        gain = column(months, "logloss_frozen") - column(months, f"logloss_{name}")
        bars = axes.bar(matplotlib.dates.date2num(starts) + days * place, gain, days * 0.4, align="edge", label=name,
                        color=LOOKS[name]["color"], alpha=alpha)
        axes.bar_label(bars, fmt="{:+.3f}", fontsize=7, padding=2, color=SOFT)
    axes.axhline(0, color=SOFT, lw=0.8)
    axes.legend(**LEGEND)
    axes.set_ylabel("gain in log loss")
    axes.margins(y=0.12)
    return 2.2


def versions_in_service(axes: Axes, report: Report) -> float:
    """Which version answered when, and the rows it was trained on; a red cross: the gate refused a challenger."""
    versions, refused, until = report["versions"], report["refused"], np.datetime64(report["until"], "D")
    starts = column(versions, "promoted", DAY)
    axes.barh(range(len(versions)), np.append(starts[1:], until) - starts, 0.6, starts, color=BLUE)
    axes.plot(column(refused, "at", DAY), [len(versions)] * len(refused), "x", color=RED, ms=7, mew=2)
    names = [f"v{one['number']} · {one['version'][:6]} · {one['rows']:,} rows" for one in versions]
    axes.set_yticks(range(len(names) + 1), [*names, "refused" if refused else "none refused"], fontsize=8)
    axes.invert_yaxis()
    return 0.28 * (len(names) + 1)


def drift_by_week(axes: Axes, report: Report) -> float:
    """How far from the training data, 1 being what an ordinary week keeps; amber to brown is beyond. Below the line: the model's answers."""
    found, limit = distances(report), report.get("distance_limit", 1.0)
    names, norm, height = list(found), TwoSlopeNorm(limit, 0, 4 * limit), 0.2 * max(len(found), 2)
    for at, start in enumerate(column(report["weeks"], "start", DAY)):
        heat = np.array([[found[name][at]] for name in names]).reshape(-1, 1)
        axes.pcolormesh([start, start + WEEK], range(len(names) + 1), heat, cmap=HEAT, norm=norm, ec="white")
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    axes.set_ylim(max(len(names), 2), 0)
    axes.axhline(sum(not is_output(name) for name in names), color=INK, lw=1)
    axes.grid(False)
    bar = axes.figure.colorbar(
        matplotlib.cm.ScalarMappable(norm, HEAT), cax=axes.inset_axes((0, 1 + 0.08 / height, 0.3, 0.12 / height)),
        orientation="horizontal", ticklocation="top", extend="max", ticks=[0, limit, 4 * limit])
    bar.set_ticklabels(["0", f"limit {limit:g}", f"{4 * limit:g}"])
    return height


def distances(report: Report) -> dict[str, list[float]]:
    """Each feature's distances by week, NaN where unknown: the furthest inputs first, the model's answers last."""
    weeks = [week["distances"] for week in report["weeks"]]
    found = {name: [week.get(name, np.nan) for week in weeks] for name in {name for week in weeks for name in week}}
    return dict(sorted(found.items(), key=lambda one: (is_output(one[0]), -np.nanmean(one[1]), one[0])))


def calibration(axes: Axes, report: Report) -> float:
    """What the live model expected against what came true: on the dashed line they agree. A dot's area grows with its records."""
    axes.axis("off")
    for place, (name, curve) in enumerate(report["calibration"].items()):
        panel = axes.inset_axes((place / len(report["calibration"]), 0, 0.84 / len(report["calibration"]), 1))
        expected, observed, n = (np.array(curve[key], float) for key in ("expected", "observed", "n"))
        panel.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 2)))
        panel.plot(expected, observed, color=BLUE, lw=1.4)
        panel.scatter(expected, observed, 14 + 400 * n / max(n.sum(), 1), color=BLUE, alpha=0.75, lw=0, clip_on=False)
        panel.set(xlim=(0, 1), ylim=(0, 1), title=name, xlabel="expected", ylabel="" if place else "came true")
    return 2.8


def requests_by_day(axes: Axes, report: Report) -> float:
    """Requests through the load balancer; a red mark on top says that some of that day failed."""
    days, requests, failed = (column(report["days"], *what) for what in (("day", DAY), ("requests",), ("failed",)))
    axes.bar(days, requests - failed, 1, color=PALE, label="answered", align="edge")
    axes.bar(days, failed, 1, requests - failed, color=RED, label="failed", align="edge")
    axes.plot(days[failed > 0], np.full((failed > 0).sum(), 1.08 * requests.max(initial=1)), "v", color=RED, ms=7)
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


LOOK = """
body { max-width: 1080px; margin: 0 auto; padding: 56px 32px 96px; background: #fff; color: #1c2733;
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
h1 { font-size: 30px; line-height: 1.25; letter-spacing: -.01em; margin: 8px 0 40px; max-width: 30em }
h2 { font-size: 19px; margin: 64px 0 0 } p { margin: 4px 0 12px; max-width: 48em } p, dt, dd + dd, th { color: #5b6875 }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 28px 20px; margin: 0 }
dl div { border-top: 3px solid #0072b2; padding-top: 10px } dl .bad { border-color: #d55e00 }
dd { margin: 0; font-size: 28px; line-height: 1.3; font-weight: 600 } dt, dd + dd { font-size: 13px; font-weight: 400 }
svg { display: block; width: 100%; height: auto } svg text { font-family: inherit !important }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 500 } th, td { padding: 7px 16px 7px 0; border-bottom: 1px solid #e3e8ed; vertical-align: top }
.n { text-align: right; white-space: nowrap } td.day { text-align: left } .live { color: #0072b2; font-weight: 600 }
td.retrain, td.page { color: #b34700; font-weight: 600 } .why { overflow-wrap: anywhere; color: #5b6875 }
.all td { font-weight: 600; border-bottom: 0 }
@media print { body { padding: 0; font-size: 12px } section, dl div, tr { break-inside: avoid } h2 { break-after: avoid } }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Perennial: {{ model }} until {{ until }}</title><style>
{{ look|safe }}
</style></head><body>
{% macro card(what, value, note, bad=false) %}<div{% if bad %} class="bad"{% endif %}><dt>{{ what }}<dd>{{ value }}<dd>{{ note }}</div>
{% endmacro %}
{% macro rivals(key) %}frozen {{ total[key ~ "_frozen"]|score }}, calendar {{ total[key ~ "_calendar"]|score }}{% endmacro %}
{% macro heads(figure) %}{% for name in models %}<th class="n">{{ figure }} {{ name }}{% endfor %}{% endmacro %}
{% macro scores(row, key) %}{% for name in models %}<td class="n {{ name }}">{{ row[key ~ "_" ~ name]|score }}{% endfor %}{% endmacro %}
{% macro reasons(row) %}<td class="why">{% for reason in row.reasons %}{{ reason }}{% if not loop.last %}; {% endif %}{% endfor %}{% endmacro %}
<p>Perennial · {{ model }} · {{ "{:,}".format(records_scored) }} records up to {{ until }}, replayed in {{ "%.0f"|format(seconds) }} s</p>
<h1>{{ headline }}</h1>
<dl>{{ card("Log loss, live", total.logloss_live|score, rivals("logloss")) }}{{ card("AUC, live", total.auc_live|score, rivals("auc")) }}
{{ card("Failed requests", requests_failed, "of {:,}".format(requests_sent), requests_failed) }}
{{ card("Promotions", promotions, "the first model’s included") }}
{{ card("Refusals", refusals, "after {} retrainings".format(retrains_triggered)) }}
{{ card("Drifted weeks", drift_events, "of {} judged; furthest: {}".format(weeks|length, drifted|join(", ") or "none")) }}</dl>
{% for title, how, svg in plots %}<section><h2>{{ title }}</h2><p>{{ how }}</p>{{ svg|safe }}</section>
{% if title.startswith("Versions") and refused %}<h2>Refusals</h2><table><thead><tr><th>On<th>Version<th>Why</thead>
{% for one in refused %}<tr><td class="n day">{{ one["at"] }}<td>{{ one.version[:12] }}{{ reasons(one) }}{% endfor %}</table>{% endif %}
{% endfor %}
{% if faults %}<h2>Faults that were put in</h2><table><thead><tr><th>From<th>What went wrong<th>Named<th>What was said</thead>
{% for one in faults %}<tr><td class="n day">{{ one["from"] }}<td>{{ one.name }}<td>{{ "yes" if one.named else "NO" }}<td class="why">
{% for said in one.said %}{{ said }}<br>{% endfor %}{% endfor %}</table>{% endif %}
<h2>Months</h2><table><thead><tr><th>Month<th class="n">Records{{ heads("Log loss") }}{{ heads("AUC") }}</thead>
{% for row in months %}<tr><td class="n day">{{ row.month }}<td class="n">{{ "{:,}".format(row.n) }}{{ scores(row, "logloss") }}
{{ scores(row, "auc") }}
{% endfor %}<tr class="all"><td>All<td class="n">{{ "{:,}".format(total.n) }}{{ scores(total, "logloss") }}{{ scores(total, "auc") }}</table>
<h2>Weekly verdicts</h2><table><thead><tr><th>Week of<th class="n">Records{{ heads("") }}<th>Verdict<th>Action<th>Reasons</thead>
{% for row in weeks %}<tr><td class="n day">{{ row.start }}<td class="n">{{ "{:,}".format(row.n) }}{{ scores(row, "logloss") }}
<td>{{ row.kind }}<td class="{{ row.action }}">{{ row.action }}{{ reasons(row) }}{% endfor %}</table>
</body></html>
"""
