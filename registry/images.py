"""Build, push, find and delete the container images of versions."""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import docker
import requests
import yaml
from docker.errors import APIError, BuildError, ImageNotFound, NotFound
from docker.errors import DockerException as DockerException
from docker.models.images import Image

from contracts.core.digests import JsonObject, digest_of
from contracts.core.errors import PerennialError, ReleaseFailed, Unavailable
from registry import settings

ROOT = Path(__file__).parent.parent
LOCK, RECIPE = ROOT / "requirements-service.txt", Path(__file__).parent / "runtime.Dockerfile"
HOME, PORT, USER = "bento", 3000, "10001:10001"
EPOCH = "1970-01-01T00:00:00Z"  # of every image, so that a version gives the same bytes whenever it is built
PATH = "/opt/perennial/bin:/usr/local/bin:/usr/bin:/bin"

# In the shell alone: a Python would take a tenth of a second of the replica's core each time.
HEALTH = (r"exec 3<>/dev/tcp/127.0.0.1/3000 && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && "
          r'read -r _ status _ <&3 && [ "$status" = 200 ]')
SECOND = 10**9  # docker counts nanoseconds

# The last part of an image's name, as docker's reference grammar has it.
REPOSITORY = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"


@dataclass(frozen=True)
class Images:
    """Where images are pushed, `address` (a container registry and a prefix in it); the image
    under their runtime, `base_image`; and docker's `network` for builds."""

    address: str
    base_image: str = settings.BASE_IMAGE
    network: str | None = None

    def repository(self, name: str) -> str:
        """Where images of that name are kept; ReleaseFailed where docker takes no such name."""
        if not re.fullmatch(REPOSITORY, name):
            raise ReleaseFailed(f"{name!r} can't name an image: docker takes a-z, 0-9, and single _, . or - "
                                f"between them; rename the contract, or unset PERENNIAL_IMAGES to serve it "
                                f"as processes")
        return f"{self.address}/{name}"


def configured() -> Images | None:
    """The Images of PERENNIAL_IMAGES, PERENNIAL_BASE and PERENNIAL_BUILD_NETWORK;
    None where versions ship without an image."""
    address = settings.images_address()
    return Images(address, settings.base_image(), settings.build_network()) if address else None


def required() -> Images:
    """The configured Images; raises PerennialError where they are not configured."""
    if images := configured():
        return images
    raise PerennialError(f"{settings.IMAGES} is not set, so images have nowhere to go; set it to a "
                         f"registry's address, as 127.0.0.1:5000")


def engine() -> docker.DockerClient:
    """The engine at DOCKER_HOST, with docker's own configuration and credentials."""
    return _engine(os.environ.get("DOCKER_HOST", "docker's usual socket"))


@cache
def _engine(where: str) -> docker.DockerClient:
    try:
        return docker.from_env(timeout=120)
    except DockerException as error:
        raise Unavailable(f"no container engine answers at {where}; start it, or unset PERENNIAL_IMAGES to "
                          f"serve from processes ({error})") from None


def runtime(images: Images) -> Image:
    """The image with the locked packages, which all versions share:
    from this engine, pulled from the registry, or built and pushed."""
    client, base_image = engine(), _base_image(images)
    name = images.repository("runtime")
    tag = digest_of({"base": base_image.id, "lock": LOCK.read_text(), "recipe": RECIPE.read_text()})[:16]
    try:
        return client.images.get(f"{name}:{tag}")
    except ImageNotFound:
        pass
    try:
        return client.images.pull(name, tag=tag)
    except (APIError, NotFound):  # not built yet; or the registry is down, and the push fails too
        image = _build_runtime(images, base_image, f"{name}:{tag}")
        push(images, image, "runtime", tag)
        return image


def _base_image(images: Images) -> Image:
    client = engine()
    try:
        return client.images.get(images.base_image)
    except ImageNotFound:
        with _docker_errors(f"the base image {images.base_image} is not here and can't be pulled; set "
                            f"PERENNIAL_BASE"):
            return client.images.pull(images.base_image)


def _build_runtime(images: Images, base_image: Image, name: str) -> Image:
    index = {key: os.environ[key] for key in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if key in os.environ}
    context = _tar({"Dockerfile": RECIPE.read_bytes(), LOCK.name: LOCK.read_bytes()})
    try:
        return engine().images.build(fileobj=io.BytesIO(context), custom_context=True, tag=name,
                                     network_mode=images.network, rm=True, forcerm=True,
                                     buildargs={"BASE": base_image.id} | index)[0]
    except BuildError as error:
        output = "".join(part.get("stream", "") for part in error.build_log)
        raise ReleaseFailed(f"the runtime image on {images.base_image} was not built: {error.msg}; a build "
                            f"without network needs PERENNIAL_BUILD_NETWORK=host\n{output[-2000:]}") from None


