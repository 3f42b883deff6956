"""A FastAPI handler that returns a constant, a floor of the framework: `uvicorn fastapi_bare:app`."""

from typing import Any

from answers import CONSTANT
from fastapi import FastAPI

app = FastAPI()


@app.post("/predict")
async def predict() -> dict[str, Any]:
    return CONSTANT
