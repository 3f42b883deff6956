"""The BentoML API of one model version."""

import asyncio
import gc
import json
import logging
import os
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import bentoml
import msgspec
import numpy as np
from annotated_types import Len
from pydantic import BaseModel, Field

from contracts.contract import Columns, Contract, load
from service.predictions import prediction_id
from service.request import BAD_BODY, MOST_RECORDS, SAMPLE, Requests

if TYPE_CHECKING:
    from service.profiles import Profiler

LARGEST_BODY = 32 * 2**20  # bytes; 10,000 records of a wide contract stay well below
TIMEOUT = 5  # seconds; BentoML arms a timer a request and never cancels it, so a long one piles up garbage

log = logging.getLogger("perennial.service")
[RAW_SAMPLE] = [(name.encode(), value.encode()) for name, value in SAMPLE.items()]
Reply = tuple[int, bytes]


class Prediction(BaseModel):
    id: str
    class_: str = Field(alias="class")
    probabilities: dict[str, float]


class Answers(BaseModel):
    version: str
    predictions: list[Prediction]


class Api:
    """Parses, scores and answers; what arrives in one turn of the event loop is scored together."""

    def __init__(self, contract: Contract, folder: Path, manifest: dict[str, Any]):
        self.contract, self.folder, self.manifest, self.version = contract, folder, manifest, manifest["version"]
        self.names = contract.label.classes
        self.requests = Requests(contract)
        self.encode = msgspec.json.Encoder().encode
        self.waiting: list[tuple[list[Any], asyncio.Future]] = []
        self.profiler: Profiler | None = None

    def open(self) -> None:
        """Start what only a worker process needs: the model, counters, profiles, a frozen heap."""
        # Imported here: BentoML's supervisor loads this module as well, and answers nothing.
        from service.model import restore
        from service.profiles import Profiler, bins_of

        self.model = restore(self.contract, self.folder)
        self.predicted = bentoml.metrics.Counter("perennial_predictions_total", "records by named class", ["class_name"])
        self.refused = bentoml.metrics.Counter("perennial_bad_inputs_total", "faults in requests by field", ["field"])
        self.replica, self.answered = uuid4().hex, 0
        if folder := os.environ.get("PERENNIAL_PROFILES"):
            seconds = float(os.environ.get("PERENNIAL_PROFILE_SECONDS", 5))
            self.profiler = Profiler(self.contract, bins_of(self.folder), self.version, Path(folder), seconds, replica=self.replica)
        else:
            log.warning("traffic is not profiled: PERENNIAL_PROFILES names no folder")
        gc.collect()
        gc.freeze()  # what is loaded now lives as long as the process: collections need not walk it
        gc.set_threshold(10_000, 50, 1_000)  # a full collection walks every request of the last TIMEOUT seconds

    def close(self) -> None:
        if self.profiler:
            self.profiler.close()

    async def predict(self, body: bytes, sample: bool) -> Reply:
        try:
            records = self.requests.parse(body)
        except BAD_BODY as refusal:
            return self._bad(body, refusal)
        if sample:
            return 200, self.encode({"version": self.version, "predictions": self._score(records, traffic=False)})
        answer = asyncio.get_running_loop().create_future()
        if not self.waiting:
            asyncio.get_running_loop().call_soon(self._score_waiting)
        self.waiting.append((records, answer))
        return 200, await answer

    def _bad(self, body: bytes, refusal: Exception) -> Reply:
        faults = self.requests.faults(body, refusal)
        for fault in faults:
            self.refused.labels(fault["field"] or "").inc()
        if self.profiler:
            times = self.requests.event_times(body, (fault["record"] for fault in faults))
            self.profiler.bad(times, (fault["field"] or "the body" for fault in faults))
        return 400, self.encode({"errors": faults})

    def _score_waiting(self) -> None:
        batch, self.waiting = self.waiting, []
        self._score_together(batch)

    def _score_together(self, batch: list[tuple[list[Any], asyncio.Future]]) -> None:
        try:
            answers = self._score([record for records, _ in batch for record in records])
        except Exception as error:
            if len(batch) > 1:  # only the request at fault shall fail
                for one in batch:
                    self._score_together([one])
            else:
                batch[0][1].done() or batch[0][1].set_exception(error)
            return
        start = 0
        for records, answer in batch:
            mine = answers[start:start + len(records)]
            start += len(records)
            answer.done() or answer.set_result(self.encode({"version": self.version, "predictions": mine}))

    def _score(self, records: list[Any], traffic: bool = True) -> list[dict[str, Any]]:
        columns = self.requests.columns(records)
        probabilities = self.model.probabilities(columns)
        if not np.isfinite(probabilities).all():
            raise ArithmeticError(f"the model of {self.version[:12]} gave a probability that is no number")
        classes = self.model.classes(probabilities)
        first = self.answered
        self.answered += len(records)
        if traffic:
            self._take_note(columns, probabilities, classes, first)
        return [
            {"id": prediction_id(self.replica, number), "class": self.names[index], "probabilities": dict(zip(self.names, row))}
            for number, index, row in zip(count(first), classes.tolist(), probabilities.tolist())
        ]

    def _take_note(self, columns: Columns, probabilities: np.ndarray, classes: np.ndarray, first: int) -> None:
        if self.profiler:
            self.profiler.add(columns, probabilities, classes, first)
        for index, times in enumerate(np.bincount(classes, minlength=len(self.names)).tolist()):
            if times:
                self.predicted.labels(self.names[index]).inc(times)

    async def describe(self, _: bytes, __: bool) -> Reply:
        return 200, self.encode(self.manifest)


