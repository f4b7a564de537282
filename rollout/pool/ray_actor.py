"""One rollout actor as its pool sees it, and what Ray says of one that is lost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError

from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import IdleClock
from samepath.rollout.pool.ray_calls import ask

GONE = (RayActorError, ObjectLostError, MemoryError)
"""What Ray raises for an actor that is no more, whose answer went with its node, or that has no memory left."""


@dataclass(slots=True, kw_only=True)
class RolloutActor:
    """One actor and what it is working on."""

    handle: Any
    number: int
    """Its place in the pool, and so in the room that is reserved."""
    groups: dict[str, Request] = field(default_factory=dict)
    call: Any = None
    loading: list[Any] = field(default_factory=list)
    """Calls that hand it weights, as far as they have not been heard of."""
    last_answer_s: float = 0.0
    clock: IdleClock = field(default_factory=IdleClock)


def first_ready(calls: Sequence[Any], wait_s: float) -> list[Any]:
    """The first of the calls that has its result, or none after `wait_s`."""
    if not calls:
        return []
    ready, _ = ask("a rollout worker", wait_s, lambda: ray.wait(list(calls), num_returns=1, timeout=wait_s))
    return list(ready)
