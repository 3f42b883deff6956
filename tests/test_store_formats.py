"""A store that an older release wrote opens unchanged:
`data/store_format_1.tar.gz`, with what that release read in it."""

import json
import tarfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

from contracts.core.digests import digest_of
from contracts.core.errors import Corrupt
from contracts.core.retraining import ClaimState, RefusalRule
from contracts.pumps import contract, readings
from flows.monitoring.decision import decided
from flows.monitoring.outcomes import join_outcomes
from flows.monitoring.windows import due
from registry import data, layout
from registry.context import ModelContext, fetch_version, open_model
from registry.events import FORMAT, encode_data, kind_of
from registry.traffic import window_counts
from service.model import load_model
from tests.logged import logged_predictions

DATA = Path(__file__).parent / "data"


@pytest.fixture
def context(addresses) -> ModelContext:
    with tarfile.open(DATA / "store_format_1.tar.gz") as archive:
        archive.extractall(addresses / "store", filter="data")
    return open_model("pumps")


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((DATA / "store_format_1.json").read_text())


def test_the_ledger_adds_up_to_the_same_state(context, expected):
    state = context.ledger.state()
    read = {name: to_builtins(dict(value) if isinstance(value, Mapping) else value, str_keys=True)
            for name in expected if (value := getattr(state, name, None)) is not None}
    read |= {"promoted": list(state.promoted), "recorded": {}}
    for event in state.recorded:
        read["recorded"].setdefault(kind_of(event), []).append(encode_data(event))
    assert_holds(read, {name: value for name, value in expected.items() if name in read})
    assert state.previous == expected["previous"]
    assert {window: decided(state, window, contract.drift) for window in state.windows} == expected["actions"]
    assert [window.isoformat() for window in due(context)] == expected["due"]


def assert_holds(read: Any, older: Any) -> None:
    """All that the older release read is there; fields may have come since."""
    if isinstance(older, dict):
        for name, value in older.items():
            # It said no more than the outcome.
            if name == "kind" and older.get("question") in ("data", "gate"):
                continue
            assert name in read, f"{name} of {older} is gone"
            assert_holds(read[name], value)
    elif isinstance(older, list):
        assert len(read) == len(older)
        for new, old in zip(read, older):
            assert_holds(new, old)
    else:
        assert read == older or datetime.fromisoformat(read) == datetime.fromisoformat(older)


def test_a_refusal_of_format_1_says_its_rule(context):
    claims = context.ledger.state().claims
    assert {claim.rule for claim in claims.values() if claim.state is ClaimState.REFUSED} == {
        RefusalRule.COOLDOWN, RefusalRule.CIRCUIT_BREAKER, RefusalRule.IN_FLIGHT}


def test_an_event_of_a_later_format_is_not_misread(context):
    ledger, event = context.ledger, {"seq": 1, "prev": "", "at": "2024-01-01T00:00:00+00:00", "by": "x",
                                     "kind": "dreamt", "data": {}}
    event |= {"seq": len(ledger.events()), "prev": ledger.events()[-1].digest}
    digest = digest_of(event)
    content = json.dumps({"format": FORMAT + 1, "digest": digest, **event}).encode()
    context.store.create(layout.event("pumps", event["seq"]), content)
    with pytest.raises(Corrupt, match=rf"is of format {FORMAT + 1} and kind 'dreamt'.*upgrade perennial"):
        ledger.events()


def test_the_ledger_goes_on(context):
    length = len(context.ledger.events())
    context.ledger.note(context.ledger.state().champion, "read by a newer release")
    assert len(open_model("pumps").ledger.events()) == length + 1


def test_data_and_models_are_read(context):
    newest = data.newest(context.store, "pumps")
    assert len(data.read(context.store, newest)) == newest.rows
    folder = fetch_version(context, context.ledger.state().champion)
    samples = json.loads((folder / "samples.json").read_text())
    columns = contract.columns_of(readings(datetime(2024, 1, 1), datetime(2024, 1, 2)))
    assert (load_model(contract, folder).probabilities(columns).shape
            == (400, len(samples["probabilities"][0])))


def test_traffic_is_read_and_meets_its_labels(context):
    champion, start = context.ledger.state().champion, datetime(2024, 2, 26)
    counts, logged = window_counts(context, champion, start), logged_predictions(context, champion, start)
    assert counts.rows == len(logged) > 0
    outcomes = join_outcomes(context, champion, start)
    assert outcomes.promised.rows == len(logged) and outcomes.sums.whole.rows == 1
    assert [*outcomes.sample.dropna(subset="label")["id"]] == ["r8-3"]
