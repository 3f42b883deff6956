"""Where a window's predictions meet their labels: DuckDB, in bounded memory, with a folder for the rest."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.core.errors import PerennialError
from registry import settings

FOLDER, LOCK = "spill", ".lock"
UNLOCKED = "."  # before the name of a folder whose process does not hold its lock yet; it is empty
FILE_ROWS = 500_000
THREAD_MB = 128  # of DuckDB's memory, that each of its threads needs at least


# What is raised where DuckDB's memory does not suffice; while rows are streamed it comes through Arrow.
MEMORY_FAULTS = (duckdb.OutOfMemoryException, pa.ArrowException, OSError)


class Spill:
    """A DuckDB connection, and tables in Parquet files of a folder."""

    def __init__(self, folder: Path, memory_mb: int):
        self.folder, self.memory_mb = folder, memory_mb
        threads = max(min(os.cpu_count() or 1, memory_mb // THREAD_MB), 1)
        self.connection = duckdb.connect(config={
            "memory_limit": f"{memory_mb}MB", "threads": threads,
            "temp_directory": str(folder / "duckdb"), "preserve_insertion_order": False,
            "autoinstall_known_extensions": False})

    def table(self, name: str) -> "SpilledTable":
        return SpilledTable(self, name)


class SpilledTable:
    """Rows in Parquet files of at least FILE_ROWS, and the newest in memory."""

    def __init__(self, spill: Spill, name: str):
        self._folder, self._files, self._waiting = spill.folder / name, 0, list[pa.Table]()
        self.rows, self.size_mb = 0, 0.0
        self._folder.mkdir()

    def add(self, rows: pa.Table) -> None:
        if len(rows):
            self.rows, self.size_mb = self.rows + len(rows), self.size_mb + rows.nbytes / 1e6
            self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= FILE_ROWS:
            self.write()

    def write(self) -> None:
        """Write what is in memory."""
        if self._waiting:
            pq.write_table(pa.concat_tables(self._waiting), self._folder / f"{self._files:06d}.parquet",
                           compression="lz4", use_dictionary=False)
            self._files, self._waiting = self._files + 1, []

    @property
    def sql(self) -> str:
        """The table, of one row or more, in a FROM clause; what is in memory is written first."""
        self.write()
        place = str(self._folder / "*.parquet").replace("'", "''")
        return f"read_parquet('{place}')"


@contextmanager
def spill(run: Path) -> Iterator[Spill]:
    """A connection with an empty folder under the run folder, removed afterwards, and with it those of
    processes that were killed. Raises PerennialError where the memory does not suffice."""
    parent, memory_mb = run / FOLDER, settings.join_memory_mb()
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    unlocked = Path(mkdtemp(prefix=UNLOCKED, dir=parent))
    folder = parent / unlocked.name.removeprefix(UNLOCKED)
    try:
        with open(unlocked / LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked.rename(folder)
            opened = Spill(folder, memory_mb)
            try:
                yield opened
            finally:
                opened.connection.close()
    except MEMORY_FAULTS as error:
        if not is_out_of_memory(error):
            raise
        raise PerennialError(f"{memory_mb} MB don't suffice to join a window's predictions with their "
                             f"labels; set {settings.JOIN_MEMORY} to more") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_out_of_memory(error: Exception) -> bool:
    """Whether one of MEMORY_FAULTS is of DuckDB's memory."""
    return isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory Error" in str(error)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders whose process no longer holds their lock."""
    for folder in parent.glob(f"[!{UNLOCKED}]*"):
        with suppress(OSError), open(folder / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
