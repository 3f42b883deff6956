"""LitServe in front of the pipeline, with its defaults: `python litserve_pipeline.py PORT`."""

import os
import sys
from typing import Any

import joblib
import litserve
import pandas as pd
from answers import named


class Pipeline(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = joblib.load(f"{os.environ['PEERS_MODEL']}/pipeline.joblib")

    def decode_request(self, request: dict[str, Any]) -> pd.DataFrame:
        return pd.DataFrame(request["records"])

    def predict(self, sent: pd.DataFrame) -> Any:
        return self.model.predict_proba(sent)

    def encode_response(self, found: Any) -> dict[str, Any]:
        return named(found)


if __name__ == "__main__":
    litserve.LitServer(Pipeline(), accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
