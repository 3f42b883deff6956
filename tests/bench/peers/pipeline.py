"""The model of a Perennial version as a pipeline: pandas frame → ordinal codes → XGBClassifier."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder
from xgboost import XGBClassifier

BEFORE, CATEGORIES = ["minute", "weekday", "arrives", "scheduled_minutes"], ["carrier", "origin", "dest"]
AFTER = ["distance", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure",
         "visib", "age", "seats"]


def features(sent: pd.DataFrame) -> pd.DataFrame:
    """The columns that the model knows, from those that a caller sends."""
    departs = pd.to_datetime(sent["departs"])
    minute = departs.dt.hour * 60 + departs.dt.minute
    known = sent.assign(minute=minute, weekday=departs.dt.day_of_week,
                        scheduled_minutes=(sent["arrives"] - minute) % 1440,
                        age=departs.dt.year - sent["built"])
    numbers = [*BEFORE, *AFTER]
    known[numbers] = known[numbers].astype(float)
    return known[[*BEFORE, *CATEGORIES, *AFTER]]


def fitted(folder: Path) -> Pipeline:
    """The saved booster behind an encoder that knows the saved
    vocabularies; code 0 is what training saw too seldom."""
    known = json.loads((folder / "model.json").read_bytes())["vocabularies"]
    columns = pd.DataFrame({name: pd.Series(["", *known[name]], dtype=object) for name in CATEGORIES}).ffill()
    columns = columns.assign(**dict.fromkeys([*BEFORE, *AFTER], 0.0))[[*BEFORE, *CATEGORIES, *AFTER]]
    encoder = OrdinalEncoder(categories=[["", *known[name]] for name in CATEGORIES],
                             handle_unknown="use_encoded_value", unknown_value=np.nan)
    encode = ColumnTransformer([("before", "passthrough", BEFORE), ("categories", encoder, CATEGORIES),
                                ("after", "passthrough", AFTER)])
    classifier = XGBClassifier(n_jobs=1)
    classifier.load_model(folder / "model.ubj")
    return Pipeline([("features", FunctionTransformer(features)), ("encode", encode.fit(columns)),
                     ("model", classifier)])
