"""The replay's report, one HTML page."""

import json
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from flows.demo.plots import (
    LOOKS,
    Report,
    calibration,
    distances,
    drawing,
    drift_by_week,
    gain_by_month,
    latency_by_day,
    log_loss_by_week,
    requests_by_day,
    versions_in_service,
)
from service.files import write_text


def write(report: Report, folder: Path) -> None:
    """Put report.html and report.json into `folder`, each whole or not at all."""
    write_text(folder / "report.html", render(report))
    write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False))


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
