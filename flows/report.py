"""The replay's report: one HTML file that opens offline, its plots inside as SVG."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment
from matplotlib.figure import Figure

matplotlib.rcParams["svg.hashsalt"] = "perennial"  # the same report gives the same file
COLOURS = {"live": "#0072B2", "frozen": "#999999", "calendar": "#E69F00"}  # told apart by the colour-blind too
REFUSED, PROMOTED = "#D55E00", "#009E73"

PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Replay of {{ report.model }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.7rem; line-height: 1.3 } h2 { margin: 2.6rem 0 .6rem; font-size: 1.15rem } svg { width: 100%; height: auto }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1rem } dt { color: #666; font-size: .85rem }
dd { margin: 0; font-size: 1.5rem; font-weight: 600 } table { border-collapse: collapse; width: 100%; font-size: .88rem }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top } td.n { font-variant-numeric: tabular-nums }
</style>
<h1>{{ headline }}</h1>
<dl>{% for name, value in key %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
{% for title, plot in plots %}<h2>{{ title }}</h2>{{ plot | safe }}{% endfor %}
<h2>Months</h2><table><tr><th>month<th>records<th>live<th>frozen<th>calendar<th>AUC live<th>AUC frozen<th>AUC calendar</tr>
{% for m in report.months %}<tr><td>{{ m.month }}<td class="n">{{ "{:,}".format(m.n) }}{% for f in figures %}<td class="n">{{ short(m[f]) }}{% endfor %}</tr>
{% endfor %}</table>
<h2>Windows</h2><table><tr><th>from<th>verdict<th>what followed<th>reasons</tr>
{% for w in report.weeks %}<tr><td>{{ w.start }}<td>{{ w.kind }}<td>{{ w.action }}<td>{{ w.reasons | join("; ") }}</tr>{% endfor %}</table>
<h2>Refused challengers</h2>{% if report.refused %}<table><tr><th>version<th>judged at<th>reasons</tr>
{% for r in report.refused %}<tr><td>{{ r.version[:12] }}<td>{{ r.at }}<td>{{ r.reasons | join("; ") }}</tr>{% endfor %}</table>{% else %}<p>None.</p>{% endif %}
</html>""")


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write report.json and report.html, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("report.json", json.dumps(report, indent=1, default=str)), ("report.html", render(report))):
        beside = folder / f".{name}.tmp"
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, folder / name)


def render(report: Mapping[str, Any]) -> str:
    """The page."""
    key = [("requests sent", f"{report['requests_sent']:,}"), ("requests failed", report["requests_failed"]),
           ("retrainings", report["retrains_triggered"]), ("promotions", report["promotions"]), ("refusals", report["refusals"]),
           ("windows drifted", report["drift_events"])]
    plots = [("Log loss by week; promotions and refusals marked", scores_over_time(report)),
             ("Versions", versions(report)), ("Drift by feature and week (PSI)", drift_map(report)),
             ("Calibration of the live service", calibration(report)), ("Requests and latency by day", requests(report))]
    figures = [f"{figure}_{name}" for figure in ("logloss", "auc") for name in COLOURS]
    return PAGE.render(report=report, headline=headline(report), key=key, plots=plots, figures=figures, short=_short)


def headline(report: Mapping[str, Any]) -> str:
    """What the replay showed, good or bad, in one sentence."""
    total, failed = report["total"], report["requests_failed"]
    live = total["logloss_live"]
    said = [f"{'better' if live < total[f'logloss_{peer}'] else 'not better'} than the {what} ({total[f'logloss_{peer}']:.4f})"
            for peer, what in (("frozen", "frozen model"), ("calendar", "calendar"))]
    lost = "no request failed" if not failed else f"{failed} of {report['requests_sent']:,} requests failed"
    return f"Log loss {live:.4f}: {said[0]}, {said[1]}; {lost}."


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _figure(height: float = 3.2) -> tuple[Figure, Any]:
    figure = Figure(figsize=(10.5, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg"):]


def _dates(values: list[str]) -> np.ndarray:
    return np.array(values, dtype="datetime64[D]")


def scores_over_time(report: Mapping[str, Any]) -> str:
    figure, axes = _figure(3.8)
    weeks = [week for week in report["weeks"] if week.get("logloss_live") is not None]
    for name, colour in COLOURS.items():
        axes.plot(_dates([w["start"] for w in weeks]), [w[f"logloss_{name}"] for w in weeks], color=colour, label=name, lw=1.8)
    for version in report["versions"]:
        axes.axvline(_dates([version["promoted"]])[0], color=PROMOTED, lw=1)
        axes.text(_dates([version["promoted"]])[0], 1.0, f" {version['number']}", color=PROMOTED, transform=axes.get_xaxis_transform(), va="top")
    for refused in report["refused"]:
        axes.axvline(_dates([refused["at"]])[0], color=REFUSED, lw=1, ls=":")
    axes.set_ylabel("log loss (lower is better)")
    axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.08))
    return _svg(figure)


def versions(report: Mapping[str, Any]) -> str:
    figure, axes = _figure(0.6 + 0.32 * max(len(report["versions"]), 1))
    starts = _dates([version["promoted"] for version in report["versions"]] + [report["until"]])
    for row, version in enumerate(report["versions"]):
        axes.barh(row, (starts[row + 1] - starts[row]) / np.timedelta64(1, "D"), left=starts[row].astype("O"), color=COLOURS["live"])
    axes.set_yticks(range(len(report["versions"])), [f"{v['number']}: {v['version'][:8]}, {v['rows']:,} rows" for v in report["versions"]])
    axes.invert_yaxis()
    axes.xaxis_date()
    return _svg(figure)


def drift_map(report: Mapping[str, Any]) -> str:
    weeks = [week for week in report["weeks"] if week["distances"]]
    names = sorted({name for week in weeks for name in week["distances"]})
    if not names:
        return "<p>No window had traffic enough to compare.</p>"
    figure, axes = _figure(0.8 + 0.24 * len(names))
    grid = np.array([[week["distances"].get(name, np.nan) for week in weeks] for name in names], dtype=float)
    shown = axes.imshow(grid, aspect="auto", cmap="cividis", vmin=0, vmax=1)
    axes.set_yticks(range(len(names)), names)
    step = max(1, len(weeks) // 10)
    axes.set_xticks(range(0, len(weeks), step), [week["start"] for week in weeks[::step]])
    figure.colorbar(shown, label="PSI (1 and above: brightest)", extend="max")
    return _svg(figure)


def calibration(report: Mapping[str, Any]) -> str:
    figure, axes = _figure(3.6)
    axes.plot([0, 1], [0, 1], color="#bbb", lw=1)
    for (name, bins), colour in zip(report["calibration"].items(), matplotlib.colormaps["tab10"].colors):
        points = [(e, o) for e, o in zip(bins["expected"], bins["observed"]) if e is not None]
        axes.plot(*zip(*points), "o-", color=colour, label=name, ms=4)
    axes.set(xlabel="probability that was answered", ylabel="share that came true", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    return _svg(figure)


def requests(report: Mapping[str, Any]) -> str:
    figure, axes = _figure(2.8)
    days = _dates([day["day"] for day in report["days"]])
    for name, style in (("p50_ms", "-"), ("p99_ms", ":")):
        axes.plot(days, [day[name] for day in report["days"]], style, color=COLOURS["live"], label=name.replace("_ms", " (ms)"))
    failed = [day for day in report["days"] if day["failed"]]
    axes.plot(_dates([day["day"] for day in failed]), [day["p99_ms"] for day in failed], "x", color="red", label="requests failed")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, ncols=3)
    return _svg(figure)
