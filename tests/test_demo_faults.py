"""The demo's faults: what callers send then, what the
service must refuse, and when a fault counts as named."""

from datetime import datetime, timedelta

import numpy as np

from contracts.flights import source
from flows.demo.faults import FAULTS, corrupted, refused

CELSIUS, CARRIER, CLOCK = FAULTS


def test_rows_are_spoiled_only_while_a_fault_lasts():
    rows = source(datetime(2013, 5, 8), datetime(2013, 7, 14))
    sent = corrupted(rows, "departs", FAULTS)
    times = rows["departs"]
    during = {fault: ((times >= fault.first) & (times < fault.last)).to_numpy()
              for fault in (CELSIUS, CARRIER, CLOCK)}
    differs = {name: ~((sent[name] == rows[name]) | (sent[name].isna() & rows[name].isna())).to_numpy()
               for name in rows}
    assert set(name for name, faulty in differs.items() if faulty.any()) == {"temp", "carrier", "departs"}
    assert (differs["temp"] <= during[CELSIUS]).all() and differs["temp"].sum() > 0.9 * during[CELSIUS].sum()
    assert ((differs["carrier"] == during[CARRIER]).all()
            and (refused(rows, "departs", FAULTS) == during[CARRIER]).all())
    assert ((differs["departs"] <= during[CLOCK]).all()
            and np.isclose(differs["departs"].sum(), during[CLOCK].sum() / 3, atol=1))
    assert list(sent.index) == list(rows.index) and corrupted(rows, "departs", ()) is rows


def week(start: datetime, kind: str, action: str, *reasons: str) -> dict:
    return {"window": start.isoformat(), "end": start + timedelta(7), "kind": kind, "action": action,
            "reasons": reasons}


def test_a_fault_is_named_when_every_window_that_it_touches_says_so():
    first, second, said = datetime(2013, 5, 6), datetime(2013, 5, 13), "temp: sent otherwise; another unit: x"
    told = [week(start, "broken contract", "page", said) for start in (first, second)]
    assert CELSIUS.named(told) is True
    assert not CELSIUS.named([told[0], week(second, "input drift", "noted", said)])
    assert not CELSIUS.named([told[0], week(second, "broken contract", "page", "another reason")])
    assert not CELSIUS.named([week(datetime(2013, 6, 3), "broken contract", "page", said)])
