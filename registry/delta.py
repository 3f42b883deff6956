"""Delta tables in the store: their addresses, and how one is made when several writers are the first."""

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction

from contracts.core.errors import Conflict
from registry import layout
from registry.store import Store

METADATA_KEY = "perennial"  # of a commit's metadata; and the transaction's id, which makes appends conflict
TABLE_PROPERTIES = {"delta.logRetentionDuration": "interval 36500 days",
                    "delta.enableExpiredLogCleanup": "false"}
MAX_ATTEMPTS = 20  # after which a writer that other writers are always ahead of gives up


def open_table(store: Store, table: str, version: int | None = None) -> DeltaTable:
    """A table, by default its newest version; raises TableNotFoundError."""
    return DeltaTable(f"{store.address}/{table}", version, delta_options(store.address))


def create_table(store: Store, table: str, rows: pa.Table) -> DeltaTable:
    """The first version, without rows, of a table for rows like these, which others may make as well.

    Of several writers that make a table at once delta-rs lets more than one succeed, and their rows are
    there twice: the first commit is made in a folder aside and put into the store if none is there.
    """
    log = layout.first_commit(table)
    with TemporaryDirectory() as folder:
        DeltaTable.create(f"{folder}/{table}", _delta_schema(rows.schema), configuration=TABLE_PROPERTIES)
        with suppress(Conflict):
            store.create(log, Path(folder, log).read_bytes())
    return open_table(store, table, 0)


def _delta_schema(schema: pa.Schema) -> pa.Schema:
    """A schema with the only unit of times that Delta Lake knows."""
    return pa.schema([field.with_type(pa.timestamp("us", field.type.tz))
                      if pa.types.is_timestamp(field.type) else field for field in schema])


def transaction(version: int, **metadata: str) -> CommitProperties:
    """Properties with which of two writers that make this version of a table only one succeeds."""
    return CommitProperties(custom_metadata=metadata, app_transactions=[Transaction(METADATA_KEY, version)])


def delta_options(address: str) -> dict[str, str] | None:
    """delta-rs's options; keys and region it reads from the environment, as boto3 does."""
    if not address.startswith("s3://"):
        return None
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    options = {"aws_conditional_put": "etag", "aws_allow_http": str(endpoint.startswith("http://")).lower()}
    return options | ({"aws_endpoint_url": endpoint} if endpoint else {})
