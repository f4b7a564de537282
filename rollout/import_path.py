"""What a recipe names by an import path, `package.module:name`, of the user's own."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any


class ImportPathError(ValueError):
    """An import path that names nothing usable; the message says what to change."""


def imported(path: str, setting: str) -> Callable[..., Any]:
    """The class or function at an import path; `setting` is the recipe's key, for messages.

    Raises ImportPathError if there is no such module or name. What the module raises on import passes through.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            # The module exists; what it imports does not.
            raise
        raise ImportPathError(
            f"{setting} {path!r}: there is no module {missing!r}. Modules of your own stand beside the recipe, where the command is "
            "started, or on PYTHONPATH."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        known = ", ".join(
            known
            for known, value in vars(module).items()
            if (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
            and not known.startswith("_")
        )
        raise ImportPathError(
            f"{setting} {path!r}: {module_name} has no class or function {name!r}; it has {known or 'none'}"
        )
    return found  # type: ignore[no-any-return]
