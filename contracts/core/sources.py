"""Where a model's labelled rows come from, if not from a function: files, a query or a table."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

PASSWORD_IN_URL = re.compile(r"://[^/@]*:(?!\$\{)[^/@]+@")


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files in a folder or on S3, by a pattern of their path with times in it, as
    "s3://bucket/orders/%Y/%m/%d/*.parquet". A file holds the rows of its hour, day, month or year, whichever
    is the smallest that the pattern names; without any, all files are read."""

    pattern: str

    def problems(self) -> Iterator[str]:
        if unknown := set(re.findall(r"%(.)", self.pattern)) - {*"YmdHj"}:
            yield f"its pattern has %{sorted(unknown)[0]}; use %Y, %m, %d, %j and %H"


@dataclass(frozen=True)
class SqlQuery:
    """The rows that a query gives for `:start` and `:end`, from the database at a SQLAlchemy URL.

    `${NAME}` in the URL is an environment variable; "prefect:NAME" is a Prefect secret block with the URL.
    """

    query: str
    url: str

    def problems(self) -> Iterator[str]:
        for name in (":start", ":end"):
            if name not in self.query:
                yield f"its query lacks {name}: add `event_time >= :start AND event_time < :end`"
        if PASSWORD_IN_URL.search(self.url):
            yield "its url holds a password: write ${NAME} for an environment variable, or prefect:NAME"


@dataclass(frozen=True)
class DeltaSource:
    """A Delta table in a folder or on S3; `${NAME}` in its address is an environment variable."""

    address: str

    def problems(self) -> Iterator[str]:
        if PASSWORD_IN_URL.search(self.address):
            yield "its address holds a password: write ${NAME} for an environment variable"
