"""A plain BentoML service of the pipeline: `bentoml serve bento_pipeline:Plain`."""

import os
from typing import Any

import bentoml
import joblib
import pandas as pd
from answers import named


@bentoml.service(workers=1)
class Plain:
    def __init__(self) -> None:
        self.model = joblib.load(f"{os.environ['PEERS_MODEL']}/pipeline.joblib")

    @bentoml.api
    def predict(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return named(self.model.predict_proba(pd.DataFrame(records)))
