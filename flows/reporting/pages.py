"""The HTML page of a judged window."""

from datetime import datetime

from jinja2 import Environment, StrictUndefined

from flows.monitoring.decision import decided
from flows.monitoring.evaluation import recount_window
from flows.reporting import window_report
from flows.reporting.charts import HIGH, WIDE
from flows.reporting.window_report import Report
from registry.context import ModelContext


def report(context: ModelContext, window: str) -> bytes:
    """A judged window as one HTML page, from what the ledger and the store hold now."""
    verdict, start = window_report.judged(context, window), datetime.fromisoformat(window)
    action = decided(context.ledger.state(), window, context.contract.drift)
    return render_window(window_report.window_report(context, window, action, recount_window(context, start, verdict)))


FILTERS = {
    "short": lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.3g}",
    "figure": lambda value: f"{round(value, 4) + 0.0:.4f}",  # a negative zero is a zero
    "chance": lambda value: f"{value:.4f}" if value >= 1e-4 else "< 0.0001",
    "share": lambda value: f"{value:.1%}",
    "at": lambda value: f"{value:.1f}",
    "day": lambda time: time.removesuffix("T00:00:00").replace("T", " "),
}


def render_window(report: Report) -> bytes:
    """The page: one HTML document that asks nothing of the network and runs no script."""
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= FILTERS
    return page.from_string(PAGE).render(report, wide=WIDE, high=HIGH).encode()


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Perennial: {{ model }}, {{ window|day }}: {{ kind }}</title><style>
:root { color-scheme: light dark; --paper: #fff; --card: #f6f8fa; --ink: #1c2733; --soft: #5b6875; --line: #e3e8ed;
        --before: #b9cbda; --now: #0072b2; --bad: #c04f00 }
@media (prefers-color-scheme: dark) {
:root { --paper: #12171d; --card: #1a2129; --ink: #e4e9ee; --soft: #9aa7b4; --line: #2b343e;
        --before: #46596b; --now: #56b4e9; --bad: #ff9a52 } }
body { max-width: 1140px; margin: 0 auto; padding: 48px 28px 80px; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
h1 { font-size: 26px; text-wrap: balance; line-height: 1.3; letter-spacing: -.01em; margin: 6px 0 16px; max-width: 36em }
h2 { font-size: 19px; margin: 56px 0 0 } h3 { font-size: 15px; margin: 0 } h1, h3, ul, .wrap { overflow-wrap: anywhere }
p { margin: 4px 0 14px } p:not(.top) { max-width: 56em } p, dt, dd + dd, th, h3 span { color: var(--soft) } h3 span { font-weight: 400 }
ul { margin: 0 0 32px; padding-left: 1.2em } .bad { color: var(--bad) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 24px 20px; margin: 0 0 16px }
dl div { border-top: 3px solid var(--now); padding-top: 8px } dl .over { border-color: var(--bad) }
dd { margin: 0; font-size: 22px; line-height: 1.35; font-weight: 600 } dt, dd + dd { font-size: 13px; font-weight: 400 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 16px }
.card { background: var(--card); border-radius: 6px; padding: 12px 14px; min-width: 0 }
.card header { display: flex; gap: 12px; margin-bottom: 4px } .card h3 { flex: 1 } .card b { white-space: nowrap }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: 6px 16px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; text-align: left; font-weight: 400 }
.card table { margin-bottom: 10px; font-size: 12px } .card th, .card td { padding: 3px 0 3px 8px } .card tr > :first-child { padding-left: 0 }
th.n, td.n { text-align: right; white-space: nowrap } td.n.day { text-align: left }
svg { display: block; width: 100%; max-width: 420px; height: auto } svg.swatch { display: inline; width: 22px; margin: 0 4px 0 10px }
text { font-size: 11px; fill: var(--ink); unicode-bidi: isolate } text.soft { fill: var(--soft) }
.end { text-anchor: end } .middle { text-anchor: middle } .before { fill: var(--before) } .now { fill: var(--now) } .beyond { fill: var(--bad) }
.curve { fill: none; stroke: var(--now); stroke-width: 1.6 } .limit { stroke: var(--bad); stroke-dasharray: 4 3 }
.mark { stroke: var(--soft); stroke-width: .8 } .span { stroke: var(--now); stroke-width: 5; opacity: .3 }
.estimate { border: 1px dashed var(--soft); border-radius: 6px; padding: 10px 14px } .estimate b { color: var(--bad) }
@media print { body { padding: 0; font-size: 12px } .card, dl div, tr { break-inside: avoid } h2 { break-after: avoid } }
</style></head><body>
{% macro fact(what, value, note, over=false) %}
<div{% if over %} class="over"{% endif %}><dt>{{ what }}<dd>{{ value }}<dd>{{ note }}</div>
{% endmacro %}
{% macro picture(bars) %}
{% set alone = bars|rejectattr("rest")|list %}
{% set most = [alone|map(attribute="before")|max, alone|map(attribute="now")|max, 1e-9]|max %}
<svg viewBox="0 0 340 {{ bars|length * 16 }}" role="img">
{% for bar in bars %}
{% set y = loop.index0 * 16 %}
<g><title>{{ bar.label }}: {{ bar.before|share }} → {{ bar.now|share }}</title>
<text x="136" y="{{ y + 12 }}" class="end{{ " soft" if bar.rest }}">{{ bar.label|truncate(21, true, "…", 0) }}</text>
{% if not bar.rest %}
<rect class="before" x="142" y="{{ y + 2 }}" width="{{ (bar.before / most * 104)|at }}" height="12" rx="1"/>
<rect class="now" x="142" y="{{ y + 5 }}" width="{{ (bar.now / most * 104)|at }}" height="6" rx="1"/>
{% endif %}
<text x="340" y="{{ y + 12 }}" class="end{{ " soft" if bar.rest }}">{{ bar.before|share }} → {{ bar.now|share }}</text></g>
{% endfor %}
</svg>
{% endmacro %}
{% macro curve(line) %}
<svg viewBox="-46 -16 350 120" role="img">
<text x="-8" y="4" class="end soft">{{ line.high|short }}</text><text x="-8" y="{{ high + 4 }}" class="end soft">{{ line.low|short }}</text>
{% for mark in line.marks %}
<g><title>{{ mark.version }}</title><line class="mark" x1="{{ mark.x|at }}" x2="{{ mark.x|at }}" y1="-2" y2="{{ high }}"/>
<text x="{{ mark.x|at }}" y="-6" class="middle soft">{{ mark.version.split(" ")[0] }}</text></g>
{% endfor %}
{% if line.limit is not none %}
<line class="limit" x1="0" x2="{{ wide }}" y1="{{ line.limit|at }}" y2="{{ line.limit|at }}"/>
{% endif %}
{% for run in line.runs %}
<polyline class="curve" points="{% for point in run %}{{ point.x|at }},{{ point.y|at }} {% endfor %}"/>
{% for point in run %}
<g><title>{{ point.start|day }}: {{ point.value|short }}</title>
{% if point.span %}
<line class="span" x1="{{ point.x|at }}" x2="{{ point.x|at }}" y1="{{ point.span[0]|at }}" y2="{{ point.span[1]|at }}"/>
{% endif %}
{% set size = 4 if point.start == window else 2.4 %}
<circle class="{{ "beyond" if point.beyond else "now" }}" cx="{{ point.x|at }}" cy="{{ point.y|at }}" r="{{ size }}"/></g>
{% endfor %}
{% endfor %}
<text x="0" y="{{ high + 16 }}" class="soft">{{ first|day if first != window }}</text>
<text x="{{ wide }}" y="{{ high + 16 }}" class="end soft">{{ window|day }}</text>
</svg>
{% endmacro %}
<p class="top">Perennial · {{ model }} · window {{ window|day }} to {{ end|day }} · answered by {{ version }} · {{ kind }} → {{ action }}</p>
<h1>{{ headline }}</h1>
<ul>{% for reason in reasons %}<li>{{ reason }}{% else %}<li>No check found anything.{% endfor %}</ul>
<dl>{{ fact("Records answered", rows|short, "{:,} were needed".format(needed) if needed else "") }}
{{ fact("Records refused", bad|short, "by the service") }}
{% set drifted = columns|selectattr("drifted")|list|length %}
{{ fact("Columns beyond their floor", drifted, "of {} judged".format(columns|length), drifted) }}
{% set mine = scores.mine %}
{{ fact("Log loss", mine.log_loss|figure if mine else "–", "on {:,} labels".format(mine.rows) if mine else "no label was in") }}
{{ fact("Gap of class shares", mine.gap|figure if mine else "–", "limit {:g}".format(scores.limit), mine and mine.gap > scores.limit) }}</dl>
{% if since != window %}
<p>The window alone had too few records: it was judged together with those since {{ since|day }}.</p>
{% endif %}
{% if counted != rows %}
<p class="bad">The pictures count {{ counted|short }} records, the verdict was given on {{ rows|short }}: profiles came or went since.</p>
{% endif %}
<section><h2>Columns, the furthest first</h2>
<p>How far, in units of the floor, which is what ordinary windows keep; 1 at most where chance may have done it.
Shares of the records by bin:<svg class="swatch" viewBox="0 0 22 12"><rect class="before" width="22" height="12"/></svg>training data
<svg class="swatch" viewBox="0 0 22 12"><rect class="now" y="3" width="22" height="6"/></svg>this window.
{% if ignored %}Not judged, as the contract says: {{ ignored|join(", ") }}.{% endif %}</p>
{% if cumulative %}
<p>By the training data of the first champion:
{% for name, times in cumulative.items() %}
{{ name }} {{ times|at }}{{ "," if not loop.last }}
{% endfor %}
times their floor. Slow drift is told, and starts nothing: each retraining was meant to follow the world.</p>
{% endif %}
{% if not columns %}
<p>No column was judged: there was no traffic.</p>
{% endif %}
<div class="cards">
{% for column in columns %}
<article class="card"><header><h3>{{ column.name }}{% if column.output %} <span>the model’s answer</span>{% endif %}</h3>
<b{% if column.drifted %} class="bad"{% endif %}>{{ column.score }}</b></header>
<table><thead><tr><th>check<th class="n">effect<th class="n">floor<th class="n">chance</thead>
{% for check in column.checks %}
{% set found = check.figures %}
<tr{% if found.drifted %} class="bad"{% endif %}><td>{{ check.what }}
<td class="n">{{ found.effect|figure }}<td class="n">{{ found.threshold|figure }}<td class="n">{{ found.p_value|chance }}
{% if found.since or found.slice %}
<tr class="bad"><td colspan="4" class="wrap">{{ ["since " ~ found.since if found.since, "carried by " ~ found.slice
  if found.slice]|select|join(", ") }}
{% endif %}
{% endfor %}</table>
{{ picture(column.bars) }}</article>
{% endfor %}</div></section>

<section><h2>The windows before</h2>
<p>How far each of the furthest columns was, in units of its floor (dashed). At an upright line another version begins to answer,
and its training data is the measure.</p>
<div class="cards">
{% for trend in trends %}
<article class="card"><header><h3>{{ trend.name }}</h3><b>{{ trend.score }}</b></header>{{ curve(trend) }}</article>
{% endfor %}</div></section>

<section><h2>Scores</h2>
{% if mine %}
<p>On the {{ mine.rows|short }} events of the window whose labels were in: log loss {{ mine.log_loss|figure }}
{%- if scores.span %}, with 95 % confidence from {{ scores.span[0]|figure }} to {{ scores.span[1]|figure }}{% endif %};
gap {{ mine.gap|figure }}, limit {{ scores.limit|short }} from {{ scores.least|short }} labels on.
{% if mine.coverage is not none %}
Coverage: {{ mine.coverage|share }} of the logged predictions have met their label.
{% endif %}
The gap is the divergence, in nats, of the classes that came true from those that the model expected.</p>
{% else %}
<p>No label of this window was in when it was judged: there is no score.</p>
{% endif %}
{% if scores.estimate %}
<p class="estimate"><b>estimate</b> of what the labels will say if the model’s probabilities are right:
{% for name, value in scores.estimate.items() %}
{{ name|replace("_", " ") }} {{ value|short if value is number else value }}{{ "," if not loop.last else "." }}
{% endfor %}
It starts nothing by itself.</p>
{% endif %}
<div class="cards">
{% if scores.classes %}
<article class="card"><header><h3>Classes <span>expected → came true</span></h3></header>{{ picture(scores.classes) }}</article>
{% endif %}
{% for name, key in (("Log loss", "log_loss"), ("Gap", "gap")) if scores[key].runs %}
<article class="card"><header><h3>{{ name }}</h3><b>{{ mine[key]|figure if mine }}</b></header>{{ curve(scores[key]) }}</article>
{% endfor %}</div></section>

<section><h2>What followed</h2>
<p>The ledger’s events about this window and about the version that its retraining made, when this page was drawn.
What has come since: <code>perennial report {{ model }} --window {{ window }}</code></p>
<table><thead><tr><th>When (UTC)<th>What<th>About</thead>
{% for event in followed %}
<tr><td class="n day">{{ event["at"]|replace("T", " ") }}<td class="n day">{{ event.kind }}<td class="wrap">{{ event.about }}
{% endfor %}</table></section>
</body></html>
"""
