"""Write requirements.txt and requirements-service.txt: every package pinned by hash, no index named."""

import os
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMPILE = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes",
           "--no-emit-index-url", "--no-annotate"]


def main() -> None:
    environ = os.environ | {"UV_CUSTOM_COMPILE_COMMAND": "make lock",
                            "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    everything = [*COMPILE, "--extra", "dev", "pyproject.toml", "-o", "requirements.txt"]
    subprocess.run(everything, cwd=ROOT, env=environ, check=True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    peers = [*COMPILE, "--no-emit-package", "setuptools", "tests/bench/peers/drift.in", "-o", "tests/bench/peers/drift.txt"]
    subprocess.run(peers, cwd=ROOT, env=environ, check=True)
    served = [*COMPILE, "--constraint", "requirements.txt", "-", "-o", "requirements-service.txt"]
    subprocess.run(served, cwd=ROOT, env=environ, check=True, input="\n".join(extras["service"]), text=True)


if __name__ == "__main__":
    main()
