"""How the steps of a flow are retried, bounded and resumed."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from httpx import HTTPError
from prefect import State, Task
from prefect.client.schemas import TaskRun
from prefect.task_engine import TaskRunTimeoutError
from prefect.tasks import exponential_backoff

from contracts.core.errors import Conflict, PerennialError, Unavailable
from registry.data import STORE_FAULTS

# Of the store, a registry, a database or the network.
MENDABLE = (Unavailable, Conflict, ConnectionError, TimeoutError, HTTPError, *STORE_FAULTS)


def may_succeed_again(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a step failed by something outside that may be gone at the next attempt. One that took longer
    than it may would do so again."""
    error: Any = state.data
    if isinstance(error, TaskRunTimeoutError):
        return False
    return isinstance(error, MENDABLE) or isinstance(getattr(error, "__cause__", None), MENDABLE)


# Of a step that asks something outside: three more attempts, after about 2, 4 and 8 seconds.
RETRIED: dict[str, Any] = {"retries": 3, "retry_delay_seconds": exponential_backoff(2),
                           "retry_jitter_factor": 0.5, "retry_condition_fn": may_succeed_again}


@contextmanager
def memory_limit(model: str, gb: float) -> Iterator[None]:
    """Hold this process's memory to so many GB; raises PerennialError where more is asked for."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(gb * 2**30), before[1]))
    try:
        yield
    except Exception as error:
        if not is_lack_of_memory(error):
            raise
        raise PerennialError(f"{model}: the training needs more than the contract's training.memory_gb of "
                             f"{gb:g} GB: raise it, or train on fewer rows") from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def is_lack_of_memory(error: Exception) -> bool:
    """Whether Python, or XGBoost's C++, could not get the memory that it asked for."""
    return isinstance(error, MemoryError) or any(name in str(error) for name in ("bad_alloc", "bad_malloc"))
