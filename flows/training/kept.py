"""A training set kept in a folder, for a run that goes on after the one that made it was killed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from contracts.core.contract import Contract
from contracts.core.features import Columns
from flows.training.blocks import BlockFile
from flows.training.dataset import TrainingSet
from flows.training.vocabulary import CategoryVocabulary
from registry.clock import machine_time
from service.atomic_files import write_text

INDEX, SAMPLE = "index.json", "sample.parquet"
FORGOTTEN = 24 * 3600  # seconds after which a training set that no run took up is deleted


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` once it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if machine_time().timestamp() - other.stat().st_mtime > FORGOTTEN:
            shutil.rmtree(other, ignore_errors=True)
    with TemporaryDirectory(dir=folder.parent, prefix="building-") as unfinished:
        (Path(unfinished) / "set").mkdir()
        yield Path(unfinished) / "set"
        try:
            (Path(unfinished) / "set").rename(folder)
        except OSError:  # another process has made the same
            if not has_training_set(folder):
                raise


def has_training_set(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def keep_training_set(rows: TrainingSet, folder: Path) -> None:
    """Write what is needed, beside the blocks that are there, to open the training set again."""
    pq.write_table(pa.table(dict(rows.sample)), folder / SAMPLE)
    counts = {name: vocabulary.counts() for name, vocabulary in rows.category_counts.items()}
    index = {"cut": rows.cut.isoformat(), "rows": rows.rows, "older": rows.older,
             "blocks": len(rows.block_files), "category_counts": counts}
    write_text(folder / INDEX, json.dumps(index))


def open_training_set(contract: Contract, folder: Path) -> TrainingSet:
    """The training set that is kept in a folder."""
    index = json.loads((folder / INDEX).read_text())
    counts = {name: CategoryVocabulary.from_counts(name, counts)
              for name, counts in index["category_counts"].items()}
    blocks = tuple(BlockFile(folder, len(contract.features), number) for number in range(index["blocks"]))
    return TrainingSet(contract, datetime.fromisoformat(index["cut"]), index["rows"], index["older"],
                       _sample(contract, folder), counts, blocks)


def _sample(contract: Contract, folder: Path) -> Columns:
    table = pq.read_table(folder / SAMPLE)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    times = {name for name in contract.request_columns if contract.python_type(name) is datetime}
    return {name: values.astype("datetime64[s]") if name in times else values
            for name, values in columns.items()}
