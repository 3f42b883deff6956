"""Which windows are closed, due, or to be judged again."""

import json
from datetime import datetime

from contracts.core.errors import PerennialError
from contracts.core.retraining import is_provisional
from contracts.core.verdict import Verdict
from registry import data, layout
from registry.context import ModelContext
from service.model import SERVED

WIDEST = 4  # windows that are judged together where one has too few rows


def closed(memory: ModelContext, window: str) -> datetime:
    """The window's start; refuses what starts no window, and a window whose labels are not all in."""
    contract, name = memory.contract, memory.name
    try:
        start, end = contract.window_of(datetime.fromisoformat(window))
    except (ValueError, TypeError, OverflowError):  # no time, one with a zone, or one at the end of all times
        raise PerennialError(f"{window!r} starts no window of {name}; name its start without a zone, as 2013-07-01T00:00:00") from None
    if start.isoformat() != window:
        raise PerennialError(f"{window} starts no window of {name}; the one around it starts at {start.isoformat()}: name that")
    if end > (labelled := labelled_until(memory)):
        last = contract.window_of(labelled)[0] - contract.drift.window
        raise PerennialError(f"the window {window} of {name} is open: it ends at {end}, labels are in up to {labelled}; name "
                             f"{last.isoformat()} or an earlier one, or first run: perennial ingest {name}")
    return start


def labelled_until(memory: ModelContext) -> datetime:
    return datetime.fromisoformat(data.newest(memory.store, memory.name).end)


def due(memory: ModelContext) -> list[datetime]:
    """Closed windows to judge, from the first one with a champion's traffic on: those that nobody judged, without traffic too,
    and the newest ones that wait for labels, where some came."""
    started = first_traffic(memory)
    if started is None:
        return []
    policy, newest, judged = memory.contract.drift, labelled_until(memory), memory.ledger.state().windows
    held, oldest = _labels_held(memory), newest - (WIDEST + 1) * policy.window

    def to_judge(start: datetime) -> bool:
        one = judged.get(start.isoformat())
        return one is None or (start >= oldest and one.get("labels") != held and is_provisional(Verdict.from_json(one["verdict"]), policy))

    return [start for start in (started + policy.window * index for index in range((newest - started) // policy.window)) if to_judge(start)]


def _labels_held(memory: ModelContext) -> str:
    """Another text whenever labels came, with events or for ids."""
    by_id = memory.ledger.state().recorded.get("labelled", ())
    return " ".join([data.newest(memory.store, memory.name).digest, *(one["labels"][:12] for one in by_id[-1:])])


def first_traffic(memory: ModelContext) -> datetime | None:
    """The start of the first window in which a champion answered; None before there was one."""
    return min(_windows_of_traffic(memory), default=None)


def _windows_of_traffic(memory: ModelContext) -> set[datetime]:
    versions, keys = champions(memory), memory.store.list(layout.traffic(layout.PROFILES, memory.name))
    return {start for version, start in map(layout.parse_traffic, keys) if version in versions}


def stale(memory: ModelContext) -> Verdict | None:
    """That labels stay away though traffic goes on, if they do."""
    newest, window = max(_windows_of_traffic(memory), default=None), memory.contract.drift.window
    if newest is None or newest - (labels := labelled_until(memory)) < 2 * window:
        return None
    return Verdict("drift", "failed", kind="stale", figures={"since": labels.isoformat(), "checks": {}}, reasons=(
        f"labels are in up to {labels}, traffic is of the window that starts at {newest}: nothing after can be judged; look why "
        f"`perennial ingest {memory.name}` finds none",))


def champions(memory: ModelContext) -> list[str]:
    """The champion and those before it, but for those that the contract has outgrown: their traffic can't be judged."""
    state = memory.ledger.state()

    def serving(version: str) -> str:
        return json.loads(memory.store.get(layout.version_file(memory.name, version, f"{SERVED}.json")))["serving"]
    return [version for version in state.promoted if version == state.champion or serving(version) == memory.contract.serving]
