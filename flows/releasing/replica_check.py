"""Check a new replica: the trainer's answers to sample records, and its latency."""

import json
from typing import Any, TypedDict

import httpx
import numpy as np

from contracts.core.errors import ReleaseFailed
from contracts.core.features import Record
from deployments import fleet
from deployments.fleet import Server
from registry import models
from registry.context import ModelContext
from service.limits import MOST_RECORDS
from service.schema import SAMPLE_HEADERS

ONE_BY_ONE = 11  # records that are asked alone as well: another way through the code, and what a caller waits


class CheckedReplica(TypedDict):
    """A replica that answers as the trainer did: `records` in
    so many `seconds`, and a single one in `latency_ms`."""

    url: str
    records: int
    seconds: float
    latency_ms: float


def answers_like_trainer(context: ModelContext, server: Server) -> CheckedReplica:
    """Ask a replica the version's sample records over HTTP, together and
    alone; refuse it unless it answers as the trainer did, in time."""
    files = models.fetch(context.store, context.name, server.version, context.run / "models")
    samples = json.loads((files / "samples.json").read_bytes())
    records, wanted = samples["records"], np.asarray(samples["probabilities"])
    seconds = _compared(context, server, records, wanted)
    chosen = np.linspace(0, len(records) - 1, ONE_BY_ONE).astype(int)
    alone = float(np.median([_compared(context, server, [records[at]], wanted[[at]])
                             for at in chosen])) * 1000
    if alone > (limit := context.contract.gate.latency_ms):
        raise ReleaseFailed(f"{server.url} takes {alone:.0f} ms for a single record, the median of "
                            f"{ONE_BY_ONE}; limit: {limit:g} ms")
    return {"url": server.url, "records": len(records), "seconds": seconds, "latency_ms": alone}


def answered_by(context: ModelContext, version: str, records: list[Record]) -> np.ndarray:
    """A version's probabilities by its live replica: for one
    whose features the contract here can't compute any more."""
    alive = [each for each in fleet.running(context.run, context.name) if each.version == version]
    if not alive:
        raise ReleaseFailed(f"{context.name}: {version[:12]} has other features than the contract has now, "
                            f"and no replica of it runs here to be asked; run on the machine that serves it")
    parts = [_asked(alive[0], records[at:at + MOST_RECORDS]) for at in range(0, len(records), MOST_RECORDS)]
    if (bad := [part for part in parts if part.status_code != 200]):
        raise ReleaseFailed(f"{context.name}: {version[:12]} does not take records of the contract as it is "
                            f"now: {bad[0].text[:300]}")
    answers = [one for part in parts
               for one in _parsed(alive[0], part, context.contract.label.classes)["predictions"]]
    return np.asarray([list(one["probabilities"].values()) for one in answers], dtype=np.float32)


def _compared(context: ModelContext, server: Server, records: list[Record],
              wanted: np.ndarray) -> float:
    """Seconds that a replica took for records; ReleaseFailed
    unless version, probabilities and classes are the trainer's."""
    reply, names = _asked(server, records), context.contract.label.classes
    if reply.status_code != 200:
        raise ReleaseFailed(f"{server.url} answers the samples with {reply.status_code}: {reply.text[:500]}")
    answer = _parsed(server, reply, names)
    got = np.asarray([[one["probabilities"][name] for name in names] for one in answer["predictions"]],
                     dtype=float)
    if answer["version"] != server.version:
        raise ReleaseFailed(f"{server.url} says that it serves {answer['version'][:12]}, and was started for "
                            f"{server.version[:12]}")
    if got.shape != wanted.shape or not np.array_equal(got, wanted):
        far = (np.abs(got - wanted).max() if got.shape == wanted.shape
               else f"shapes {got.shape} and {wanted.shape}")
        raise ReleaseFailed(f"{server.url} differs by {far} from the trainer's answers of "
                            f"{server.version[:12]}, asked {len(records)} at once; see {server.log}")
    called = [names[index] for index in (wanted * context.contract.weights).argmax(axis=1)]
    if (wrong := [(one["class"], name) for one, name in zip(answer["predictions"], called)
                   if one["class"] != name]):
        raise ReleaseFailed(f"{server.url} names another class than the trainer for {len(wrong)} of "
                            f"{len(called)} samples, such as {wrong[0][0]} for {wrong[0][1]}")
    return reply.elapsed.total_seconds()


def _asked(server: Server, records: list[Record]) -> httpx.Response:
    try:
        return httpx.post(f"{server.url}/predict", json={"records": records}, headers=SAMPLE_HEADERS,
                          timeout=10, trust_env=False)
    except httpx.TransportError as error:
        raise ReleaseFailed(
            f"{server.url} gives no answer to the samples: {error!r}; {server.log_tail()}") from error


def _parsed(server: Server, reply: httpx.Response, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = reply.json()
        good = all(set(one) == {"id", "class", "probabilities"} and list(one["probabilities"]) == list(names)
                   for one in answer["predictions"]) and isinstance(answer["version"], str)
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise ReleaseFailed(f"{server.url} answers the samples in another form than the service's: "
                            f"{reply.text[:200]}") from None
    return answer
