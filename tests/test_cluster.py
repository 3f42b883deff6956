"""The same train flow on a Dask cluster: two worker processes on this machine hold the rows between them."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from contracts.core.challenger_policy import Challenger
from contracts.core.classification import classification_metrics
from contracts.core.errors import PerennialError, Unavailable
from flows.ingest import ingest_batch
from flows.training import cluster, judging, version, vocabulary
from flows.training.cluster import dask_client, distribute
from flows.training.dataset import read_training_set
from flows.training.version import fit_version
from flows.training.vocabulary import CategoryVocabulary
from registry import data, models
from registry.context import open_model
from registry.settings import DASK

pytestmark = pytest.mark.filterwarnings("ignore")  # Dask's and its own dependencies' are not ours to mend
START, WEEKS = datetime(2013, 1, 1), 5


@pytest.fixture(scope="module")
def scheduler():
    """Its address."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                      worker_dashboard_address=None) as here:
        yield here.scheduler_address


@pytest.fixture
def flights(addresses):
    context = open_model("flights")
    for week in range(WEEKS):
        ingest_batch(context, START + timedelta(weeks=week), START + timedelta(weeks=week + 1))
    return context


def quality(rows, contract):
    return classification_metrics(contract, *rows.newest(rows.fit(20, older=True)))


def test_two_workers_find_what_one_machine_finds(scheduler, flights, tmp_path):
    source = data.newest(flights.store, "flights")
    cut = version.judged_from(flights, source)
    here = read_training_set(flights.contract,
                             data.chunks(flights.store, source, flights.contract.training_columns),
                             source.rows, cut, tmp_path)
    with dask_client(scheduler) as client:
        there = distribute(client, flights.contract, flights.store.address, source, cut)
        assert there.workers == 2 and min(one.rows for one in there.summaries) > 5_000
        assert (there.rows, there.older) == (here.rows, here.older)
        for name, values in here.sample.items():
            np.testing.assert_array_equal(sorted(there.sample[name].astype(str)), sorted(values.astype(str)))
        model, other = there.fit(2), here.fit(2)
        assert model.vocabularies == other.vocabularies
        mine, theirs = quality(here, flights.contract), quality(there, flights.contract)
        assert mine.rows == theirs.rows > 4_000 and mine.log_loss != 0
        assert abs(mine.log_loss - theirs.log_loss) < 0.01 and abs(mine.auc - theirs.auc) < 0.02
        for challenger in (Challenger("weighted", half_life=timedelta(days=5)),
                           Challenger("alone", newest=timedelta(days=14))):
            chosen, theirs = (quality(rows.of(challenger), flights.contract) for rows in (here, there))
            assert abs(chosen.log_loss - theirs.log_loss) < 0.01 and chosen.log_loss != mine.log_loss
        history = there.rounds()
        assert 1 <= history["rounds"] <= flights.contract.rounds
        assert abs(history["stop_rows"] / (there.older * flights.contract.stop_share) - 1) < 0.05
        trained = {str(row) for row in model.matrix(here.sample)[:50]}
        assert len(trained) == 50


def test_the_address_sends_the_train_flow_there(scheduler, flights, monkeypatch):
    monkeypatch.setenv(DASK, scheduler)
    version = fit_version(flights)
    facts = models.manifest(flights.store, "flights", version)
    assert facts["workers"] == 2 and facts["rows"] == data.newest(flights.store, "flights").rows
    assert judging.judge(flights, version).passed
    monkeypatch.delenv(DASK)
    alone = fit_version(flights)
    assert "workers" not in models.manifest(flights.store, "flights", alone) and alone != version


def test_a_worker_without_rows_is_left_out(scheduler, pumps):
    source = data.newest(pumps.store, pumps.name)
    with dask_client(scheduler) as client:
        rows = distribute(client, pumps.contract, pumps.store.address, source,
                          version.judged_from(pumps, source))
        assert (rows.workers == 1 and rows.rows == source.rows
                and rows.fit(3).booster.num_boosted_rounds() == 3)


def test_no_scheduler_and_no_workers_are_told_with_the_remedy(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT", 1)
    with pytest.raises(Unavailable, match=f"no Dask scheduler answers at tcp://127.0.0.1:1: .*unset {DASK}"), dask_client("tcp://127.0.0.1:1"):
        pass
    with LocalCluster(n_workers=0, dashboard_address=None) as empty, \
            pytest.raises(Unavailable, match="no workers; start some: dask worker"), dask_client(empty.scheduler_address):  # noqa: E501
        pass


def test_a_worker_that_fails_is_told_with_the_remedy():
    from service.model import xgboost

    lost = r"a worker of tcp://x was lost, or failed, while it trained: Poll error; .*run it again"
    with pytest.raises(Unavailable, match=lost), cluster.named_worker_losses("tcp://x"):
        raise xgboost.core.XGBoostError("Ring Allreduce failed\nPoll error")


def test_a_missing_dask_is_told(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(PerennialError,
                       match=r"pip install 'perennial\[cluster\]'"), dask_client("tcp://127.0.0.1:1"):
        pass


def test_texts_of_all_are_what_one_would_have_counted(monkeypatch):
    monkeypatch.setattr(vocabulary, "RARE", 2)
    values, older = np.array(["b", "a", None, "c", "a", "b", "b", "c"],
                             object), np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)
    whole, first, second = CategoryVocabulary("x"), CategoryVocabulary("x"), CategoryVocabulary("x")
    whole.numbers(values, older)
    first.numbers(values[:3], older[:3])
    second.numbers(values[3:], older[3:])
    both = CategoryVocabulary.of_all([first, second])
    assert ([both.vocabulary(True), both.vocabulary(False)]
            == [whole.vocabulary(True), whole.vocabulary(False)] == [("a",), ("a", "b", "c")])
