"""The entry point of a bento: the model's files lie beside the code."""

from pathlib import Path

from service.app import predictor

service = predictor(Path(__file__).parent.parent / "model")
