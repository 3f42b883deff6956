"""The BentoML service of one model version."""

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
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
from service.layers import LayerFollower, ServedLayer, read_layer
from service.limits import MAX_RECORDS, TIMEOUT
from service.prediction_log import prediction_id
from service.profiler import Profiler
from service.schema import BAD_BODY, RequestSchema

if TYPE_CHECKING:
    from contracts.core.binning import Bins
    from service.model import Model

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


class AnsweringVersion:
    """A version that answers: its model, its profiler, and the queue of the requests that it answers.

    `replica`: an id of its own, by which its predictions, counted in `answered`, and its files are told from
    those of any other, also of the same version before in the same process.
    """

    def __init__(self, manifest: JsonObject, model: "Model",
                 score: Callable[["AnsweringVersion", list[Any]], list[Any]]):
        self.manifest, self.version, self.model = manifest, manifest["version"], model
        self.replica, self.answered = uuid4().hex, 0
        self.profiler: Profiler | None = None
        self.batcher = Batcher(partial(score, self))


class PredictionApi:
    """Parses, scores and answers.

    `answering` is the version that does. Another one on the same booster may take its place at any time: a
    request is answered to its end by the one that it began with.
    """

    answering: AnsweringVersion

    def __init__(self, contract: Contract, folder: Path, manifest: JsonObject):
        self.contract, self.folder, self.manifest = contract, folder, manifest
        self.names = contract.label.classes
        self.requests = RequestSchema(contract)
        self.encode = msgspec.json.Encoder().encode
        self.answer, self.probabilities = _answer_types(self.names)
        spool = os.environ.get("PERENNIAL_PROFILES")
        self.spool = Path(spool) if spool else None
        self.follower: LayerFollower | None = None

    def open(self) -> None:
        """Set up what only a worker process needs: the model, counters, profiles, a frozen heap."""
        # Imported here, as BentoML's supervisor process loads this module too, and answers no request.
        from service.model import load_model
        from service.profiles import bins_in

        model, self.bins = load_model(self.contract, self.folder), bins_in(self.folder)
        predicted = bentoml.metrics.Counter("perennial_predictions_total", "records by predicted class",
                                            ["class_name"])
        self.predicted = [predicted.labels(name) for name in self.names]
        self.refused = bentoml.metrics.Counter("perennial_bad_inputs_total", "faults in requests by field",
                                               ["field"])
        self.answering = self._version(self.manifest, model, self.bins)
        if self.spool is None:
            log.warning("traffic is not profiled: PERENNIAL_PROFILES names no folder")
        elif os.environ.get("PERENNIAL_FOLLOW"):
            self._follow(self.spool)
        sys.setswitchinterval(SWITCH_INTERVAL)
        gc.collect()
        gc.freeze()  # what is loaded by now lives as long as the process: no need to collect it
        gc.set_threshold(10_000, 50, 1_000)

    def _version(self, manifest: JsonObject, model: "Model", bins: "Mapping[str, Bins]") -> AnsweringVersion:
        from service.profiler import Profiler

        answering = AnsweringVersion(manifest, model, self._score)
        if self.spool:
            seconds = float(os.environ.get("PERENNIAL_PROFILE_SECONDS", 5))
            answering.profiler = Profiler(self.contract, bins, answering.version, self.spool, seconds,
                                          replica=answering.replica)
        return answering

    def _follow(self, spool: Path) -> None:
        """Answer as the version that the file of layers names, now and whenever it names another."""
        self.follower = LayerFollower(spool, self.contract.name, self.answering.version, self.take_over)
        if layer := read_layer(spool, self.contract.name, self.answering.version):
            self.take_over(layer)
        self.follower.start()

    def take_over(self, layer: ServedLayer) -> None:
        """Answer as another version on the same booster from the next request on."""
        from contracts.core.binning import Bins

        before = self.answering
        if layer.version == before.version:
            return
        if layer.calibration and len(layer.calibration.bias) != len(self.names):
            raise ValueError(f"the layer of {layer.version[:12]} has {len(layer.calibration.bias)} classes, "
                             f"the contract {len(self.names)}")
        bins = {name: Bins.from_json(stored) for name, stored in layer.output_bins.items()}
        self.answering = self._version(layer.manifest, replace(before.model, calibration=layer.calibration),
                                       self.bins | bins)
        log.info("%s answers as %s, which was %s", self.contract.name, layer.version[:12],
                 before.version[:12])
        if before.profiler:
            before.batcher.wait_until_empty(TIMEOUT)
            before.profiler.close()

    def close(self) -> None:
        if self.follower:
            self.follower.close()
        if self.answering.profiler:
            self.answering.profiler.close()

    async def predict(self, body: bytes, sample: bool, caller: Client | None = None) -> Reply:
        """Status and body of the answer; raises Overloaded, ClientDisconnected, or what the model raises."""
        answering = self.answering  # the same from the first line to the last, whatever takes over meanwhile
        if not sample:
            answering.batcher.admit(len(body))
        try:
            records = self.requests.parse(body)
        except BAD_BODY as refusal:
            return self._refuse(answering, body, refusal)
        answers = (self._score(answering, records, traffic=False) if sample
                   else await answering.batcher.answers(records, len(body), caller))
        return 200, self.encode({"version": answering.version, "predictions": answers})

    def _refuse(self, answering: AnsweringVersion, body: bytes, refusal: Exception) -> Reply:
        faults = self.requests.faults(body, refusal)
        for fault in faults:
            self.refused.labels(fault["field"] or "").inc()
        if answering.profiler:
            count = self.requests.event_times(body, (fault["record"] for fault in faults))
            answering.profiler.bad(count, (fault["field"] or "the body" for fault in faults))
        return 400, self.encode({"errors": faults})

    def _score(self, answering: AnsweringVersion, records: list[Any], traffic: bool = True) -> list[Any]:
        columns = self.requests.columns(records)
        probabilities = answering.model.probabilities(columns)
        if not np.isfinite(probabilities).all():
            raise ArithmeticError(f"the model of {answering.version[:12]} gave a probability that is no "
                                  f"number")
        classes = answering.model.classes(probabilities)
        first = answering.answered
        answering.answered += len(records)
        if traffic:
            self._record_traffic(answering.profiler, columns, probabilities, classes, first)
        return [
            self.answer(prediction_id(answering.replica, number), self.names[index], self.probabilities(*row))
            for number, index, row in zip(count(first), classes.tolist(), probabilities.tolist())
        ]

    def _record_traffic(self, profiler: Profiler | None, columns: Columns, probabilities: np.ndarray,
                        classes: np.ndarray, first: int) -> None:
        if profiler:
            profiler.add(columns, probabilities, classes, first)
        for counter, records in zip(self.predicted,
                                    np.bincount(classes, minlength=len(self.names)).tolist()):
            if records:
                counter.inc(records)

    async def describe(self, _: bytes, __: bool, ___: Client | None = None) -> Reply:
        return 200, self.encode(self.answering.manifest)


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
