"""What of the project's own code a module imports, and what a function calls."""

import ast
import importlib.util
import inspect
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from contracts.core.digests import source_of

INSTALLED = tuple(str(Path(sysconfig.get_path(name)).resolve())
                  for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def imported_modules(*roots: str) -> dict[str, Path]:
    """The files of these modules and of all that they import,
    directly or not, by dotted name; installed packages left out.

    They are found by reading source, nothing is run. Imports
    inside functions count; those under `if TYPE_CHECKING:` don't.
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
    # Its packages would be imported to find it.
    if "." in name and not _is_own_package(name.partition(".")[0]):
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


def helpers_of(function: Callable[..., Any] | None) -> dict[str, str]:
    """The source of the project's functions that a function calls, directly or
    not, and the module's constants that they read (numbers, texts, and tuples,
    lists and dicts of them), by dotted name; `contracts.core` is left out."""
    sources: dict[str, str] = {}
    first = inspect.unwrap(function) if function else None
    waiting: list[Any] = [first]
    while waiting:
        caller = waiting.pop()
        if not inspect.isfunction(caller):
            continue
        for module, name, value in _globals_read(caller.__code__, caller.__globals__):
            value = inspect.unwrap(value) if callable(value) else value
            if _is_plain(value):
                sources[f"{module}.{name}"] = repr(value)
            elif ((inspect.isfunction(value) or inspect.isclass(value))
                  and _is_own(value.__module__, caller.__module__)):
                name = f"{value.__module__}.{value.__qualname__}"
                if name not in sources and value is not first:
                    sources[name] = source_of(value) or ""
                    waiting.append(value)
    return dict(sorted(sources.items()))


def _is_plain(value: Any) -> bool:
    """Whether it is data alone, so that its `repr` is the same in every process."""
    if isinstance(value, dict):
        return all(_is_plain(part) for item in value.items() for part in item)
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, bytes))


def _globals_read(code: CodeType, scope: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Module, name and value of each global that the code
    names, also as an attribute of a module of the project."""
    for name in (name for name in code.co_names if name in scope):
        value = scope[name]
        if not isinstance(value, ModuleType):
            yield scope["__name__"], name, value
        elif _is_own(value.__name__, scope["__name__"]):
            yield from ((value.__name__, attribute, vars(value)[attribute]) for attribute in code.co_names
                        if attribute in vars(value))
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals_read(inner, scope)


def _is_own(module: str, caller: str) -> bool:
    """Whether a module is the project's; of the caller's own package it is, wherever that is installed."""
    if module == "contracts.core" or module.startswith("contracts.core."):
        return False
    return module.partition(".")[0] == caller.partition(".")[0] or own_file(module) is not None
