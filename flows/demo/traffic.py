"""The replay's callers: they send the flights of a week as requests."""

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
BATCH, AT_ONCE = 100, 4  # records a request; requests under way together
# Seconds between one-record requests while a retraining runs, and while its canary is judged.
PACE, FAST = 0.1, 0.01
# Of a day's records, for the canary: a training on a busy machine would else leave it without traffic.
RESERVE = 400
TRAINING = 300  # seconds that a retraining may take before the replay gives up on it


@dataclass
class ReplayTraffic:
    """Every record of the replay, what the live service answered, and how each request went."""

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
        """One request; its answers are kept, a failure is counted and never repeated."""
        begun, worked = time.perf_counter(), False
        try:
            reply = await client.post(self.url, json={"records": [self.records[i] for i in indices]})
            worked = reply.status_code == (400 if self.refused[indices].any() else 200)
            if reply.status_code == 200:
                self.answers[indices] = [list(one["probabilities"].values())
                                         for one in reply.json()["predictions"]]
        except httpx.HTTPError:
            pass  # a failed request: counted below, and the replay's first figure
        self.requests.append((self.day[indices[0]], worked, time.perf_counter() - begun))

    async def send_day(self, indices: np.ndarray) -> None:
        """A day's records in batches, a few at once."""
        gate = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(timeout=30) as client:
            async def one(batch: np.ndarray) -> None:
                async with gate:
                    await self.send(client, batch)
            await asyncio.gather(*(one(indices[at:at + BATCH]) for at in range(0, len(indices), BATCH)))

    async def trickle(self, indices: np.ndarray, finished: Callable[[], bool],
                      watched: Callable[[], bool]) -> np.ndarray:
        """Single records, one after another, until `finished()`,
        faster while `watched()`; what is left of the day."""
        async with httpx.AsyncClient(timeout=30) as client:
            sent, deadline = 0, time.monotonic() + TRAINING
            while not await asyncio.to_thread(finished):
                if time.monotonic() > deadline:
                    log = demo_folder() / "run" / "logs" / "prefect-worker.log"
                    raise PerennialError(f"the retraining did not end in {TRAINING} s; its worker's log says "
                                         f"why: {log}")
                seen = await asyncio.to_thread(watched)
                pace, kept = (FAST, BATCH) if seen else (PACE, BATCH + RESERVE)
                for _ in range(round(0.5 / pace)):
                    if sent < len(indices) - kept:
                        await self.send(client, indices[sent:sent + 1])
                        sent += 1
                    await asyncio.sleep(pace)
        return indices[sent:]
