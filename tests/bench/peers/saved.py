"""Writes a Perennial version's model in its peers' formats: `python saved.py FOLDER RECORDS`.

FOLDER holds model.ubj and model.json, RECORDS is a JSON file {"records": [...]}.
Beside the model come pipeline.joblib, mlflow/ and mlserver/; printed are the
records' probabilities by the pipeline, and the rows that its booster sees.
"""

import json
import sys
from pathlib import Path

import joblib
import mlflow
import pandas as pd
from pipeline import fitted


def main() -> None:
    folder, records = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_bytes())["records"]
    pipeline = fitted(folder)
    joblib.dump(pipeline, folder / "pipeline.joblib")
    mlflow.sklearn.save_model(pipeline, folder / "mlflow", pyfunc_predict_fn="predict_proba",
                              serialization_format="cloudpickle", pip_requirements=["scikit-learn"])
    runtime = folder / "mlserver" / "flights"
    runtime.mkdir(parents=True)
    pipeline["model"].save_model(runtime / "model.json")
    (runtime
     / "model-settings.json").write_text(json.dumps({"name": "flights",
                                                     "implementation": "mlserver_xgboost.XGBoostModel",
                                                     "parameters": {"uri": "./model.json"}}))
    sent = pd.DataFrame(records)
    print(json.dumps({"probabilities": pipeline.predict_proba(sent).tolist(),
                      "matrix": pipeline[:-1].transform(sent).tolist()}))


if __name__ == "__main__":
    main()
