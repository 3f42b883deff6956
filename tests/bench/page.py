"""All benchmarks' figures as one page that opens offline:
`python -m tests.bench.page` draws it from build/bench/*.json."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.demo.plots import BLUE, GREY, INK, LEGEND, PALE, RED, SOFT, STYLE, inline
from flows.reporting.templates import environment
from service.atomic_files import write_text
from tests.bench import ROOT

BENCH = ROOT / "build" / "bench"


class Benchmark(NamedTuple):
    """What it is about, and the environments of peers that it needs."""

    about: str
    peers: tuple[str, ...] = ()


BENCHMARKS = {  # in the order in which `make bench` runs them
    "startup": Benchmark("how long commands take to start"),
    "check": Benchmark("the contract check of whole tables"),
    "profile": Benchmark("profiles of the traffic", ("drift",)),
    "train": Benchmark("training, and the memory that it takes"),
    "monitor": Benchmark("judging windows of any size, and the memory that it takes"),
    "flows": Benchmark("what the flows add to the plain functions"),
    "ledger": Benchmark("a ledger of 100,000 events: appending, a cold start, requests on S3"),
    "loop": Benchmark("from a drift event to the new version on all replicas"),
    "serve": Benchmark("requests through the built bento, beside what else one might pick", ("serve", "mlserver")),  # noqa: E501
}
WIDTH, TOP, BOTTOM = 11.0, 0.4, 0.5  # inches
# Apart for the colour-blind, too.
PARTS = ("#0072b2", "#9cc3de", "#009e73", "#e69f00", "#cc79a7", "#d55e00", "#87909a", "#1c2733")

Found = dict[str, dict[str, Any]]
"""What each benchmark's file holds, by the benchmark's name."""


def main() -> None:
    place = BENCH / "index.html"
    write_text(place, render(found(BENCH)))
    print("drawn:", place.relative_to(ROOT))


def found(folder: Path) -> Found:
    """The files that are there; one that is not JSON holds what is wrong with it."""
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        return {"unreadable": f"{type(error).__name__}: {error}"}


def render(found: Found) -> str:
    """The page: one HTML document that asks nothing of the network and runs no script."""
    figures = [one | {"command": command(name), "met": met(one), "is_judged": is_judged(one)}
               for name, held in _in_order(found) for one in held.get("figures", ())]
    plots = ((how_far_from_what_was_asked, figures), (requests_a_second, peers(found)),
             (latency, peers(found)), (memory_as_rows_grow, found.get("train", {}).get("by_rows")),
             (from_drift_to_the_new_version, found.get("loop", {}).get("rounds")),
             (start_of_a_command, found.get("startup", {}).get("commands")))
    drawn = [(plot.__name__.replace("_", " ").capitalize(), plot.__doc__, drawing(plot, shown))
             for plot, shown in plots if shown]
    page = environment(Path(__file__).parent, ROOT / "flows" / "demo")
    page.filters["measure"] = measure
    newest = max((one for one in found.values() if "at" in one), key=lambda one: one["at"], default={})
    how = list(runs(found))
    lacking = [one["name"] for one in how if one["name"] in BENCHMARKS
               and (one["said"] or one["outcome"] not in ("", "done"))]
    return page.get_template("index.html.j2").render(
        headline=headline(figures, lacking), figures=figures, runs=how, plots=drawn, newest=newest)


def _in_order(found: Found) -> list[tuple[str, dict[str, Any]]]:
    """Those that `make bench` runs first, in its order; then the others."""
    names = [*(name for name in BENCHMARKS if name in found),
             *(name for name in found if name not in BENCHMARKS)]
    return [(name, found[name]) for name in names]


def met(figure: dict[str, Any]) -> bool:
    """By the median; not one that was not measured, or is no number."""
    if figure["measured"] is None:
        return False
    return (figure["measured"] >= figure["asked"] if figure["sense"] == "at least"
            else figure["measured"] <= figure["asked"])


def is_judged(figure: dict[str, Any]) -> bool:
    """Whether a slower machine measures the same: ratios,
    counts and memory are judged, times and rates are shown."""
    return figure["unit"] not in ("s", "ms", "requests/s", "rows/s")


def headline(figures: list[dict[str, Any]], lacking: list[str]) -> str:
    """How many ratios are met, whichever way it went, and
    of which benchmarks there are none of the last run."""
    if not figures:
        return "Nothing was measured yet: run make bench."
    judged = [one for one in figures if one["is_judged"]]
    met_ones, lost = sum(one["met"] for one in judged), sum(one["measured"] is None for one in judged)
    missed = len(judged) - met_ones - lost
    said = f"{met_ones} of {len(judged)} ratios are met" + (
        f", {missed} missed" if missed else "") + (f", {lost} not measured" if lost else "")
    return f"{said}; not measured: {', '.join(lacking)}." if lacking else f"{said}."


def runs(found: Found) -> Iterator[dict[str, Any]]:
    """How each benchmark went in the last `make bench`, and which have left no file or no figure."""
    last = found.get("run", {}).get("benchmarks", {})
    for name in [*BENCHMARKS, *(name for name in found if name not in BENCHMARKS and name != "run")]:
        held, how = found.get(name, {}), last.get(name, {})
        said = (held.get("unreadable")
                or ("" if name in found else f"no build/bench/{name}.json: run {command(name)}"))
        yield {"name": name, "about": BENCHMARKS[name].about if name in BENCHMARKS else "",
               "command": command(name), "said": said, "seconds": how.get("seconds"),
               "outcome": how.get("outcome", ""), "at": held.get("at", ""), "git": held.get("git", "")}


def command(name: str) -> str:
    return f".venv/bin/python -m tests.bench.{name}"


def measure(value: float | None) -> str:
    """A number as people write it: three or four digits that count."""
    if value is None or np.isnan(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def peers(found: Found) -> dict[str, dict[str, Any]]:
    """Who was measured beside Perennial, the fastest first; those that failed last."""
    held = found.get("serve", {}).get("peers", {})
    return dict(sorted(held.items(), key=lambda one: -np.median(one[1].get("requests_per_second") or [0])))


def drawing(plot: Callable[[Axes, Any], float], shown: Any) -> str:
    """A plot as inline SVG; `plot` says how many inches high it
    is. Long names get the room that they need on the left."""
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        height = plot(axes, shown) + TOP + BOTTOM
        figure.set_size_inches(WIDTH, height)
        longest = max((len(label.get_text()) for label in axes.get_yticklabels()), default=0)
        left = min(0.7 + longest * 0.068, 0.5 * WIDTH)
        axes.set_position((left / WIDTH, BOTTOM / height, 0.94 - left / WIDTH, 1 - (TOP + BOTTOM) / height))
        return inline(figure, plot.__name__)


def _bars(axes: Axes, names: list[str]) -> np.ndarray:
    """A line for each name, the first on top."""
    at = np.arange(len(names))
    axes.set_yticks(at, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    return at


def how_far_from_what_was_asked(axes: Axes, figures: list[dict[str, Any]]) -> float:
    """How many times better than asked each figure is, with
    its spread over the rounds: right of the line is met."""
    shown = [one for one in figures if one["measured"] and one["asked"]]
    at = _bars(axes, [one["what"] for one in shown])
    better = [[one[key] / one["asked"] if one["sense"] == "at least" else one["asked"] / one[key]
               for key in ("measured", "low", "high")] for one in shown]
    for place, (one, (middle, *ends)) in zip(at, zip(shown, better)):
        colour = BLUE if one["met"] else RED
        axes.plot(sorted(ends), [place, place], color=colour, lw=5, alpha=0.35, solid_capstyle="butt")
        axes.plot(middle, place, "o", color=colour, ms=6)
        axes.annotate(f"{middle:.2f} ×", (max(middle, *ends), place), (8, 0), textcoords="offset points",
                      va="center", fontsize=8, color=SOFT, bbox={"fc": "white", "ec": "none", "pad": 0.5})
    axes.axvline(1, color=INK, lw=1)
    axes.set_xscale("log")
    _plain(axes, *(value for values in better for value in values), 1.0)
    axes.set_xlabel("times better than asked (logarithmic)")
    return 0.3 * len(shown)


def _plain(axes: Axes, *values: float) -> None:
    """A logarithmic axis over the values with room beside them, its ticks as people write numbers."""
    axes.set_xlim(min(values) / 1.3, max(values) * 1.6)
    narrow = max(values) / min(values) < 20
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,),
                                                              numticks=12))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def requests_a_second(axes: Axes, peers: dict[str, dict[str, Any]]) -> float:
    """One-record requests through each server, on one core: the
    median of the rounds, a line from the least to the most."""
    at = _bars(axes, list(peers))
    rates = [one.get("requests_per_second") or [] for one in peers.values()]
    for place, name, rounds in zip(at, peers, rates):
        if not rounds:
            _failed(axes, place, peers[name])
            continue
        axes.barh(place, np.median(rounds), 0.6, color=BLUE if name.startswith("Perennial") else PALE)
        axes.plot([min(rounds), max(rounds)], [place, place], color=INK, lw=1.2)
        axes.annotate(measure(float(np.median(rounds))), (max(rounds), place), (5, 0),
                      textcoords="offset points", va="center", fontsize=8)
    axes.set_xscale("log")
    _plain(axes, *(rate for rounds in rates for rate in rounds), 10.0)
    axes.set_xlim(left=10)
    axes.set_xlabel("requests a second (logarithmic)")
    return 0.32 * len(peers)


def latency(axes: Axes, peers: dict[str, dict[str, Any]]) -> float:
    """What a caller waits for one record, at the median and at the 99th percentile of the same load."""
    at = _bars(axes, list(peers))
    for place, (name, one) in zip(at, peers.items()):
        if not one.get("p50_ms"):
            _failed(axes, place, one)
            continue
        colour = BLUE if name.startswith("Perennial") else GREY
        axes.plot([one["p50_ms"], one["p99_ms"]], [place, place], color=colour, lw=2, alpha=0.5)
        axes.plot(one["p50_ms"], place, "o", color=colour, ms=6)
        axes.plot(one["p99_ms"], place, "|", color=colour, ms=14, mew=2.4)
        axes.annotate(f"{measure(one['p50_ms'])} to {measure(one['p99_ms'])}", (one["p99_ms"], place), (8, 0),
                      textcoords="offset points", va="center", fontsize=8, color=SOFT)
    axes.plot([], [], "o", color=GREY, label="median")
    axes.plot([], [], "|", color=GREY, ms=12, mew=2.4, ls="", label="99th percentile")
    axes.legend(**LEGEND)
    axes.set_xscale("log")
    _plain(axes, *(one[key] for one in peers.values() for key in ("p50_ms", "p99_ms") if one.get(key)), 1.0)
    axes.set_xlabel("milliseconds (logarithmic)")
    return 0.32 * len(peers)


def _failed(axes: Axes, place: int, one: dict[str, Any]) -> None:
    axes.annotate(f"failed: {one.get('failed', 'no figure')}"[:90], (0, place), (5, 0),
                  xycoords=axes.get_yaxis_transform(), textcoords="offset points", va="center", fontsize=8,
                  color=RED)


def memory_as_rows_grow(axes: Axes, by_rows: list[dict[str, Any]]) -> float:
    """The peak memory of a training as its rows grow, and the seconds that it takes."""
    rows, peak = ([one[key] for one in by_rows] for key in ("rows", "peak_mb"))
    axes.plot(rows, peak, "o-", color=BLUE, lw=2)
    for one in by_rows:
        axes.annotate(f"{measure(one['peak_mb'])} MB, {measure(one['seconds'])} s",
                      (one["rows"], one["peak_mb"]), (0, 9), textcoords="offset points", ha="center",
                      fontsize=8, color=SOFT)
    axes.set_xscale("log")
    _plain(axes, *rows)
    axes.set_xticks(rows)
    axes.set_ylim(0, 1.3 * max(peak))
    axes.set(xlabel="rows (logarithmic)", ylabel="peak memory, MB")
    return 2.4


def from_drift_to_the_new_version(axes: Axes, rounds: list[dict[str, Any]]) -> float:
    """Where the seconds go between the drift event and the
    new version answering on all replicas, round by round."""
    at = _bars(axes, [f"round {number}" for number in range(1, len(rounds) + 1)])
    begun = np.zeros(len(rounds))
    for part, colour in zip(rounds[0]["parts"], PARTS * 2):
        seconds = np.array([one["parts"].get(part, 0) for one in rounds])
        bars = axes.barh(at, seconds, 0.6, begun, color=colour, label=part)
        axes.bar_label(bars, [f"{one:.1f}" if one > 1 else "" for one in seconds], label_type="center",
                       fontsize=8, color="white")
        begun += seconds
    axes.legend(**LEGEND | {"ncols": 8, "fontsize": 8, "handlelength": 1, "columnspacing": 1.4})
    axes.set_xlim(0, 1.02 * begun.max())
    axes.set_xlabel("seconds")
    return 0.45 * len(rounds)


def start_of_a_command(axes: Axes, commands: dict[str, list[float]]) -> float:
    """Seconds of the whole process, warm: the median of the rounds, a line from the least to the most."""
    at = _bars(axes, list(commands))
    for place, (name, rounds) in zip(at, commands.items()):
        axes.barh(place, np.median(rounds), 0.6, color=BLUE if name.startswith("perennial") else PALE)
        axes.plot([min(rounds), max(rounds)], [place, place], color=INK, lw=1.2)
        axes.annotate(f"{np.median(rounds):.2f} s", (max(rounds), place), (5, 0), textcoords="offset points",
                      va="center", fontsize=8)
    axes.set_xlim(0, 1.12 * max(max(rounds) for rounds in commands.values()))
    axes.set_xlabel("seconds")
    return 0.3 * len(commands)


if __name__ == "__main__":
    main()
