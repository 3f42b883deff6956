"""What the tests stand on: a fresh store, one whole stack for all flows, versions trained once."""

import json
import os
import shutil
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from contracts.core import errors
from deployments import fleet, prefect_server, processes, replicas, stack
from flows.ingest import ingest_batch
from flows.monitoring.notifications import to_webhook
from flows.orchestration.deploying import deploy
from flows.releasing.bento import build_bento
from flows.training.judging import judge
from flows.training.version import fit_version
from registry import images
from registry.context import ModelContext, open_model
from registry.settings import ALERT_WEBHOOK, CLOCK
from tests.verdicts import with_champion

PUMPS = "pumps"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without a docker engine tests of containers are skipped, but never where CI is set."""
    if item.get_closest_marker("containers") and "CI" not in os.environ:
        try:
            images.engine().ping()
        except errors.Unavailable as error:
            pytest.skip(str(error))


@pytest.fixture
def addresses(tmp_path, monkeypatch) -> Path:
    """A store and a run folder of this test's own."""
    monkeypatch.setenv("PERENNIAL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PERENNIAL_RUN", str(tmp_path / "run"))
    monkeypatch.delenv(CLOCK, raising=False)  # which `servers`, once begun, sets for all tests that follow
    yield tmp_path
    fleet.stop_all(tmp_path / "run")


@pytest.fixture
def pumps(addresses) -> ModelContext:
    """Six weeks of the pumps' readings, ingested."""
    context = open_model(PUMPS)
    ingest_batch(context, datetime(2024, 1, 1), datetime(2024, 2, 12))
    return context


@pytest.fixture(scope="session")
def flights_home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("flights")


@pytest.fixture(scope="session")
def flights_version(flights_home) -> tuple[ModelContext, str]:
    """The flights' model on January 2013, judged, and where it is remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_STORE", str(flights_home / "store"))
        patch.setenv("PERENNIAL_RUN", str(flights_home / "run"))
        context = open_model("flights")
    ingest_batch(context, datetime(2013, 1, 1), datetime(2013, 2, 1))
    version = fit_version(context)
    judge(context, version)
    return context, version


@pytest.fixture
def january(flights_version, tmp_path, addresses) -> ModelContext:
    """January's model of the flights as champion, in a store of this test's own."""
    shutil.copytree(flights_version[0].store.folder, tmp_path / "store")
    return with_champion("flights", flights_version[1])


@pytest.fixture(scope="session")
def flights_bento(flights_version) -> Path:
    return build_bento(*flights_version)


@pytest.fixture(scope="module")
def replica(flights_version, flights_bento):
    """One replica of the flights' bento, in its own process."""
    context, version = flights_version
    started = replicas.start(flights_bento, version, 1, context.run, context.name,
                             {"PERENNIAL_PROFILES": str(context.spool), "PERENNIAL_PROFILE_SECONDS": "600"})
    try:
        fleet.wait_ready(started)
        yield started[0]
    finally:
        replicas.stop(started, context.run, context.name)


def plan_reconciler(is_planned: bool) -> None:
    """Have the reconciler run by its schedule, or only when it is called."""
    with get_client(sync_client=True) as client:
        reconciler = client.read_deployment_by_name("reconcile/reconcile").id
        (client.resume_deployment if is_planned else client.pause_deployment)(reconciler)


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """A Prefect server, its worker and Traefik, all real, for every test that runs flows. The reconciler
    runs when a test calls it: at its hour, minute 17, it would judge what a test is still sending."""
    home = tmp_path_factory.mktemp("stack")
    with pytest.MonkeyPatch.context() as patch:
        known = stack.environment(home, profile_seconds=0.3) | {CLOCK: str(home / "clock")}
        (home / "clock").write_text("2024-02-12T12:00:00+00:00")
        for name, value in known.items():
            patch.setenv(name, value)
        try:
            # Prefect was imported before.
            with temporary_settings({PREFECT_API_URL: known["PREFECT_API_URL"]}):
                up = stack.up(home)
                deploy([PUMPS])
                plan_reconciler(False)
                yield up
        finally:
            stack.down(home)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Prefect server of a module's own, without a worker."""
    home = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        # Not the usual port: tests beside this one may be about to take it.
        known = stack.environment(home) | {
            "PREFECT_API_URL": f"http://127.0.0.1:{processes.available_port(None)}/api"}
        for name, value in known.items():
            patch.setenv(name, value)
        patch.delenv(CLOCK, raising=False)
        try:
            with temporary_settings({PREFECT_API_URL: known["PREFECT_API_URL"]}):
                prefect_server.start_server(home / "run", os.environ["PREFECT_API_URL"])
                yield
        finally:
            stack.down(home)


@pytest.fixture(scope="module")
def posts(server):
    """What is posted to the webhook of alerts."""
    found = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as listener:
        Thread(target=listener.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{listener.server_port}/"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ALERT_WEBHOOK, url)
            to_webhook(url)
            yield found
        listener.shutdown()
