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
from typing import Any

import docker
import requests
import yaml
from docker.errors import APIError, BuildError, ImageNotFound, NotFound
from docker.errors import DockerException as DockerException
from docker.models.images import Image

from contracts.core.digests import digest_of
from contracts.core.errors import PerennialError, ReleaseFailed, Unavailable
from registry import settings

ROOT = Path(__file__).parent.parent
LOCK, RECIPE = ROOT / "requirements-service.txt", Path(__file__).parent / "runtime.Dockerfile"
HOME, PORT, USER = "bento", 3000, "10001:10001"
LONG_AGO = "1970-01-01T00:00:00Z"  # of every image: the same version is the same bytes, whenever it is built
PATH = "/opt/perennial/bin:/usr/local/bin:/usr/bin:/bin"

# No program is started for it but a shell: a Python would
# take a tenth of a second of the replica's core each time.
HEALTH = (r"exec 3<>/dev/tcp/127.0.0.1/3000 && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && "
          r'read -r _ said _ <&3 && [ "$said" = 200 ]')
SECOND = 10**9  # docker counts nanoseconds

# The last part of an image's name, as docker's reference grammar has it.
REPOSITORY = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"


@dataclass(frozen=True)
class Images:
    """Where images are made and kept: `address` is a container
    registry and a prefix in it, `base` a named image."""

    address: str
    base: str = settings.BASE_IMAGE
    network: str | None = None

    def repository(self, name: str) -> str:
        """Where images of that name are kept; ReleaseFailed where docker takes no such name."""
        if not re.fullmatch(REPOSITORY, name):
            raise ReleaseFailed(f"{name!r} can't name an image: docker takes a-z, 0-9, and single _, . or - "
                                f"between them; rename the contract, or unset PERENNIAL_IMAGES to serve it "
                                f"as processes")
        return f"{self.address}/{name}"


def configured() -> Images | None:
    """What PERENNIAL_IMAGES, PERENNIAL_BASE and PERENNIAL_BUILD_NETWORK
    say; None where versions ship without an image."""
    address = settings.images_address()
    return Images(address, settings.base_image(), settings.build_network()) if address else None



def required() -> Images:
    """The same; raises PerennialError where they are not configured."""
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
    """The image with the locked packages: here already, or
    the registry's, or built; the same for every version."""
    client, base = engine(), _base(images)
    name = images.repository("runtime")
    tag = digest_of({"base": base.id, "lock": LOCK.read_text(), "recipe": RECIPE.read_text()})[:16]
    try:
        return client.images.get(f"{name}:{tag}")
    except ImageNotFound:
        pass
    try:
        return client.images.pull(name, tag=tag)
    except (APIError, NotFound):  # nobody has built it yet; or the registry is away, which the push will say
        built = _built(images, base, f"{name}:{tag}")
        push(images, built, "runtime", tag)
        return built


def _base(images: Images) -> Image:
    client = engine()
    try:
        return client.images.get(images.base)
    except ImageNotFound:
        with _said(f"the base image {images.base} is not here and can't be pulled; set PERENNIAL_BASE"):
            return client.images.pull(images.base)


def _built(images: Images, base: Image, name: str) -> Image:
    index = {key: os.environ[key] for key in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if key in os.environ}
    context = _tar({"Dockerfile": RECIPE.read_bytes(), LOCK.name: LOCK.read_bytes()})
    try:
        return engine().images.build(fileobj=io.BytesIO(context), custom_context=True, tag=name,
                                     network_mode=images.network, rm=True, forcerm=True,
                                     buildargs={"BASE": base.id} | index)[0]
    except BuildError as error:
        said = "".join(part.get("stream", "") for part in error.build_log)
        raise ReleaseFailed(f"the runtime image on {images.base} was not built: {error.msg}; a build without "
                            f"network needs PERENNIAL_BUILD_NETWORK=host\n{said[-2000:]}") from None


def build(images: Images, bento: Path, labels: Mapping[str, str]) -> Image:
    """The image of a bento: one small layer on the runtime.
    The same bento gives the same image, byte for byte."""
    under = runtime(images)
    layer = _tar(_files(bento))
    config = json.dumps(_config(images, under, layer, bento, labels), sort_keys=True).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    # The runtime's layers need no file: the engine asks for those only that it does not hold.
    layers = [f"{index}/layer.tar" for index in range(len(under.attrs["RootFS"]["Layers"]) + 1)]
    index = json.dumps([{"Config": name, "RepoTags": None, "Layers": layers}]).encode()
    with _said("the engine does not take the image of the version"):
        return engine().images.load(_tar({"manifest.json": index, name: config, layers[-1]: layer}))[0]


