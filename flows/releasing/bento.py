"""TODO"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from contracts.core.errors import ReleaseFailed
from registry import models
from registry.context import ROOT, ModelContext

ENVIRONMENT = {"OTEL_SDK_DISABLED": "true", "OMP_NUM_THREADS": "1", "WHYLOGS_NO_ANALYTICS": "True",
               "BENTOML_DO_NOT_TRACK": "True"}


def build_bento(memory: ModelContext, version: str) -> Path:
    """The bento of a version: service/, contracts/ and the model's files, nothing else; built once."""
    home = memory.run / "bentoml"
    bento = home / "bentos" / memory.name / version[:16]
    if (bento / "bento.yaml").exists():
        return bento
    shutil.rmtree(bento, ignore_errors=True)  # of an older perennial that was killed while it built
    bento.parent.mkdir(parents=True, exist_ok=True)
    # Staged outside of `.perennial`: BentoML reads no hidden path. Built on the run folder's file system, for the rename.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=home, prefix="building-") as beside:
        stage = _stage(memory, version, Path(folder))
        command = [sys.executable, "-m", "bentoml", "build", "--version", version[:16], str(stage)]
        built = subprocess.run(command, cwd=stage, capture_output=True, text=True, check=False,
                               env=os.environ | ENVIRONMENT | {"BENTOML_HOME": beside})
        if built.returncode:
            raise ReleaseFailed(f"{memory.name}: the bento of {version[:12]} was not built:\n{built.stdout}{built.stderr}")
        try:
            Path(beside, "bentos", memory.name, version[:16]).rename(bento)
        except OSError:  # another process was first, with the same bytes
            if not (bento / "bento.yaml").exists():
                raise
    return bento


def _stage(memory: ModelContext, version: str, folder: Path) -> Path:
    """The build context; the contract's file goes to contracts/<model>.py wherever it was kept."""
    for room in ("service", "contracts/core"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "contracts" / "__init__.py", folder / "contracts")
    shutil.copy(memory.contract.source_file, folder / "contracts" / f"{memory.name}.py")
    files = models.fetch(memory.store, memory.name, version, memory.run / "models")
    shutil.copytree(files, folder / "model")
    manifest = json.loads((files / "manifest.json").read_bytes())
    (folder / "model" / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
    shutil.copy(ROOT / "requirements-service.txt", folder)
    (folder / "bentofile.yaml").write_text(yaml.safe_dump({
        "service": "service.bento:service", "name": memory.name, "include": ["service/", "contracts/", "model/"],
        "labels": {"model": memory.name, "version": version[:63], "data": manifest["data"]["digest"][:63]},
        "python": {"requirements_txt": "requirements-service.txt", "lock_packages": False},
        "envs": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
    }))
    return folder
