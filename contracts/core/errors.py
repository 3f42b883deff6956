"""Every error that a person may meet, in one small tree."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contracts.core.verdict import Verdict





class PerennialError(Exception):
    """Something a person can mend; the message says how. `exit_code`: 2 for their mistake, 1 for a failure."""

    exit_code = 2


class ContractError(PerennialError):
    """The contract itself is wrong."""


class CheckFailed(PerennialError):
    """A check said no; `verdict` holds all the reasons."""

    exit_code = 1

    def __init__(self, verdict: "Verdict", remedy: str):
        super().__init__(f"{verdict.question}: {'; '.join(verdict.reasons)}; {remedy}")
        self.verdict = verdict


class RouteNotTaken(PerennialError):
    """The balancer does not send a model's requests where it was told to."""

    exit_code = 1


class NotPointed(PerennialError):
    """A kustomization can't be pointed at an image."""


class DeployFailed(PerennialError):
    """Prefect did not take the deployments; the message holds what it said."""

    exit_code = 1


class NotReady(PerennialError):
    """A process died or did not answer in time; the message ends with its log's last lines."""

    exit_code = 1


class ClusterAway(PerennialError):
    """The Dask cluster does not answer, or has no workers."""

    exit_code = 1


class PortTaken(PerennialError):
    """Somebody else listens there."""


class PrefectAway(PerennialError):
    """The server that keeps the runs does not answer."""

    exit_code = 1


class NoProfile(PerennialError):
    """Bytes that are no profile."""


class NoTraffic(PerennialError):
    """The profiles that a window was judged by are gone."""


class ReleaseFailed(PerennialError):
    """The new version does not serve; what served before goes on."""

    exit_code = 1


class NotJudged(PerennialError):
    """The ledger holds no verdict on such a window."""


class NoData(PerennialError):
    """Nothing was ingested yet, or nothing of that name."""


class NoEngine(PerennialError):
    """No container engine answers."""

    exit_code = 1


class ImageFailed(PerennialError):
    """An image could not be built, pushed or found; what served before goes on."""

    exit_code = 1


class BrokenChain(PerennialError):
    """An event was changed, removed or put in from outside."""

    exit_code = 1


class NotAllowed(PerennialError):
    """No Verdict allows this promotion."""

    exit_code = 1


class PromotionLost(PerennialError):
    """Another version was promoted first."""

    exit_code = 1


class NothingToRollBackTo(PerennialError):
    """There is no earlier champion."""


class NoSuchVersion(PerennialError):
    """No version of that name."""


class NoChampion(PerennialError):
    """Nothing was promoted yet."""


class Corrupt(PerennialError):
    """What is stored is not what was saved."""

    exit_code = 1


class NotFound(PerennialError):
    """Nothing is kept under this key."""


class Conflict(PerennialError):
    """Somebody else wrote first."""


class StoreIgnoresConditions(PerennialError):
    """The store lets two writers win."""


class StoreAway(PerennialError):
    """The store does not answer, or refuses to."""

    exit_code = 1


class BodyTooLarge(Exception):
    """The body is larger than LARGEST_BODY."""


class Overloaded(Exception):
    """As many requests wait already as may."""


class ClientDisconnected(Exception):
    """The caller hung up before the answer."""
