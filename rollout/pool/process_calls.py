"""What crosses the socket between `rollout/pool/process_pool.py` and its worker; a file of its own, because the worker's runs as `__main__`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a method of the worker.

    Example:
        Call(method="work", arguments=([request], 2.0))
    """

    method: str
    """Name; `start` builds the worker."""
    arguments: tuple[Any, ...] = ()
    """Positional arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the call returned, or how it failed.

    Example:
        Answer(value=[group])
    """

    value: Any = None
    """Result."""
    failure: str = ""
    """`Type: message` of an exception that ended the call; the worker is then given up."""
    details: Mapping[str, str] = field(default_factory=dict)
    """`traceback` of the failure."""
