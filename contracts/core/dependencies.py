"""Which of the project's own modules a module imports, found by reading their source, without running it."""

import ast
import importlib.util
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

INSTALLED = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def imported_modules(*roots: str) -> dict[str, Path]:
    """The files of these modules and of all that they import, directly or not, by dotted name; installed packages left out.

    Imports inside functions count; those under `if TYPE_CHECKING:` don't.
    """
    files: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in files or (file := own_file(name)) is None:
            continue
        files[name] = file
        waiting += [*_packages_above(name), *_imports(ast.parse(file.read_bytes()), name, file)]
    return dict(sorted(files.items()))


def own_file(name: str) -> Path | None:
    """The source file of a module, None for one that is installed, built in, or not there."""
    if "." in name and not _is_own_package(name.partition(".")[0]):  # its packages would be imported to find it
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # of a package above it; of a module without a spec
        return None
    file = Path(spec.origin).resolve() if spec and spec.origin else None
    return file if file and file.suffix == ".py" and not str(file).startswith(INSTALLED) else None


def _is_own_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    folders = (spec.submodule_search_locations or []) if spec else []
    return any(not str(Path(folder).resolve()).startswith(INSTALLED) for folder in folders)


def _packages_above(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _imports(tree: ast.AST, module: str, file: Path) -> Iterator[str]:
    """The names that may be modules: `from a import b` gives a and a.b."""
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from _executed(child)
