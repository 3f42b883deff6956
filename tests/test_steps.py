"""The steps of a flow: what is tried again, what is bounded, and what a resumed run finds."""

import numpy as np
import pytest
import xgboost
from botocore.exceptions import ClientError
from httpx import ConnectError
from prefect import State
from prefect.client.schemas.objects import StateType
from prefect.task_engine import TaskRunTimeoutError

from contracts.core.errors import ContractError, PerennialError, Unavailable
from flows.orchestration.results import StoredResults
from flows.orchestration.steps import is_lack_of_memory, may_succeed_again, memory_limit


def failed(error: BaseException) -> State:
    return State(type=StateType.FAILED, data=error)


@pytest.mark.parametrize(("error", "again"), [
    (Unavailable("the store"), True), (ConnectError("no route"), True), (TimeoutError(), True),
    (ClientError({"Error": {"Code": "503"}}, "PutObject"), True),
    (TaskRunTimeoutError("2 hours"), False), (ContractError("wrong"), False), (KeyError("x"), False),
    (MemoryError(), False)])
def test_only_what_may_be_gone_at_the_next_attempt_is_tried_again(error, again):
    assert may_succeed_again(None, None, failed(error)) is again


def test_the_cause_of_an_error_decides_too():
    error = PerennialError("the version can't be stored")
    error.__cause__ = ConnectionError("reset")
    assert may_succeed_again(None, None, failed(error))


def test_a_training_that_needs_more_memory_than_the_contract_allows_is_told_so():
    said = "pumps: .*memory_gb of 0.5 GB: raise it"
    with pytest.raises(PerennialError, match=said), memory_limit("pumps", 0.5):
        np.ones(100_000_000)
    np.ones(100_000_000)  # the limit is gone


def test_xgboosts_own_lack_of_memory_is_told_as_well():
    features = np.zeros((20_000_000, 10), dtype=np.float32)  # its 200 MB of bins fit no hole in the heap
    with pytest.raises(PerennialError, match="memory_gb") as told, memory_limit("pumps", 0.1):
        xgboost.QuantileDMatrix(features, features[:, 0])
    assert is_lack_of_memory(told.value.__cause__)


def test_other_errors_pass_the_memory_limit_as_they_are():
    with pytest.raises(ZeroDivisionError), memory_limit("pumps", 8):
        1 / 0  # noqa: B018  # it raises


def test_results_are_objects_of_the_store(addresses):
    kept = StoredResults()
    with pytest.raises(ValueError, match="no result a/b"):
        kept.read_path("a/b")
    kept.write_path("a/b", b"{}")
    assert kept.read_path("a/b") == b"{}"
    kept.write_path("a/b", b"[]")
    assert kept.read_path("a/b") == b"[]"
