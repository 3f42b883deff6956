"""Check a new replica: the trainer's answers to sample records, and its latency."""

import json
from typing import TypedDict

import httpx
import numpy as np

from contracts.core.digests import JsonObject
from contracts.core.errors import ReleaseFailed
from contracts.core.features import Record
from deployments import fleet
from deployments.fleet import Server
from registry import models
from registry.context import ModelContext
from service.limits import MAX_RECORDS
from service.schema import SAMPLE_HEADERS

SINGLE_RECORDS = 11  # sent one by one as well: another path in the code, and the latency of one record


class CheckedReplica(TypedDict):
    """A replica that answers as the trainer did: all `records` in `seconds`, a single one in `latency_ms`."""

    url: str
    records: int
    seconds: float
    latency_ms: float


def answers_like_trainer(context: ModelContext, server: Server) -> CheckedReplica:
    """Send a replica the version's sample records over HTTP, together and singly;
    raises ReleaseFailed unless it answers in time and as the trainer did."""
    files = models.fetch(context.store, context.name, server.version, context.run / "models")
    samples = json.loads((files / "samples.json").read_bytes())
    records, expected = samples["records"], np.asarray(samples["probabilities"])
    seconds = _check_answers(context, server, records, expected)
    indices = np.linspace(0, len(records) - 1, SINGLE_RECORDS).astype(int)
    latency_ms = float(np.median([_check_answers(context, server, [records[index]], expected[[index]])
                             for index in indices])) * 1000
    if latency_ms > (limit := context.contract.gate.latency_ms):
        raise ReleaseFailed(f"{server.url} takes {latency_ms:.0f} ms for a single record, the median of "
                            f"{SINGLE_RECORDS}; limit: {limit:g} ms")
    return {"url": server.url, "records": len(records), "seconds": seconds, "latency_ms": latency_ms}


def answered_by(context: ModelContext, version: str, records: list[Record]) -> np.ndarray:
    """A version's probabilities, (n, classes), from a running replica of it:
    for a version whose features the contract no longer has."""
    replicas = [server for server in fleet.running(context.run, context.name) if server.version == version]
    if not replicas:
        raise ReleaseFailed(f"{context.name}: {version[:12]} has other features than the contract has now, "
                            f"and no replica of it runs here to be asked; run on the machine that serves it")
    parts = [_post(replicas[0], records[index:index + MAX_RECORDS])
             for index in range(0, len(records), MAX_RECORDS)]
    if (bad := [part for part in parts if part.status_code != 200]):
        raise ReleaseFailed(f"{context.name}: {version[:12]} does not take records of the contract as it is "
                            f"now: {bad[0].text[:300]}")
    answers = [prediction for part in parts
               for prediction in _parse(replicas[0], part, context.contract.label.classes)["predictions"]]
    return np.asarray([list(prediction["probabilities"].values()) for prediction in answers], np.float32)


def _check_answers(context: ModelContext, server: Server, records: list[Record],
              expected: np.ndarray) -> float:
    """The seconds that a replica took for the records; raises ReleaseFailed
    unless version, probabilities and classes are as expected."""
    reply, names = _post(server, records), context.contract.label.classes
    if reply.status_code != 200:
        raise ReleaseFailed(f"{server.url} answers the samples with {reply.status_code}: {reply.text[:500]}")
    answer = _parse(server, reply, names)
    answered = np.asarray([[prediction["probabilities"][name] for name in names]
                           for prediction in answer["predictions"]], dtype=float)
    if answer["version"] != server.version:
        raise ReleaseFailed(f"{server.url} serves {answer['version'][:12]}, and was started for "
                            f"{server.version[:12]}")
    if answered.shape != expected.shape or not np.array_equal(answered, expected):
        difference = (np.abs(answered - expected).max() if answered.shape == expected.shape
               else f"shapes {answered.shape} and {expected.shape}")
        raise ReleaseFailed(f"{server.url} differs by {difference} from the trainer's answers of "
                            f"{server.version[:12]}, asked {len(records)} at once; see {server.log}")
    expected_classes = [names[index] for index in context.contract.label.predicted(expected)]
    if (wrong := [(prediction["class"], name)
                  for prediction, name in zip(answer["predictions"], expected_classes)
                  if prediction["class"] != name]):
        raise ReleaseFailed(f"{server.url} names another class than the trainer for {len(wrong)} of "
                            f"{len(expected_classes)} samples, such as {wrong[0][0]} for {wrong[0][1]}")
    return reply.elapsed.total_seconds()


def _post(server: Server, records: list[Record]) -> httpx.Response:
    try:
        return httpx.post(f"{server.url}/predict", json={"records": records}, headers=SAMPLE_HEADERS,
                          timeout=10, trust_env=False)
    except httpx.TransportError as error:
        raise ReleaseFailed(
            f"{server.url} gives no answer to the samples: {error!r}; {server.log_tail()}") from error


def _parse(server: Server, reply: httpx.Response, names: tuple[str, ...]) -> JsonObject:
    try:
        answer: JsonObject = reply.json()
        is_valid = isinstance(answer["version"], str) and all(
            set(prediction) == {"id", "class", "probabilities"}
            and list(prediction["probabilities"]) == list(names) for prediction in answer["predictions"])
    except (ValueError, KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise ReleaseFailed(f"{server.url} answers the samples in another form than the service's: "
                            f"{reply.text[:200]}") from None
    return answer
