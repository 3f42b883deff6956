"""One rollout of a model at a time, and what an interrupted one has left to do."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from registry.context import ModelContext
from registry.events import Released


def record_release(context: ModelContext, released: Released) -> None:
    """Record what serves now, which a rollback starts again; a repeated run records nothing new."""
    if context.ledger.state().of_kind(Released)[-1:] != [released]:
        context.ledger.record(released)


@contextmanager
def exclusive_rollout(context: ModelContext, hurry: bool) -> Iterator[None]:
    """One rollout of a model at a time on this machine; one in
    a hurry (a rollback) makes a canary under way give up."""
    context.run.mkdir(parents=True, exist_ok=True)
    if hurry:
        _flag(context).write_text(str(os.getpid()))
    with open(_lock(context), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            if hurry:
                _flag(context).unlink(missing_ok=True)


def _lock(context: ModelContext) -> Path:
    return context.run / f"{context.name}.rollout"


def _flag(context: ModelContext) -> Path:
    return context.run / f"{context.name}.hurry"


def rollback_waits(context: ModelContext) -> bool:
    """Whether somebody waits for a rollback; the flag of one that was killed counts for nothing."""
    try:
        return bool(psutil.pid_exists(int(_flag(context).read_text() or 0)))
    except FileNotFoundError:
        return False


def is_under_way(context: ModelContext) -> bool:
    """Whether a rollout of the model is going on on this machine."""
    context.run.mkdir(parents=True, exist_ok=True)
    with open(_lock(context), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
