"""Find a model's contract by name."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import contracts
from contracts.core.contract import Contract
from contracts.core.errors import ContractError, PerennialError


def load_contract(model: str) -> Contract:
    """The contract of a model: `contracts/<model>.py`, or any dotted module with a `contract` in it."""
    module = model if "." in model else f"contracts.{model}"
    if not _is_module(module):
        raise ContractError(f"no contract {model!r}: {module} does not exist; known: "
                            f"{', '.join(known_models())}")
    contract = contract_of_module(module, lambda: importlib.import_module(module))
    object.__setattr__(contract, "loaded_from", module)
    return contract


def known_models() -> list[str]:
    """The names of the contracts in contracts/: of the modules that define `contract`, even if in vain."""
    files = [path for folder in contracts.__path__ for path in Path(folder).glob("*.py")]
    return sorted(path.stem for path in files
                  if re.search(r"(?m)^contract\b.*=", path.read_text(errors="replace")))


def _is_module(name: str) -> bool:
    try:
        return (all(part.isidentifier() for part in name.split("."))
                and importlib.util.find_spec(name) is not None)
    except ModuleNotFoundError:  # of the package around it
        return False


def contract_of_module(name: str, run: Callable[[], ModuleType]) -> Contract:
    """The `contract` of the module that `run` imports; raises ContractError, whatever is wrong with it."""
    try:
        contract = getattr(run(), "contract", None)
    except PerennialError:
        raise
    except Exception as error:  # the file is its author's: it may raise anything
        raise ContractError(f"{name} can't be imported: {type(error).__name__}: {error}; "
                            f"correct it") from error
    if not isinstance(contract, Contract):
        raise ContractError(f"{name} has no `contract = Contract(…)`; add it")
    return contract
