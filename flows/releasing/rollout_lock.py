"""The lock that allows one rollout of a model at a time, which a rollback interrupts."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from registry.context import ModelContext
from registry.events import Released


def record_release(context: ModelContext, released: Released) -> None:
    """Record what serves now, for a later rollback; the same again is recorded once."""
    if context.ledger.state().of_kind(Released)[-1:] != [released]:
        context.ledger.record(released)


@contextmanager
def exclusive_rollout(context: ModelContext, urgent: bool) -> Iterator[None]:
    """Allow one rollout of a model at a time on this machine; an
    `urgent` one (a rollback) makes a canary under way give up."""
    context.run.mkdir(parents=True, exist_ok=True)
    if urgent:
        _rollback_flag(context).write_text(str(os.getpid()))
    with open(_lock_path(context), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            if urgent:
                _rollback_flag(context).unlink(missing_ok=True)


def _lock_path(context: ModelContext) -> Path:
    return context.run / f"{context.name}.rollout"


def _rollback_flag(context: ModelContext) -> Path:
    return context.run / f"{context.name}.hurry"


def is_rollback_waiting(context: ModelContext) -> bool:
    """Whether a rollback waits for the lock; the flag of a killed process does not count."""
    try:
        return bool(psutil.pid_exists(int(_rollback_flag(context).read_text() or 0)))
    except FileNotFoundError:
        return False


def is_under_way(context: ModelContext) -> bool:
    """Whether a rollout of the model is going on on this machine."""
    context.run.mkdir(parents=True, exist_ok=True)
    with open(_lock_path(context), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
