"""The replay's callers, who send the flights of each day as requests."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import httpx
import numpy as np
import pandas as pd

from contracts.core.contract import Contract
from contracts.core.errors import PerennialError
from contracts.core.features import Record
from flows.demo.faults import Fault, corrupted, refused
from registry.settings import demo_folder
from service.model import records_of_columns

MODEL = "flights"
YEAR, TRAFFIC = datetime(2013, 1, 1), datetime(2013, 3, 1)
BATCH, CONCURRENT = 100, 4  # records in a request; requests at a time
# Seconds between requests of one record while a retraining runs, and while its canary is judged.
TRAINING_PACE, CANARY_PACE = 0.1, 0.01
# Records of a day kept for the canary, which would get no traffic after a long training otherwise.
RESERVE = 400
TRAINING = 300  # seconds that a retraining may take before the replay gives up


@dataclass
class ReplayTraffic:
    """The records of the replay, the live service's answers (n, classes), and the result of each request."""

    contract: Contract
    rows: pd.DataFrame
    url: str
    faults: tuple[Fault, ...] = ()
    records: list[Record] = field(init=False)
    answers: np.ndarray = field(init=False)
    requests: list[tuple[str, bool, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        sent = corrupted(self.rows, self.contract.event_time, self.faults)
        self.records = records_of_columns(self.contract,
                                          self.contract.columns_of(sent, self.contract.sent_columns))
        self.refused = refused(self.rows, self.contract.event_time, self.faults)
        self.answers = np.full((len(self.rows), len(self.contract.label.classes)), np.nan)
        self.day = self.rows[self.contract.event_time].dt.strftime("%Y-%m-%d").to_numpy()

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

    async def send_day(self, indices: np.ndarray) -> None:
        """Send a day's records in batches, CONCURRENT of them at a time."""
        limit = asyncio.Semaphore(CONCURRENT)
        async with httpx.AsyncClient(timeout=30) as client:
            async def send_batch(start: int) -> None:
                async with limit:
                    await self.send(client, indices[start:start + BATCH])
            await asyncio.gather(*map(send_batch, range(0, len(indices), BATCH)))

    async def send_singly(self, indices: np.ndarray, is_finished: Callable[[], bool],
                          has_canary: Callable[[], bool]) -> np.ndarray:
        """Send single records one after another until `is_finished()`, faster
        while `has_canary()`; returns the indices that are left of the day."""
        async with httpx.AsyncClient(timeout=30) as client:
            sent, deadline = 0, time.monotonic() + TRAINING
            while not await asyncio.to_thread(is_finished):
                if time.monotonic() > deadline:
                    log = demo_folder() / "run" / "logs" / "prefect-worker.log"
                    raise PerennialError(f"the retraining did not end in {TRAINING} s; its worker's log says "
                                         f"why: {log}")
                fast = await asyncio.to_thread(has_canary)
                pace, kept = (CANARY_PACE, BATCH) if fast else (TRAINING_PACE, BATCH + RESERVE)
                for _ in range(round(0.5 / pace)):
                    if sent < len(indices) - kept:
                        await self.send(client, indices[sent:sent + 1])
                        sent += 1
                    await asyncio.sleep(pace)
        return indices[sent:]
