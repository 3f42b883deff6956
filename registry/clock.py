"""The time: of events, which PERENNIAL_CLOCK may set, and of this machine. Nothing else reads a clock."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from contracts.core.errors import PerennialError
from registry import settings
from service.atomic_files import write_text


def now(time_zone: str) -> datetime:
    """The present moment as event times are written: on the clocks of a zone, without naming it."""
    moment = _set_moment() or machine_time()
    return moment.astimezone(ZoneInfo(time_zone)).replace(tzinfo=None)


def machine_time() -> datetime:
    """This machine's time in UTC, for stamps and for how long something has taken."""
    return datetime.now(UTC)


def set_clock(moment: datetime) -> None:
    """Set the clock in the file that PERENNIAL_CLOCK names; `moment` has a zone."""
    file = settings.clock_file()
    if file is None:
        raise PerennialError(f"{settings.CLOCK} is not set, so the clock is the machine's; name a file in it")
    write_text(file, moment.isoformat())


def is_simulated() -> bool:
    """Whether a file sets the clock, and not the machine."""
    return settings.clock_file() is not None


def _set_moment() -> datetime | None:
    file = settings.clock_file()
    if file is None:
        return None
    try:
        moment = datetime.fromisoformat(file.read_text().strip())
        if moment.tzinfo is None:
            raise ValueError(f"{moment} has no zone")
    except (OSError, ValueError) as error:
        raise PerennialError(f"{settings.CLOCK} names {file}, which gives no time ({error}); write one "
                             f"with its zone into it, as 2013-03-01T00:00:00-05:00, or unset "
                             f"{settings.CLOCK}") from None
    return moment
