"""Logged predictions of a small window, as a data frame."""

from datetime import datetime

import pandas as pd
import pyarrow as pa

from registry.context import ModelContext
from registry.predictions import NUMBER, REPLICA, prediction_files, read_predictions
from service.prediction_log import prediction_id


def logged_predictions(context: ModelContext, version: str, start: datetime) -> pd.DataFrame:
    """A window's rows as they were packed, with their ids: of one that was packed twice both."""
    tables = [*read_predictions(context, prediction_files(context, version, start))]
    if not tables:
        return pd.DataFrame({"id": []})
    rows = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    return rows.assign(id=[prediction_id(*pair) for pair in zip(rows[REPLICA], rows[NUMBER])])
