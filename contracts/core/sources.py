"""Where a model's labelled rows come from, if not from a function: files, a query or a table."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

BLOCK = "prefect:"  # begins an address that is kept in a secret block of that name
VARIABLE = re.compile(r"\$\{(\w+)\}")
USER_PASSWORD = re.compile(r"://[^:/@\s]*:([^@\s]+)@")
PASSWORD_PARAMETER = re.compile(
    r"[?&;][\w.-]*(?:password|passwd|pwd|secret|token|access_key)[\w.-]*=([^&;\s]+)", re.IGNORECASE)
REMEDY = "write ${NAME} for an environment variable, or prefect:NAME for a secret block"


def passwords_in(address: str) -> list[str]:
    """What stands in an address in the place of a password: user:HERE@host, or ?password=HERE."""
    return [*USER_PASSWORD.findall(address), *PASSWORD_PARAMETER.findall(unquote(address))]


def _credential_problems(what: str, address: str) -> Iterator[str]:
    if any(VARIABLE.sub("", password) for password in passwords_in(address)):
        yield f"its {what} holds a password: {REMEDY}"


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files in a folder or on S3, by a pattern of their path with times in it, as
    "s3://bucket/orders/%Y/%m/%d/*.parquet". A file holds the rows of its hour, day, month or year, whichever
    is the smallest that the pattern names; without any, all files are read. A folder stands for its files."""

    pattern: str

    def problems(self) -> Iterator[str]:
        if unknown := set(re.findall(r"%(.)", self.pattern)) - {*"YmdHj"}:
            yield f"its pattern has %{sorted(unknown)[0]}; use %Y, %m, %d, %j and %H"
        if any(passwords_in(self.pattern)):
            yield "its pattern holds a password: drop it, S3's keys are read as boto3 reads them"


@dataclass(frozen=True)
class SqlQuery:
    """The rows that a query gives for `:start` and `:end`, from the database at a SQLAlchemy URL.

    `${NAME}` in the URL is an environment variable; "prefect:NAME" is a Prefect secret block with the URL.
    SQLite compares times as texts: store them as `2024-01-03 05:00:00`, with or without a fraction.
    """

    query: str
    url: str

    def problems(self) -> Iterator[str]:
        for name in (":start", ":end"):
            if not re.search(rf"(?<![:\w\\]){name}\b", self.query):
                yield f"its query lacks {name}: add `event_time >= :start AND event_time < :end`"
        yield from _credential_problems("url", self.url)


@dataclass(frozen=True)
class DeltaSource:
    """A Delta table in a folder or on S3; `${NAME}` in its address is an environment variable, and
    "prefect:NAME" a Prefect secret block with the address."""

    address: str

    def problems(self) -> Iterator[str]:
        yield from _credential_problems("address", self.address)
