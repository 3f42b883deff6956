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
    for peers in sorted(ROOT.glob("tests/bench/peers/*.in")):
        subprocess.run([*COMPILE, *_left_out(peers), peers, "-o", peers.with_suffix(".txt")], cwd=ROOT, env=environ, check=True)
    served = [*COMPILE, "--constraint", "requirements.txt", "-", "-o", "requirements-service.txt"]
    subprocess.run(served, cwd=ROOT, env=environ, check=True, input="\n".join(extras["service"]), text=True)


def _left_out(peers: Path) -> list[str]:
    """Packages that others ask for and nobody needs: each environment has setuptools, and `xgboost-cpu` is `xgboost`."""
    cuda = ["xgboost", "nvidia-nccl-cu12", "nvidia-nccl-cu13"] if "xgboost-cpu" in peers.read_text() else []
    return [word for name in ("setuptools", *cuda) for word in ("--no-emit-package", name)]


if __name__ == "__main__":
    main()
