"""The entry point of a bento: the model's files lie beside the code."""

from pathlib import Path

from service.app import build_service

service = build_service(Path(__file__).parent.parent / "model")
