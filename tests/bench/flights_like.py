"""Flights like those of the contract, at any size: the
real year over and over, each copy moved by whole weeks.

A copy keeps weekdays, seasons, weather, delays and planes'
ages; its weather differs a little, so that values are many.
"""

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise

import numpy as np
import pandas as pd

from contracts.flights import contract

DAYS = 364  # of a copy: whole weeks
# Of the year 2013, one after the other from the year 2000 to 2024: the labels of later ones are not in yet.
COPIES = range(-13, 12)
# Copies of the same weeks, each a second later than the one before: the real departures are on whole minutes.
LAYERS = 60
NOISE = 0.01  # deviation of the weather's values, as a share of them
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")


def flights_like(rows: int, seed: int = 0) -> Iterator[pd.DataFrame]:
    """Frames of about a year or less (336,000 rows), `rows` in
    all, in time order within and across; no key is there twice."""
    year = contract.source(datetime(2013, 1, 1), datetime(2013, 12, 31))
    layers = -(-rows // (len(year) * len(COPIES)))
    if layers > LAYERS:
        raise ValueError(f"{rows} rows are more than {len(year) * len(COPIES) * LAYERS}, where keys would "
                         f"repeat; ask for fewer")
    left = rows
    for copy in COPIES:
        for number, part in enumerate(_parts(year, layers)):
            if not left:
                return
            rng = np.random.default_rng([seed, copy - COPIES.start, number])
            frame = _together([_moved(part, copy, layer, rng) for layer in range(layers)]).head(left)
            left -= len(frame)
            yield frame


def _parts(year: pd.DataFrame, parts: int) -> Iterator[pd.DataFrame]:
    """The year in as many spans of whole days: nobody departs
    at midnight, so that moved by seconds they stay in order."""
    day = (year["departs"].dt.day_of_year - 1).to_numpy()
    cuts = np.searchsorted(day, [DAYS * part // parts for part in range(parts + 1)])
    for start, end in pairwise(cuts):
        yield year.iloc[start:end]


def _moved(rows: pd.DataFrame, copy: int, layer: int, rng: np.random.Generator) -> pd.DataFrame:
    fresh = {"departs": rows["departs"] + pd.Timedelta(days=DAYS * copy, seconds=layer),
             "built": rows["built"] + copy}
    for name in WEATHER:
        low, high = (check.statistics[bound]
                     for check, bound in zip(contract.columns[name].checks, ("min_value", "max_value")))
        fresh[name] = (rows[name] * (1 + NOISE * rng.standard_normal(len(rows)))).clip(low, high)
    return rows.assign(**fresh)


def _together(layers: list[pd.DataFrame]) -> pd.DataFrame:
    if len(layers) == 1:
        return layers[0].reset_index(drop=True)
    together = pd.concat(layers, ignore_index=True).sort_values("departs", kind="stable", ignore_index=True)
    together.attrs = dict(layers[0].attrs)
    return together
