"""Package a version as a BentoML bento."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from contracts.core.dependencies import imported_modules
from contracts.core.errors import ReleaseFailed
from registry import models
from registry.context import ROOT, ModelContext

ENVIRONMENT = {"OTEL_SDK_DISABLED": "true", "OMP_NUM_THREADS": "1", "WHYLOGS_NO_ANALYTICS": "True",
               "BENTOML_DO_NOT_TRACK": "True"}


def build_bento(context: ModelContext, version: str) -> Path:
    """The bento of a version, built once: the model's files and the code that serves them."""
    home = context.run / "bentoml"
    bento = home / "bentos" / context.name / version[:16]
    if (bento / "bento.yaml").exists():
        return bento
    shutil.rmtree(bento, ignore_errors=True)  # left by a release before 0.1.0 that was killed while building
    bento.parent.mkdir(parents=True, exist_ok=True)
    # Staged outside of `.perennial`, as BentoML reads no hidden path;
    # built on the run folder's file system, to be renamed.
    with (tempfile.TemporaryDirectory() as folder,
          tempfile.TemporaryDirectory(dir=home, prefix="building-") as bento_home):
        stage = _stage(context, version, Path(folder))
        command = [sys.executable, "-m", "bentoml", "build", "--version", version[:16], str(stage)]
        completed = subprocess.run(command, cwd=stage, capture_output=True, text=True, check=False,
                               env=os.environ | ENVIRONMENT | {"BENTOML_HOME": bento_home})
        if completed.returncode:
            raise ReleaseFailed(f"{context.name}: the bento of {version[:12]} was not "
                                f"built:\n{completed.stdout}{completed.stderr}")
        try:
            Path(bento_home, "bentos", context.name, version[:16]).rename(bento)
        except OSError:  # another process has built the same
            if not (bento / "bento.yaml").exists():
                raise
    return bento


def _stage(context: ModelContext, version: str, folder: Path) -> Path:
    """Fill the build context: the modules that the service and the contract import, and the model's files."""
    for name, file in imported_modules("service.bento", context.contract.module).items():
        target = (folder / name.replace(".", "/") / file.name if file.name == "__init__.py"
              else folder / f"{name.replace('.', '/')}.py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    files = models.fetch(context.store, context.name, version, context.run / "models")
    shutil.copytree(files, folder / "model")
    manifest = json.loads((files / "manifest.json").read_bytes())
    manifest_with_names = manifest | {"version": version, "module": context.contract.module}
    (folder / "model" / "manifest.json").write_text(json.dumps(manifest_with_names))
    shutil.copy(ROOT / "requirements-service.txt", folder)
    (folder / "bentofile.yaml").write_text(yaml.safe_dump({
        "service": "service.bento:service", "name": context.name, "include": ["*.py", "model/"],
        "labels": {"model": context.name, "version": version[:63], "data": manifest["data"]["digest"][:63]},
        "python": {"requirements_txt": "requirements-service.txt", "lock_packages": False},
        "envs": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
    }))
    return folder