class Front:
    """Answers POST /predict and GET /model inside BentoML's metrics and time-out, before its slower layers."""

    def __init__(self, app: Any, api: Api):
        self.app = app
        self.routes: dict[tuple[str, str], Callable[[bytes, bool], Awaitable[Reply]]] = {
            ("POST", "/predict"): api.predict, ("GET", "/model"): api.describe}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        handler = self.routes.get((scope.get("method"), scope["path"])) if scope["type"] == "http" else None
        if handler is None:
            return await self.app(scope, receive, send)
        try:
            body = await _body(receive)
            if body is None:
                status, answer = 413, b'{"errors": [{"rule": "the body is larger than %d bytes"}]}' % LARGEST_BODY
            else:
                status, answer = await handler(body, RAW_SAMPLE in scope["headers"])
        except _Gone:
            return None
        except Exception:  # BentoML's time-out layer would leave the caller hanging
            log.exception("%s %s failed", scope["method"], scope["path"])
            status, answer = 500, b'{"errors": [{"rule": "internal error; see the log of the replica"}]}'
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class _AtOnce:
    """A transport that holds the head of an answer until its body comes, and writes both at once.

    A replica that is killed between uvicorn's two writes would leave half an answer, which no load balancer can repeat.
    """

    def __init__(self, transport: Any):
        self._transport, self._head = transport, None

    def write(self, part: bytes) -> None:
        if part.startswith(b"HTTP/1.1 100 "):  # the caller waits for it before it sends its body
            self._transport.write(part)
        elif self._head is None:
            self._head = part
        else:
            self._transport.write(self._head + part)
            self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Gone(Exception):
    """The caller hung up before its request was whole."""


async def _body(receive: Any) -> bytes | None:
    """The whole body, or None once it is larger than allowed."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size <= LARGEST_BODY:
            parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts) if size <= LARGEST_BODY else None


def predictor(folder: Path) -> Any:
    """The BentoML service of the model version whose files lie in `folder`."""
    from _bentoml_sdk.service import Service  # as late as BentoML itself loads it: it is slow

    manifest = json.loads((folder / "manifest.json").read_bytes())
    contract = load(manifest["model"])
    api = Api(contract, folder, manifest)
    Record = api.requests.documented()

    class Whole(Service):
        """A service whose answers to callers are written whole."""

        def to_asgi(self, is_main: bool = True) -> Any:
            app = super().to_asgi(is_main)

            async def whole(scope: Any, receive: Any, send: Any) -> None:
                cycle = getattr(send, "__self__", None)  # uvicorn's; another server's answers may be two writes
                if scope.get("path") == "/predict" and scope["method"] == "POST" and hasattr(cycle, "transport"):
                    cycle.transport = _AtOnce(cycle.transport)
                await app(scope, receive, send)

            return whole

    @bentoml.service(
        name=contract.name, workers=1, traffic={"timeout": TIMEOUT}, logging={"access": {"enabled": False}}, service_class=Whole)
    class Predictor:
        __doc__ = f"{contract.name}: one of {', '.join(contract.label.classes)}."

        def __init__(self) -> None:
            api.open()

        @bentoml.api
        async def predict(self, records: Annotated[list[Record], Len(1, MOST_RECORDS)]) -> Answers:
            """Each record's class by name, every class's probability and a prediction id."""
            raise NotImplementedError("declared for the OpenAPI; `Front` answers this path")

        @bentoml.on_shutdown
        def close(self) -> None:
            api.close()

    Predictor.add_asgi_middleware(Front, api=api)
    return Predictor
