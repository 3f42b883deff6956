"""What whylogs, Evidently and NannyML say of the same
windows, each with its defaults: `python drift.py FOLDER`.

FOLDER holds reference.parquet and, for each set of windows, a parquet file whose column "window" numbers
them. Prints JSON: by set and detector the windows with an alarm on any column, and the seconds a window.
"""

import json
import logging
import sys
import time
from pathlib import Path

import pandas as pd
import whylogs
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
from nannyml import UnivariateDriftCalculator
from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores


def of_whylogs(reference: pd.DataFrame, windows: list[pd.DataFrame]) -> list[bool]:
    """Any column whose category is "DRIFT"."""
    before = whylogs.log(reference).view()
    found = []
    for window in windows:
        scores = calculate_drift_scores(target_view=whylogs.log(window).view(), reference_view=before,
                                        with_thresholds=True)
        found.append(any(one is not None and one["drift_category"] == "DRIFT" for one in scores.values()))
    return found


def of_evidently(reference: pd.DataFrame, windows: list[pd.DataFrame]) -> list[bool]:
    """Any column that the preset reports as drifted."""
    numbers = [name for name in reference if reference[name].dtype.kind == "f"]
    definition = DataDefinition(numerical_columns=numbers,
                                categorical_columns=[name for name in reference if name not in numbers])
    before = Dataset.from_pandas(reference, data_definition=definition)
    found = []
    for window in windows:
        report = Report([DataDriftPreset()]).run(Dataset.from_pandas(window, data_definition=definition),
                                                 before)
        drifted = next(one["value"]["count"] for one in report.dict()["metrics"]
                       if "DriftedColumnsCount" in one["metric_name"])
        found.append(drifted > 0)
    return found


def of_nannyml(reference: pd.DataFrame, windows: list[pd.DataFrame]) -> list[bool]:
    """Any column's alert, in chunks of a window's size, whose
    thresholds NannyML takes from chunks of the reference."""
    names = list(reference)
    calculator = UnivariateDriftCalculator(column_names=names, chunk_size=len(windows[0])).fit(reference)
    results = calculator.calculate(pd.concat(windows, ignore_index=True)).filter(period="analysis").to_df()
    alerts = results.loc[:, [one for one in results.columns if one[-1] == "alert"]]
    return alerts.any(axis=1).tolist()


def main() -> None:
    logging.disable(logging.CRITICAL)
    folder = Path(sys.argv[1])
    reference = pd.read_parquet(folder / "reference.parquet")
    found: dict[str, dict] = {}
    for path in sorted(folder.glob("*.parquet")):
        if path.stem == "reference":
            continue
        windows = [part.drop(columns="window").reset_index(drop=True)
                   for _, part in pd.read_parquet(path).groupby("window")]
        for name, detect in (("whylogs", of_whylogs), ("Evidently", of_evidently), ("NannyML", of_nannyml)):
            begun = time.monotonic()
            try:
                alarms = detect(reference, windows)
            except Exception as error:  # a peer that fails is reported, and does not end the others
                found.setdefault(path.stem, {})[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
                continue
            seconds = (time.monotonic() - begun) / len(windows)
            found.setdefault(path.stem, {})[name] = {"alarms": sum(alarms), "windows": len(windows),
                                                     "seconds_a_window": seconds}
            print(path.stem, name, found[path.stem][name], file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
