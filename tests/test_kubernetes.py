"""Releases to Kubernetes: the kustomization's image, the manifests, and Prefect's work pools."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock, Mock

import kubernetes_validate
import prefect
import pytest
import yaml

from contracts.core.errors import PerennialError
from deployments import load_balancer, prefect_server, routes
from deployments.kustomize import COMPONENT, PLACEHOLDER, current_image, set_image
from flows.releasing import kubernetes
from registry import images
from registry.context import open_model
from tests.conftest import PUMPS

ROOT = Path(__file__).parent.parent
MANIFESTS = ROOT / "deployments" / "kubernetes"
IMAGE = f"registry.example.org:5000/perennial/flights@sha256:{'a' * 64}"
OTHER = IMAGE.replace("a" * 64, "b" * 64)


def test_a_kustomizations_image_is_set_and_read_back(tmp_path):
    folder = tmp_path / "new" / "image"
    assert current_image(folder) is None
    for image in (IMAGE, OTHER, IMAGE):
        set_image(folder, image)
        assert current_image(folder) == image
    assert [path.name for path in folder.iterdir()] == ["kustomization.yaml"]
    name, _, digest = IMAGE.partition("@")
    assert yaml.safe_load((folder / "kustomization.yaml").read_text())["images"] == [
        {"name": PLACEHOLDER, "newName": name, "digest": digest}]


def test_setting_the_same_image_again_writes_nothing(tmp_path):
    set_image(tmp_path, IMAGE)
    before = (tmp_path / "kustomization.yaml").stat()
    set_image(tmp_path, IMAGE)
    after = (tmp_path / "kustomization.yaml").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_crash_while_writing_keeps_the_previous_image(tmp_path, monkeypatch):
    set_image(tmp_path, IMAGE)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", Mock(side_effect=OSError("power")))
        with pytest.raises(OSError, match="power"):
            set_image(tmp_path, OTHER)
    assert current_image(tmp_path) == IMAGE


@pytest.mark.parametrize("image", [
    "registry.example.org/flights", "registry.example.org/flights:1", "", IMAGE[:-1], IMAGE + "0",
    IMAGE.upper(), IMAGE.replace("sha256", "md5"), "@sha256:" + "a" * 64, f"{IMAGE}\n", f"a {IMAGE}"])
def test_an_image_without_a_digest_is_refused(tmp_path, image):
    set_image(tmp_path, IMAGE)
    with pytest.raises(PerennialError, match="digest"):
        set_image(tmp_path, image)
    assert current_image(tmp_path) == IMAGE


@pytest.mark.parametrize("change", [
    {"resources": ["../base"]}, {"kind": "Kustomization"},
    {"images": [{"name": "other", "newName": "a", "digest": "b"}]},
    {"images": [{"name": PLACEHOLDER, "newName": "a", "newTag": "1", "digest": "b"}]}])
def test_a_kustomization_written_by_a_person_is_not_overwritten(tmp_path, change):
    set_image(tmp_path, IMAGE)
    file = tmp_path / "kustomization.yaml"
    file.write_text(text := yaml.safe_dump(yaml.safe_load(file.read_text()) | change))
    with pytest.raises(PerennialError, match="folder of its own"):
        set_image(tmp_path, OTHER)
    assert file.read_text() == text
    file.write_text("")
    with pytest.raises(PerennialError):
        current_image(tmp_path)


@pytest.mark.parametrize("text", [
    "\ta: b", "- a", "images:", "images: [{newName: x}]", "images: 3", "namespace: prod"])
def test_a_release_to_a_file_written_by_a_person_fails_before_the_ledger_changes(tmp_path, addresses, text):
    ledger = MagicMock()
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(COMPONENT) + text + "\n")
    with pytest.raises(PerennialError, match="set PERENNIAL_KUSTOMIZATION to a folder of its own"):
        kubernetes.release_to_kubernetes(replace(open_model(PUMPS), ledger=ledger), "v", IMAGE, tmp_path,
                                         ledger.decide)
    ledger.decide.assert_not_called()
    ledger.promote.assert_not_called()


def rendered(folder: Path) -> list[dict]:
    """What `kubectl kustomize` renders, for the fields that ours use; with kubectl a test compares."""
    spec = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "resources", "components", "namespace", "labels", "images"}
    assert set(spec) <= known, f"this renderer does not know {set(spec) - known}"
    resources = []
    for name in spec.get("resources", ()):
        path = folder / name
        resources += rendered(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    resources = deepcopy(resources)  # YAML's aliases are shared
    components = [yaml.safe_load((folder / name / "kustomization.yaml").read_text())
                  for name in spec.get("components", ())]
    for resource in resources:
        if "namespace" in spec and resource["kind"] != "Namespace":
            resource["metadata"]["namespace"] = spec["namespace"]
        for label in spec.get("labels", ()):
            add_labels(resource, label["pairs"])
        for image in (image for part in (*components, spec) for image in part.get("images", ())):
            replace_image(resource, image)
    return resources


def add_labels(resource: dict, pairs: dict) -> None:
    resource["metadata"].setdefault("labels", {}).update(pairs)
    spec = resource.get("spec", {})
    match resource["kind"]:
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
    """All pod selectors of a policy that have matchLabels, the peers' too, as kustomize changes them all."""
    peers = [peer for rule in (*spec["ingress"], *spec["egress"])
             for peer in (*rule.get("from", ()), *rule.get("to", ()))]
    own = [spec["podSelector"], *(peer["podSelector"] for peer in peers if "podSelector" in peer)]
    return [selector for selector in own if "matchLabels" in selector]


