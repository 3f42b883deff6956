"""The replay's callers, who send the flights of each day as requests."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import httpx
import numpy as np
import pandas as pd

from contracts.core.contract import Contract
from contracts.core.errors import PerennialError
from contracts.core.features import Record
from flows.demo.faults import Fault, corrupted, refused
from registry.context import ModelContext, open_model
from registry.settings import demo_folder
from registry.sources import read_source
from service.model import records_of_columns

MODELS = ("flights", "departures")
YEAR, TRAFFIC = datetime(2013, 1, 1), datetime(2013, 3, 1)
BATCH, CONCURRENT = 100, 4  # records in a request; requests at a time
# Seconds between requests of one record while a retraining runs, and while its canary is judged.
TRAINING_PACE, CANARY_PACE = 0.1, 0.01
# Records of a day kept for the canary, which would get no traffic after a long training otherwise.
RESERVE = 400
TRAINING = 300  # seconds that a retraining may take before the replay gives up


def source_rows(contract: Contract, start: datetime, end: datetime) -> pd.DataFrame:
    """The year's rows of [start, end), as the contract's source gives them."""
    rows = read_source(contract, start, end, str)
    return pd.DataFrame() if rows is None else rows


@dataclass
class ReplayTraffic:
    """One model's callers: the records of the replay, the live service's answers (n, classes), and the result
    of each request."""

    context: ModelContext
    rows: pd.DataFrame
    url: str
    faults: tuple[Fault, ...] = ()
    records: list[Record] = field(init=False)
    answers: np.ndarray = field(init=False)
    requests: list[tuple[str, bool, float]] = field(default_factory=list)

    @classmethod
    def of(cls, model: str, until: datetime, url: str, faults: tuple[Fault, ...]) -> "ReplayTraffic":
        """The callers of a model at `url`, with its source's rows up to `until`."""
        context = open_model(model)
        return cls(context, source_rows(context.contract, TRAFFIC, until), url, faults)

    def __post_init__(self) -> None:
        sent = corrupted(self.rows, self.contract.event_time, self.faults)
        self.records = records_of_columns(self.contract,
                                          self.contract.columns_of(sent, self.contract.sent_columns))
        self.refused = refused(self.rows, self.contract.event_time, self.faults)
        self.answers = np.full((len(self.rows), len(self.contract.label.classes)), np.nan)
        self.day = self.rows[self.contract.event_time].dt.strftime("%Y-%m-%d").to_numpy()
        self.remaining = {day: np.flatnonzero(self.day == day) for day in self.days}

    @property
    def contract(self) -> Contract:
        return self.context.contract

    @property
    def model(self) -> str:
        return self.context.name

    @cached_property
    def days(self) -> list[str]:
        return [*dict.fromkeys(self.day)]

    def is_retraining(self) -> bool:
        """Whether a granted retraining is not finished."""
        return any(claim.is_granted for claim in self.context.ledger.state().claims.values())

    def _has_canary(self) -> bool:
        from deployments.routes import challenger_urls

        return bool(challenger_urls(self.context.run, self.model))

    async def send(self, client: httpx.AsyncClient, indices: np.ndarray) -> None:
        """Send one request and keep its answers; a failure is counted and not repeated."""
        begun, succeeded = time.perf_counter(), False
        try:
            reply = await client.post(self.url, json={"records": [self.records[i] for i in indices]})
            succeeded = reply.status_code == (400 if self.refused[indices].any() else 200)
            if reply.status_code == 200:
                self.answers[indices] = [list(prediction["probabilities"].values())
                                         for prediction in reply.json()["predictions"]]
        except httpx.HTTPError:
            pass  # counted below as a failed request
        self.requests.append((self.day[indices[0]], succeeded, time.perf_counter() - begun))

    async def send_rest_of(self, day: str) -> None:
        """Send what was not sent of a day yet, in batches, CONCURRENT of them at a time."""
        indices = self.remaining.pop(day, np.zeros(0, int))
        limit = asyncio.Semaphore(CONCURRENT)
        async with httpx.AsyncClient(timeout=30) as client:
            async def send_batch(start: int) -> None:
                async with limit:
                    await self.send(client, indices[start:start + BATCH])
            await asyncio.gather(*map(send_batch, range(0, len(indices), BATCH)))

    async def send_singly(self, day: str) -> None:
        """Send records of a day one after another until the retraining has ended, faster while its canary is
        judged."""
        async with httpx.AsyncClient(timeout=30) as client:
            deadline = time.monotonic() + TRAINING
            while await asyncio.to_thread(self.is_retraining):
                if time.monotonic() > deadline:
                    log = demo_folder() / "run" / "logs" / "prefect-worker.log"
                    raise PerennialError(f"the retraining of {self.model} did not end in {TRAINING} s; its "
                                         f"worker's log says why: {log}")
                fast = await asyncio.to_thread(self._has_canary)
                pace, kept = (CANARY_PACE, BATCH) if fast else (TRAINING_PACE, BATCH + RESERVE)
                for _ in range(round(0.5 / pace)):
                    indices = self.remaining.get(day, np.zeros(0, int))
                    if len(indices) > kept:
                        self.remaining[day] = indices[1:]
                        await self.send(client, indices[:1])
                    await asyncio.sleep(pace)
