"""Move the clock of a replay, and tell the flows whose schedule it reaches."""

from collections.abc import Iterable
from datetime import datetime

from prefect.events import Event, Resource

from contracts.core.contract import Contract
from flows.orchestration.events import CLOCK_REACHED, post_event, resource_of
from flows.orchestration.recurrence import next_time
from registry import clock


def move_clock(contracts: Iterable[Contract], to: datetime) -> list[str]:
    """Set the clock of PERENNIAL_CLOCK to a moment with a zone, and emit an event for each flow of each model
    whose schedule has a time since the moment before; returns them, as "ingest/flights". Raises
    httpx.HTTPError if the server does not take an event: no other would follow, and nothing would start."""
    before = {contract.name: _now(contract) for contract in contracts}
    clock.set_clock(to)
    reached = []
    for contract in contracts:
        schedule = contract.schedule
        looks = schedule.data if contract.source else None
        for flow, when in (("ingest", looks), ("monitor", schedule.judge)):
            if when and next_time(when, before[contract.name], schedule.time_zone) <= _now(contract):
                post_event(Event(event=CLOCK_REACHED, payload={"now": to.isoformat()},
                                 resource=Resource(resource_of(contract.name) | {"flow": flow})))
                reached.append(f"{flow}/{contract.name}")
    return reached


def _now(contract: Contract) -> datetime:
    return clock.now(contract.schedule.time_zone)