def build(images: Images, bento: Path, labels: Mapping[str, str]) -> Image:
    """The image of a bento: one small layer on the runtime.
    The same bento gives the same image, byte for byte."""
    runtime_image = runtime(images)
    layer = _tar(_bento_files(bento))
    config = json.dumps(_config(images, runtime_image, layer, bento, labels), sort_keys=True).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    # The runtime's layers need no file: the engine asks only for those that it does not have.
    layers = [f"{index}/layer.tar" for index in range(len(runtime_image.attrs["RootFS"]["Layers"]) + 1)]
    index = json.dumps([{"Config": name, "RepoTags": None, "Layers": layers}]).encode()
    with _docker_errors("the engine does not take the image of the version"):
        return engine().images.load(_tar({"manifest.json": index, name: config, layers[-1]: layer}))[0]


def _config(images: Images, runtime_image: Image, layer: bytes, bento: Path,
            labels: Mapping[str, str]) -> JsonObject:
    facts, base_image = runtime_image.attrs, _base_image(images).attrs
    inherited_env = [variable for variable in base_image["Config"].get("Env") or ()
                     if not variable.startswith(("PATH=", "PIP_"))]
    bento_env = [f"{variable['name']}={variable['value']}"
                 for variable in yaml.safe_load((bento / "bento.yaml").read_text())["envs"]]
    return {
        "architecture": facts["Architecture"], "os": facts["Os"], "created": EPOCH, "config": {
            "User": USER, "WorkingDir": "/tmp", "ExposedPorts": {f"{PORT}/tcp": {}}, "StopSignal": "SIGTERM",
            "Env": [f"PATH={PATH}", "BENTOML_HOME=/tmp/bentoml", *inherited_env, *bento_env],
            "Cmd": ["bentoml", "serve", f"/{HOME}", "--host", "0.0.0.0", "--port", str(PORT)],
            "Healthcheck": {"Test": ["CMD", "bash", "-c", HEALTH], "Interval": 5 * SECOND,
                            "Timeout": 3 * SECOND, "StartPeriod": 30 * SECOND, "Retries": 3},
            "Labels": dict(labels)
            | {"org.opencontainers.image.base.name": images.base_image,
               "org.opencontainers.image.base.digest": (base_image["RepoDigests"]
                                                        or [base_image["Id"]])[0].split("@")[-1]}},
        "rootfs": {"type": "layers",
                   "diff_ids": [*facts["RootFS"]["Layers"], f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [*({"created": EPOCH, "created_by": "runtime.Dockerfile"}
                      for _ in facts["RootFS"]["Layers"]),
                    {"created": EPOCH, "created_by": f"bento {bento.name}"}]}


def _bento_files(bento: Path) -> dict[str, bytes]:
    """The bento's files for an image: without build recipes, its
    creation time, and the copy of the lock in its description."""
    files = {f"{HOME}/{path.relative_to(bento).as_posix()}": path.read_bytes()
             for path in sorted(bento.rglob("*")) if path.is_file() and "__pycache__" not in path.parts
             and path.relative_to(bento).parts[0] != "env"}
    description = yaml.safe_load(files[f"{HOME}/bento.yaml"])
    description |= {"creation_time": EPOCH, "image": description["image"] | {"python_requirements": ""}}
    return files | {f"{HOME}/bento.yaml": yaml.safe_dump(description).encode()}


def _tar(files: Mapping[str, bytes]) -> bytes:
    """The files as an archive whose bytes depend on their names and contents alone."""
    stored = io.BytesIO()
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    with tarfile.open(fileobj=stored, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(folders | set(files)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = (tarfile.REGTYPE, 0o644) if name in files else (tarfile.DIRTYPE, 0o755)
            entry.size = len(files.get(name, b""))
            archive.addfile(entry, io.BytesIO(files.get(name, b"")))
    return stored.getvalue()


def push(images: Images, image: Image, name: str, label: str) -> str:
    """Push under a tag, for people; returns the reference by
    the digest that the registry states, for everything else."""
    repository = images.repository(name)
    with _docker_errors(f"{repository}:{label} was not pushed; is the container registry up, and are you "
                        f"logged in? The champion goes on; then run the command again"):
        image.tag(repository, tag=label)
        parts = list(engine().images.push(repository, tag=label, stream=True, decode=True))
        if errors := [part["error"] for part in parts if "error" in part]:
            raise DockerException("; ".join(errors))
        sent = next(part["aux"]["Digest"] for part in parts if "Digest" in part.get("aux", {}))
        stored = engine().images.get_registry_data(f"{repository}:{label}").id
    if stored != sent:
        raise ReleaseFailed(f"{repository}:{label} holds {stored}, but {sent} was pushed: somebody else "
                            f"writes this name; look there, then run the command again")
    return f"{repository}@{stored}"


def present(reference: str) -> Image:
    """The image of a reference by digest, from this engine or else from its registry."""
    client = engine()
    try:
        return client.images.get(reference)
    except ImageNotFound:
        with _docker_errors(f"{reference} is not on this engine and can't be pulled"):
            return client.images.pull(reference)


@contextmanager
def _docker_errors(trouble: str) -> Iterator[None]:
    """Raise errors of docker and of its HTTP client as ReleaseFailed: `trouble`, and what they say."""
    try:
        yield
    except (DockerException, requests.RequestException) as error:
        raise ReleaseFailed(f"{trouble} ({str(error).strip()})") from None
