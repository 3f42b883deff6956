"""Every error that a person or a caller may meet, in one small
tree; a message names the value, the rule and the remedy."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contracts.core.verdict import Verdict


class PerennialError(Exception):
    """An error that a person can correct.

    `exit_code`: what the command ends with; 2 for the user's mistake, 1 for a failure.
    """

    exit_code = 2


class ContractError(PerennialError):
    """The contract itself is wrong."""


class NotFound(PerennialError):
    """Nothing of that name is kept: no key, version, data, window or traffic."""


class NoChampion(NotFound):
    """No version was promoted yet."""


class Stale(PerennialError):
    """The source gives no newer rows, though it should."""

    exit_code = 1


class UnsafeStore(PerennialError):
    """The store lets two racing writers both win."""


class CheckFailed(PerennialError):
    """A check failed; `verdict` holds all its reasons."""

    exit_code = 1

    def __init__(self, verdict: "Verdict", remedy: str):
        super().__init__(f"{verdict.question}: {'; '.join(verdict.reasons)}; {remedy}")
        self.verdict = verdict


class NotAllowed(PerennialError):
    """No verdict of the gate allows this promotion."""

    exit_code = 1


class Conflict(PerennialError):
    """Another writer was first."""

    exit_code = 1


class Corrupt(PerennialError):
    """Stored content does not match its digest, or can't be read."""

    exit_code = 1


class SourceFailed(PerennialError):
    """A contract's source raised, or gave something else than was asked for."""

    exit_code = 1


class Unavailable(PerennialError):
    """A service that is needed does not answer: the store,
    Prefect, a container engine, a Dask cluster, a replica."""

    exit_code = 1


class ReleaseFailed(PerennialError):
    """A version could not be built, shipped or routed to; what served before goes on."""

    exit_code = 1


class RequestError(Exception):
    """A request that gets no prediction. Raised and handled inside the service."""


class Overloaded(RequestError):
    """As many requests wait already as may (503)."""


class BodyTooLarge(RequestError):
    """The body is larger than the service takes (413)."""


class ClientDisconnected(RequestError):
    """The client hung up before its answer."""