def _config(images: Images, under: Image, layer: bytes, bento: Path,
            labels: Mapping[str, str]) -> dict[str, Any]:
    facts, base = under.attrs, _base(images).attrs
    inherited = [one for one in base["Config"].get("Env") or () if not one.startswith(("PATH=", "PIP_"))]
    own = [f"{one['name']}={one['value']}"
           for one in yaml.safe_load((bento / "bento.yaml").read_text())["envs"]]
    return {
        "architecture": facts["Architecture"], "os": facts["Os"], "created": LONG_AGO, "config": {
            "User": USER, "WorkingDir": "/tmp", "ExposedPorts": {f"{PORT}/tcp": {}}, "StopSignal": "SIGTERM",
            "Env": [f"PATH={PATH}", "BENTOML_HOME=/tmp/bentoml", *inherited, *own],
            "Cmd": ["bentoml", "serve", f"/{HOME}", "--host", "0.0.0.0", "--port", str(PORT)],
            "Healthcheck": {"Test": ["CMD", "bash", "-c", HEALTH], "Interval": 5 * SECOND,
                            "Timeout": 3 * SECOND, "StartPeriod": 30 * SECOND, "Retries": 3},
            "Labels": dict(labels)
            | {"org.opencontainers.image.base.name": images.base,
               "org.opencontainers.image.base.digest": (base["RepoDigests"]
                                                        or [base["Id"]])[0].split("@")[-1]}},
        "rootfs": {"type": "layers",
                   "diff_ids": [*facts["RootFS"]["Layers"], f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [*({"created": LONG_AGO, "created_by": "runtime.Dockerfile"}
                      for _ in facts["RootFS"]["Layers"]),
                    {"created": LONG_AGO, "created_by": f"bento {bento.name}"}]}


def _files(bento: Path) -> dict[str, bytes]:
    """What an image holds of a bento: no build recipes, no
    time of making, no copy of the lock in its description."""
    found = {f"{HOME}/{path.relative_to(bento).as_posix()}": path.read_bytes()
             for path in sorted(bento.rglob("*")) if path.is_file() and "__pycache__" not in path.parts
             and path.relative_to(bento).parts[0] != "env"}
    described = yaml.safe_load(found[f"{HOME}/bento.yaml"])
    described |= {"creation_time": LONG_AGO, "image": described["image"] | {"python_requirements": ""}}
    return found | {f"{HOME}/bento.yaml": yaml.safe_dump(described).encode()}


def _tar(files: Mapping[str, bytes]) -> bytes:
    """The files in an archive that depends on nothing but their names and bytes."""
    held = io.BytesIO()
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    with tarfile.open(fileobj=held, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(folders | set(files)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = (tarfile.REGTYPE, 0o644) if name in files else (tarfile.DIRTYPE, 0o755)
            entry.size = len(files.get(name, b""))
            archive.addfile(entry, io.BytesIO(files.get(name, b"")))
    return held.getvalue()


def push(images: Images, image: Image, name: str, label: str) -> str:
    """Push under a tag for people; gives the reference by digest
    that the registry itself states, for everything else."""
    repository = images.repository(name)
    with _said(f"{repository}:{label} was not pushed; is the container registry up, and are you logged in? "
               "The champion goes on; then run the command again"):
        image.tag(repository, tag=label)
        parts = list(engine().images.push(repository, tag=label, stream=True, decode=True))
        if errors := [part["error"] for part in parts if "error" in part]:
            raise DockerException("; ".join(errors))
        sent = next(part["aux"]["Digest"] for part in parts if "Digest" in part.get("aux", {}))
        held = engine().images.get_registry_data(f"{repository}:{label}").id
    if held != sent:
        raise ReleaseFailed(f"{repository}:{label} holds {held}, but {sent} was pushed: somebody else writes "
                            f"this name; look there, then run the command again")
    return f"{repository}@{held}"


def present(reference: str) -> Image:
    """The image of a reference by digest, from this engine or else from its registry."""
    client = engine()
    try:
        return client.images.get(reference)
    except ImageNotFound:
        with _said(f"{reference} is not on this engine and can't be pulled"):
            return client.images.pull(reference)


@contextmanager
def _said(trouble: str) -> Iterator[None]:
    try:
        yield
    except (DockerException, requests.RequestException) as error:
        raise ReleaseFailed(f"{trouble} ({str(error).strip()})") from None
