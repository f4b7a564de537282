"""From an import path to an environment that can be used; what is wrong with it is said before the first sample."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from samepath.rollout.environments.protocol import Environment
from samepath.rollout.environments.settings import EnvironmentSettings
from samepath.rollout.import_path import ImportPathError, imported


class EnvironmentPathError(ImportPathError):
    """An import path that names no usable environment; the message says what to change."""


def load_environment(settings: EnvironmentSettings) -> Environment:
    """Import the class or function and build the environment with the options.

    Raises ImportPathError if module or name are wrong, EnvironmentPathError if the options or the result's methods are. What the module or the
    environment itself raises passes through.
    """
    path = settings.environment
    make = imported(path, "task.environment")
    _check_options(make, path, settings.options)
    made = make(**settings.options)
    for name, wanted in (("tasks", ("train",)), ("start", (None, 0))):
        method = getattr(made, name, None)
        if not callable(method):
            raise EnvironmentPathError(
                f"{path} must make something with tasks(split) and start(row, seed); {name} is missing"
            )
        _check_call(method, f"{path}: {name}", wanted)
    if not inspect.iscoroutinefunction(made.start):
        raise EnvironmentPathError(
            f"{path}: start must be `async def`; its tools run beside the engine and never block it"
        )
    return made  # type: ignore[no-any-return]


def check_session(session: object, path: str) -> None:
    """Raise EnvironmentPathError if it lacks what a session must have."""
    for name, wanted in (("call", ("", {}, 1.0)), ("reply", ("",)), ("score", ()), ("close", ())):
        method = getattr(session, name, None)
        if not inspect.iscoroutinefunction(method):
            raise EnvironmentPathError(f"a session of {path} must have `async def {name}`; got {type(method).__name__}")
        _check_call(method, f"a session of {path}: {name}", wanted)
    for name in ("messages", "tools"):
        if not hasattr(session, name):
            raise EnvironmentPathError(f"a session of {path} must have {name}")


def _check_options(make: Callable[..., Any], path: str, options: Mapping[str, Any]) -> None:
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise EnvironmentPathError(
            f"task.options must be keyword arguments of {path}{inspect.signature(make)}: {error}"
        ) from error


def _check_call(method: Callable[..., Any], what: str, arguments: tuple[Any, ...]) -> None:
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError as error:
        raise EnvironmentPathError(
            f"{what} must take {len(arguments)} arguments; its signature is {inspect.signature(method)}"
        ) from error
