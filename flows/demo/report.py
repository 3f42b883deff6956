"""The replay's report, one HTML page."""

import json
from pathlib import Path

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
from flows.reporting.templates import environment
from service.atomic_files import write_text


def write(report: Report, folder: Path) -> None:
    """Write report.html and report.json to `folder`."""
    write_text(folder / "report.html", render(report))
    write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False))


def render(report: Report) -> str:
    """One self-contained HTML document, without scripts or links to other files."""
    plots = (log_loss_by_week, gain_by_month, versions_in_service, drift_by_week, calibration,
             requests_by_day, latency_by_day)
    drawn = [(plot.__name__.replace("_", " ").capitalize(), plot.__doc__, drawing(plot, report))
             for plot in plots]
    page = environment(Path(__file__).parent)
    page.filters["score"] = lambda value: "–" if value is None else f"{value:.4f}"
    return page.get_template("replay.html.j2").render(report, headline=headline(report), plots=drawn,
                                                      models=list(LOOKS), drifted=list(distances(report))[:3])


def headline(report: Report) -> str:
    """The result in one sentence; a difference below a twentieth of a percent counts as level."""
    live, beaten, comparisons = report["total"]["logloss_live"], [], []
    if live is None:
        return "No verdict: no record was scored against its label."
    for rival, name in (("frozen model", "frozen"), ("monthly calendar", "calendar")):
        gain = round(1 - live / report["total"][f"logloss_{name}"], 3)
        beaten += [rival] * (gain > 0)
        way = f"{abs(gain):.1%} {'lower' if gain > 0 else 'higher'} than" if gain else "level with"
        comparisons.append(f"{way} the {rival}’s")
    lead = ("The loop did not pay", f"The loop beat only the {''.join(beaten)}",
            "The loop beat both rivals")[len(beaten)]
    return f"{lead}: its log loss is {' and '.join(comparisons)}."
