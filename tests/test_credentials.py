"""Credentials of sources: refused in a contract, put in when read, and shown nowhere."""

import logging
import traceback
from dataclasses import replace
from datetime import datetime

import pytest

from contracts.core.errors import ContractError, PerennialError, SourceFailed, Unavailable
from contracts.core.sources import DeltaSource, ParquetFiles, SqlQuery
from contracts.pumps import contract as pumps
from deployments.processes import available_port
from registry.credentials import Credentials
from registry.sources import read_source

START, END = datetime(2024, 1, 3), datetime(2024, 1, 6)
QUERY = "SELECT * FROM readings WHERE measured_at >= :start AND measured_at < :end"


@pytest.mark.parametrize("url", [
    "postgresql://me:secret@host/db", "postgresql://me:pa/ss@host/db", "postgresql://me:a@b@host/db",
    "postgresql://me:${PART}rest@host/db", "postgresql://host/db?password=secret",
    "postgresql://host/db?user=me&sslpassword=secret",
    "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret"])
def test_a_password_in_an_address_is_refused(url):
    for source, what in ((SqlQuery(QUERY, url), "url"), (DeltaSource(url), "address")):
        with pytest.raises(ContractError, match=rf"its {what} holds a password: write \$") as raised:
            replace(pumps, source=source)
        assert "secret" not in str(raised.value).replace("secret block", "")


def test_a_password_in_a_pattern_is_refused():
    with pytest.raises(ContractError, match="its pattern holds a password: drop it"):
        replace(pumps, source=ParquetFiles("s3://key:secret@bucket/%Y.parquet"))


@pytest.mark.parametrize("url", [
    "postgresql://me:${PASSWORD}@host:5432/db", "postgresql://me@host:5432/db", "sqlite:///file.db",
    "postgresql://host/db?password=${PASSWORD}&sslmode=require", "${URL}", "prefect:orders-db"])
def test_an_address_without_one_is_taken(url):
    assert replace(pumps, source=SqlQuery(QUERY, url)).source.url == url


def test_an_address_is_expanded_when_it_is_read_and_masked_in_texts(monkeypatch):
    monkeypatch.setenv("PASSWORD", "p%40ss")
    credentials = Credentials({"db": "postgresql://me:s3cret@host/db"}.__getitem__)
    assert credentials.expanded("postgresql://me:${PASSWORD}@host/db") == "postgresql://me:p%40ss@host/db"
    assert credentials.masked("refused: p%40ss,\n or p@ss") == "refused: ***, or ***"
    assert credentials.expanded("prefect:db") == "postgresql://me:s3cret@host/db"
    assert credentials.masked("s3cret at http://else:x@y@host?token=t") == "*** at http://else:***@host?token=***"


def test_what_is_not_there_is_named(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    credentials = Credentials({}.__getitem__)
    with pytest.raises(PerennialError, match=r"names \$\{NOWHERE\}, which is not set: set it"):
        credentials.expanded("postgresql://me:${NOWHERE}@host/db")
    with pytest.raises(SourceFailed, match="secret block 'nowhere' can't be read: KeyError"):
        credentials.expanded("prefect:nowhere")


def fail_with_an_address(start: datetime, end: datetime) -> None:
    raise RuntimeError("could not connect to postgresql://me:s3cret@host/db")


@pytest.mark.parametrize("url", [
    "postgresql+psycopg://me:s3cret@127.0.0.1:{port}/db", "postgresql+psycopg://me:a/s3cret@127.0.0.1:{port}/db",
    "postgresql+psycopg://127.0.0.1:{port}/db?password=s3cret", "postgresql+psycopg://me:s3cret@host:port/db",
    "nosuch://me:s3cret@host/db", "me:s3cret@host", None])
def test_no_error_shows_a_credential(url, caplog):
    """Neither its message nor the traceback that a log would hold."""
    source = SqlQuery(QUERY, "prefect:db") if url else fail_with_an_address
    secret = {"db": (url or "").format(port=available_port(5999))}.__getitem__
    with pytest.raises((SourceFailed, Unavailable)) as raised:
        read_source(replace(pumps, source=source), START, END, secret)
    logging.getLogger("perennial.test").error("failed", exc_info=raised.value)
    shown = "".join(traceback.format_exception(raised.value)) + caplog.text
    assert "s3cret" not in shown and "\n" not in str(raised.value)


def test_an_error_without_a_credential_is_chained():
    def source(start: datetime, end: datetime) -> None:
        raise ValueError("no such column")

    with pytest.raises(SourceFailed, match=r"the source source failed .* no such column; corr") as raised:
        read_source(replace(pumps, source=source), START, END, str)
    assert isinstance(raised.value.__cause__, ValueError)
