"""What changed between two contracts, and which changes break callers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]  # what `Contract.describe()` gives


@dataclass(frozen=True)
class Change:
    """One difference between two contracts, and whether it breaks callers."""

    path: str
    old: Any
    new: Any
    breaks: str | None


def diff_contracts(old: Facts, new: Facts) -> list[Change]:
    """What changed between two `Contract.describe()`s, breaking changes first."""
    changes = [
        Change(path, before, after, _breaks(path, before, after, old, new))
        for path, before, after in _differences(old, new, "")
    ]
    return sorted(changes, key=lambda change: (change.breaks is None, change.path))


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def _breaks(path: str, before: Any, after: Any, old: Facts, new: Facts) -> str | None:
    """Why a caller who did nothing would notice this change, if they would."""
    if path == "label.classes":
        return "answers name other classes"
    if path == "request":
        added = [name for name in after if name not in before and not new["columns"][name]["nullable"]]
        return f"callers must now send {', '.join(added)}" if added else None
    head, _, rest = path.partition(".")
    name, _, fact = rest.partition(".")
    if head != "columns" or name not in new["request"] or name not in old["request"]:
        return None
    if fact in ("type", "unit"):
        return f"callers send {name} as {before}, not {after}"
    if fact == "nullable" and not after:
        return f"callers may no longer leave {name} out"
    if fact.startswith("rules") and _narrower(fact, before, after):
        return f"values of {name} that passed are refused"
    return None


def _narrower(fact: str, before: Any, after: Any) -> bool:
    if after is None:
        return False
    if before is None:
        return True
    bound = fact.rpartition(".")[2]
    if bound.startswith("min"):
        return bool(after > before)
    if bound.startswith("max"):
        return bool(after < before)
    if bound == "allowed_values":
        return not set(before) <= set(after)
    return True