def replace_image(resource: dict, image: dict) -> None:
    if resource["kind"] == "Deployment":
        pod = resource["spec"]["template"]["spec"]
        for container in (*pod["initContainers"], *pod["containers"]):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}@{image['digest']}"


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> Path:
    """A copy of the example overlay, with an image set."""
    home = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(MANIFESTS, home, ignore=shutil.ignore_patterns("image"))
    set_image(home / "flights" / "image", IMAGE)
    return home / "flights"


@pytest.fixture(scope="module")
def cluster(overlay) -> dict[tuple[str, str], dict]:
    return by_name(rendered(overlay))


def by_name(resources: Iterable[dict]) -> dict[tuple[str, str], dict]:
    return {(resource["kind"], resource["metadata"]["name"]): resource for resource in resources}


@pytest.fixture
def pod(cluster) -> dict:
    return cluster["Deployment", "replicas"]["spec"]["template"]["spec"]


def kubectl(folder: Path) -> subprocess.CompletedProcess:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl, which would check the tests' own renderer")
    return subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60,
                          check=False, env=os.environ | {"KUBECONFIG": os.devnull})


def test_kustomize_itself_renders_the_same(overlay, cluster):
    done = kubectl(overlay)
    assert done.returncode == 0, done.stderr
    assert by_name(yaml.safe_load_all(done.stdout)) == cluster


