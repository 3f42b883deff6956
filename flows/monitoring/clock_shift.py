"""Whether predictions without an event have one some hours before or after: a caller's clock may be wrong."""

from collections.abc import Mapping
from datetime import timedelta

import pyarrow as pa

from flows.monitoring.event_keys import EventKey
from flows.monitoring.join import Joined
from flows.monitoring.logged import CODE, NUMBER_OF, LoggedPredictions
from flows.monitoring.spill import Spill
from flows.monitoring.window_events import WindowEvents

SHIFTS = {f"{abs(hours)} hours {'earlier' if hours < 0 else 'later'}": timedelta(hours=hours)
          for hours in (-24, -12, -1, 1, 12, 24)}


def joins_if_shifted(key: EventKey, spill: Spill, logged: LoggedPredictions, events: WindowEvents | None,
                     joined: Joined) -> Mapping[str, int]:
    """By the name of a time shift, how many of the predictions without an event have one, that no other
    prediction has, if their event time is shifted; as a sample of them says."""
    sample, contract = joined.without_event.table(), key.contract
    if sample is None or not joined.joined or not events or contract.event_time not in contract.key:
        return {}
    connection, keys = spill.connection, ", ".join(f"l.{name}" for name in key.names)
    time = key.names[contract.key.index(contract.event_time)]
    connection.register("without_event", sample)
    connection.register("shifts", pa.table({"name": [*SHIFTS], "shift": pa.array(
        [*SHIFTS.values()], pa.duration("us"))}))
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE shifted AS SELECT name, l.* REPLACE (l.{time} + shift AS {time}) "
        f"FROM (SELECT {keys} FROM {logged.on_disk.sql} l SEMI JOIN without_event w "
        f"ON l.{CODE} = w.{CODE} AND l.{NUMBER_OF} = w.{NUMBER_OF}) l, shifts")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE found AS SELECT * FROM shifted c "
                       f"SEMI JOIN {events.on_disk.sql} e ON {key.match('c', 'e')}")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE taken AS SELECT DISTINCT {keys} "
                       f"FROM {logged.on_disk.sql} l SEMI JOIN found c ON {key.match('l', 'c')}")
    counts = connection.execute(f"SELECT name, count(*) FROM found c ANTI JOIN taken t "
                                f"ON {key.match('c', 't')} GROUP BY name").fetchall()
    scale = (joined.streamed - joined.joined) / len(sample)
    return {name: round(count * scale) for name, count in counts}
