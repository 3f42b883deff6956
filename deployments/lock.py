"""Write the lock files, requirements*.txt: every package pinned by version and hash, no index named."""

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
    command = [*COMPILE, "--extra", "dev", "pyproject.toml", "-o", "requirements.txt"]
    subprocess.run(command, cwd=ROOT, env=environ, check=True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for peers in sorted(ROOT.glob("tests/bench/peers/*.in")):
        command = [*COMPILE, *_omitted(peers), str(peers), "-o", str(peers.with_suffix(".txt"))]
        subprocess.run(command, cwd=ROOT, env=environ, check=True)
    command = [*COMPILE, "--constraint", "requirements.txt", "-", "-o", "requirements-service.txt"]
    packages = "\n".join(extras["service"])
    subprocess.run(command, cwd=ROOT, env=environ, check=True, input=packages, text=True)


def _omitted(peers: Path) -> list[str]:
    """uv's options to omit packages that are not needed: setuptools, and `xgboost` beside `xgboost-cpu`."""
    cuda = ["xgboost", "nvidia-nccl-cu12", "nvidia-nccl-cu13"] if "xgboost-cpu" in peers.read_text() else []
    return [word for name in ("setuptools", *cuda) for word in ("--no-emit-package", name)]


if __name__ == "__main__":
    main()
