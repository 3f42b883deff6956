"""FastAPI in front of the pipeline: `uvicorn fastapi_pipeline:app`."""

import os
from typing import Any

import joblib
import pandas as pd
from answers import named
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
model = joblib.load(f"{os.environ['PEERS_MODEL']}/pipeline.joblib")


class Request(BaseModel):
    records: list[dict[str, Any]]


@app.post("/predict")
def predict(request: Request) -> dict[str, Any]:
    return named(model.predict_proba(pd.DataFrame(request.records)))
