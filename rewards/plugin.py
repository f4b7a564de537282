"""From an import path to a reward function that can be called; what is wrong with it is said before the first sample."""

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from samepath.rewards.request import RewardRequest

RewardFunction = Callable[..., Any]
"""`def f(request: RewardRequest, **options) -> float | Mapping[str, float]`, plain or `async`."""


class PluginError(ValueError):
    """An import path that names no usable reward function; the message says what to change."""


def resolve(path: str, options: Mapping[str, Any]) -> RewardFunction:
    """Import `package.module:function` and check that it takes a request and these options.

    Raises PluginError if the path, the module, the function or its signature is wrong. What the module itself raises while
    it is imported passes through.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise PluginError(f"a reward function must be written `package.module:function`; got {path!r}")
    target: Any = _imported(module_name, path)
    for name in attribute.split("."):
        if not hasattr(target, name):
            known = [
                known for known, value in vars(target).items() if not known.startswith("_") and _is_own(value, target)
            ]
            raise PluginError(
                f"{path!r}: {_described(target)} has no {name!r}.{_suggestion(name, known)} Correct the name after the colon."
            )
        target = getattr(target, name)
    if not callable(target):
        raise PluginError(f"{path!r} must be a function; got a {type(target).__name__}")
    _check_signature(target, path, options)
    return target  # type: ignore[no-any-return]


def _is_own(value: object, holder: object) -> bool:
    """Return whether a function or class of a module is defined there; what is in a class is its own."""
    return callable(value) and (not inspect.ismodule(holder) or getattr(value, "__module__", "") == holder.__name__)


def _imported(module_name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            # The module exists; what it imports does not.
            raise
        parent, _, name = missing.rpartition(".")
        raise PluginError(
            f"{path!r}: there is no module {missing!r}.{_suggestion(name, _module_names(parent))} "
            f"Your own modules are looked for in {sys.path[0]!r} (reward.search_path)."
        ) from error


def _module_names(package: str) -> list[str]:
    """Modules inside a package, or those of the user's folder and the installed top level."""
    if not package:
        return [module.name for module in pkgutil.iter_modules()]
    found = sys.modules.get(package)
    return [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]


def _check_signature(function: RewardFunction, path: str, options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{path!r} has no signature that can be checked ({error}). Wrap it in a `def` of your own."
        ) from error
    try:
        signature.bind(RewardRequest(prompt_text="", response_text=""), **options)
    except TypeError as error:
        given = ", ".join(["request", *(f"{name}=…" for name in options)])
        keywords = [name for name, parameter in signature.parameters.items() if parameter.kind in _BY_NAME]
        hints = "".join(_suggestion(name, keywords) for name in options if name not in keywords)
        raise PluginError(
            f"{path!r} must be callable as f({given}), but its signature is {signature}: {error}.{hints} "
            "Correct its parameters or `options` in the recipe."
        ) from error


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _described(target: object) -> str:
    name = getattr(target, "__name__", type(target).__name__)
    where = getattr(target, "__file__", None)
    return f"{name!r} ({where})" if where else repr(name)


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
