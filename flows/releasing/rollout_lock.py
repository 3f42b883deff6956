"""One rollout of a model at a time, and what an interrupted one has left to do."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from registry.context import ModelContext


def record_release(memory: ModelContext, facts: dict[str, Any]) -> None:
    """What serves now, which a rollback starts again; a run that is repeated says nothing new."""
    before = memory.ledger.state().recorded.get("released", ())
    if not before or any(before[-1].get(name) != value for name, value in facts.items()):
        memory.ledger.record("released", facts)


@contextmanager
def exclusive_rollout(memory: ModelContext, hurry: bool) -> Iterator[None]:
    """One rollout of a model at a time on this machine; one in a hurry (a rollback) makes a canary under way give up."""
    memory.run.mkdir(parents=True, exist_ok=True)
    if hurry:
        _flag(memory).write_text(str(os.getpid()))
    with open(_lock(memory), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            if hurry:
                _flag(memory).unlink(missing_ok=True)


def _lock(memory: ModelContext) -> Path:
    return memory.run / f"{memory.name}.rollout"


def _flag(memory: ModelContext) -> Path:
    return memory.run / f"{memory.name}.hurry"


def rollback_waits(memory: ModelContext) -> bool:
    """Whether somebody waits for a rollback; the flag of one that was killed counts for nothing."""
    try:
        return psutil.pid_exists(int(_flag(memory).read_text() or 0))
    except FileNotFoundError:
        return False


def is_under_way(memory: ModelContext) -> bool:
    """Whether a rollout of the model is going on on this machine."""
    memory.run.mkdir(parents=True, exist_ok=True)
    with open(_lock(memory), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