def test_before_the_first_release_the_overlay_does_not_build(tmp_path):
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("image"))
    done = kubectl(tmp_path / "kubernetes" / "flights")
    assert done.returncode != 0 and "image" in done.stderr


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.37"])
def test_every_manifest_is_valid_by_kubernetes_schemas(cluster, version):
    resources = [resource for resource in cluster.values()
                 if not resource["apiVersion"].startswith("traefik.io/")]
    assert {resource["kind"] for resource in resources} == {
        "Namespace", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler",
        "NetworkPolicy"}
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)
    bad = deepcopy(cluster["Deployment", "replicas"])
    bad["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, version, strict=True)


def test_every_image_is_named_by_digest_and_the_replicas_is_the_released_one(pod):
    assert [container["image"] for container in pod["containers"]] == [IMAGE]
    for container in (*pod["containers"], *pod["initContainers"]):
        assert re.fullmatch(r".+@sha256:[0-9a-f]{64}", container["image"])


def test_selectors_match_only_the_replicas_of_this_model(cluster):
    deployment = cluster["Deployment", "replicas"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "flights"
    policy = cluster["NetworkPolicy", "replicas"]["spec"]
    for selector in (deployment["selector"]["matchLabels"],
                     cluster["Service", "replicas"]["spec"]["selector"],
                     cluster["PodDisruptionBudget", "replicas"]["spec"]["selector"]["matchLabels"],
                     policy["podSelector"]["matchLabels"]):
        assert selector == labels
    assert selectors(policy) == [policy["podSelector"]]  # else Traefik's pods would need the model's label
    target = cluster["HorizontalPodAutoscaler", "replicas"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in cluster


def test_a_pod_has_no_privileges(pod):
    context = pod["securityContext"]
    assert context["runAsNonRoot"] and context["seccompProfile"]["type"] == "RuntimeDefault"
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == images.USER
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["containers"], *pod["initContainers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]}}
        assert {"requests", "limits"} <= set(container["resources"])
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_a_replica_leaves_the_endpoints_before_it_stops(pod, cluster):
    [replica] = pod["containers"]
    sleep = replica["lifecycle"]["preStop"]["sleep"]["seconds"]
    probe = replica["readinessProbe"]
    assert sleep >= 2 * probe["periodSeconds"]
    assert pod["terminationGracePeriodSeconds"] > sleep + 30  # the seconds that `fleet.drain` waits
    assert probe["httpGet"]["path"] == replica["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert replica["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert [port["containerPort"] for port in replica["ports"]] == [images.PORT]
    strategy = cluster["Deployment", "replicas"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_sidecar_reads_the_profiles_that_the_replica_writes(pod):
    [replica], [ship] = pod["containers"], pod["initContainers"]
    assert ship["restartPolicy"] == "Always"  # a native sidecar: it outlives the replica
    mounts = {container["name"]: {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
              for container in (replica, ship)}
    environment = {variable["name"]: variable["value"] for variable in replica["env"]}
    assert mounts["replica"]["profiles"] == environment["PERENNIAL_PROFILES"]
    run = re.search(r"PERENNIAL_RUN=(\S+)", (ROOT / "deployments" / "Dockerfile").read_text())[1]
    assert mounts["ship"]["profiles"] == f"{run}/profiles"
    assert ship["command"] == ["perennial", "ship", "$(MODEL)", "--every", "10"]
    assert "envFrom" not in replica  # only the sidecar gets the store's keys


def test_traefik_in_kubernetes_routes_as_our_load_balancer_does(cluster):
    """The settings are tested in test_deployments.py and test_routes.py; Traefik's CRD schemas are not."""
    expected = routes.dynamic_configuration("flights", ["http://replica"])
    router, names = expected["routers"]["flights"], ["body-limit", "strip-prefix", "retry", "retry-once"]
    middlewares = {name: resource["spec"] for (kind, name), resource in cluster.items()
                   if kind == "Middleware"}
    assert middlewares == {name: expected["middlewares"][f"flights-{name}"] for name in names}
    assert router["middlewares"] == [f"flights-{name}" for name in names]
    route = cluster["IngressRoute", "flights"]["spec"]
    [rule] = route["routes"]
    assert (rule["match"], route["entryPoints"]) == (router["rule"], router["entryPoints"])
    assert [middleware["name"] for middleware in rule["middlewares"]] == names
    [service] = rule["services"]
    assert {("Service", service["name"]), ("ServersTransport", service["serversTransport"])} <= set(cluster)
    settings = load_balancer.static_configuration(Path("run"), "", "")["serversTransport"]
    assert cluster["ServersTransport", "replicas"]["spec"] == settings


def test_deployments_use_the_process_pool_and_other_pools_have_only_known_variables():
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    pools = declared["definitions"]
    assert pools["pool"] == {"name": prefect_server.POOL}
    for deployment in declared["deployments"]:
        assert deployment["work_pool"]["name"] == prefect_server.POOL
    views = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    workers = json.loads((views / "aggregate-worker-metadata.json").read_text())
    for kind in ("docker", "kubernetes"):
        template = workers[f"prefect-{kind}"][kind]["default_base_job_configuration"]
        assert set(pools[f"{kind}_pool"]["job_variables"]) <= set(template["variables"]["properties"])
