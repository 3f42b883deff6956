"""The BentoML service of one model version."""

import gc
import json
import logging
import os
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import bentoml
import msgspec
import numpy as np
from annotated_types import Len
from pydantic import BaseModel, Field

from contracts.core.contract import Contract
from contracts.core.digests import JsonObject
from contracts.core.features import Columns
from contracts.core.loading import load_contract
from service.asgi import PredictionMiddleware, Reply
from service.batching import Batcher, Client
from service.limits import MAX_RECORDS, TIMEOUT
from service.prediction_log import prediction_id
from service.profiler import Profiler
from service.schema import BAD_BODY, RequestSchema

# Seconds that a Python thread runs before another may; about a step of the background profile, so that
# requests rarely interrupt one.
SWITCH_INTERVAL = 0.001

log = logging.getLogger("perennial.service")


class Prediction(BaseModel):
    id: str
    class_: str = Field(alias="class")
    probabilities: dict[str, float]


class Answers(BaseModel):
    version: str
    predictions: list[Prediction]


class PredictionApi:
    """Parses, scores and answers."""

    def __init__(self, contract: Contract, folder: Path, manifest: JsonObject):
        self.contract, self.folder, self.manifest, self.version = (contract, folder, manifest,
                                                                   manifest["version"])
        self.names = contract.label.classes
        self.requests = RequestSchema(contract)
        self.encode = msgspec.json.Encoder().encode
        self.answer, self.probabilities = _answer_types(self.names)
        self.batcher = Batcher(self._score)
        self.profiler: Profiler | None = None

    def open(self) -> None:
        """Set up what only a worker process needs: the model, counters, profiles, a frozen heap."""
        # Imported here, as BentoML's supervisor process loads this module too, and answers no request.
        from service.model import load_model
        from service.profiler import Profiler
        from service.profiles import bins_in

        self.model = load_model(self.contract, self.folder)
        predicted = bentoml.metrics.Counter("perennial_predictions_total", "records by predicted class",
                                            ["class_name"])
        self.predicted = [predicted.labels(name) for name in self.names]
        self.refused = bentoml.metrics.Counter("perennial_bad_inputs_total", "faults in requests by field",
                                               ["field"])
        self.replica, self.answered = uuid4().hex, 0
        if folder := os.environ.get("PERENNIAL_PROFILES"):
            seconds = float(os.environ.get("PERENNIAL_PROFILE_SECONDS", 5))
            self.profiler = Profiler(self.contract, bins_in(self.folder), self.version, Path(folder), seconds,
                                     replica=self.replica)
        else:
            log.warning("traffic is not profiled: PERENNIAL_PROFILES names no folder")
        sys.setswitchinterval(SWITCH_INTERVAL)
        gc.collect()
        gc.freeze()  # what is loaded by now lives as long as the process: no need to collect it
        gc.set_threshold(10_000, 50, 1_000)

    def close(self) -> None:
        if self.profiler:
            self.profiler.close()

    async def predict(self, body: bytes, sample: bool, caller: Client | None = None) -> Reply:
        """Status and body of the answer; raises Overloaded, ClientDisconnected, or what the model raises."""
        if not sample:
            self.batcher.admit(len(body))
        try:
            records = self.requests.parse(body)
        except BAD_BODY as refusal:
            return self._refuse(body, refusal)
        answers = (self._score(records, traffic=False) if sample
                   else await self.batcher.answers(records, len(body), caller))
        return 200, self.encode({"version": self.version, "predictions": answers})

    def _refuse(self, body: bytes, refusal: Exception) -> Reply:
        faults = self.requests.faults(body, refusal)
        for fault in faults:
            self.refused.labels(fault["field"] or "").inc()
        if self.profiler:
            count = self.requests.event_times(body, (fault["record"] for fault in faults))
            self.profiler.bad(count, (fault["field"] or "the body" for fault in faults))
        return 400, self.encode({"errors": faults})

    def _score(self, records: list[Any], traffic: bool = True) -> list[Any]:
        columns = self.requests.columns(records)
        probabilities = self.model.probabilities(columns)
        if not np.isfinite(probabilities).all():
            raise ArithmeticError(f"the model of {self.version[:12]} gave a probability that is no number")
        classes = self.model.classes(probabilities)
        first = self.answered
        self.answered += len(records)
        if traffic:
            self._record_traffic(columns, probabilities, classes, first)
        return [
            self.answer(prediction_id(self.replica, number), self.names[index], self.probabilities(*row))
            for number, index, row in zip(count(first), classes.tolist(), probabilities.tolist())
        ]

    def _record_traffic(self, columns: Columns, probabilities: np.ndarray, classes: np.ndarray,
                   first: int) -> None:
        if self.profiler:
            self.profiler.add(columns, probabilities, classes, first)
        for counter, records in zip(self.predicted,
                                    np.bincount(classes, minlength=len(self.names)).tolist()):
            if records:
                counter.inc(records)

    async def describe(self, _: bytes, __: bool, ___: Client | None = None) -> Reply:
        return 200, self.encode(self.manifest)


def _answer_types(names: Iterable[str]) -> tuple[type, type]:
    """The types of a prediction and of its probabilities: structs, which are built and encoded faster."""
    fields = {f"p{index}": name for index, name in enumerate(names)}
    probabilities = msgspec.defstruct("Probabilities", [(field, float) for field in fields], rename=fields,
                                      gc=False)
    kinds = [("id", str), ("class_", str), ("probabilities", probabilities)]
    return msgspec.defstruct("Prediction", kinds, rename={"class_": "class"}, gc=False), probabilities


def build_service(folder: Path) -> Any:
    """The BentoML service of the model version whose files lie in `folder`."""
    from _bentoml_sdk.service import Service  # as late as BentoML itself loads it: it is slow

    manifest = json.loads((folder / "manifest.json").read_bytes())
    # Bentos of older versions name no module.
    contract = load_contract(manifest.get("module", manifest["model"]))
    api = PredictionApi(contract, folder, manifest)
    Record = api.requests.documented()

    class ServiceWithMiddleware(Service):
        """A BentoML service whose predictions are answered before BentoML's own layers."""

        def to_asgi(self, is_main: bool = True) -> Any:
            return PredictionMiddleware(super().to_asgi(is_main),
                                        {("POST", "/predict"): api.predict, ("GET", "/model"): api.describe})

    @bentoml.service(name=contract.name, workers=1, traffic={"timeout": TIMEOUT},
                     logging={"access": {"enabled": False}}, service_class=ServiceWithMiddleware)
    class Predictor:
        __doc__ = f"{contract.name}: one of {', '.join(contract.label.classes)}."

        def __init__(self) -> None:
            api.open()

        @bentoml.api
        async def predict(self, records: Annotated[list[Record], Len(1, MAX_RECORDS)]) -> Answers:  # type: ignore[valid-type]
            """Each record's class by name, every class's probability and a prediction id."""
            raise NotImplementedError("declared for the OpenAPI; asgi.PredictionMiddleware answers")

        @bentoml.on_shutdown
        def close(self) -> None:
            api.close()

    return Predictor
