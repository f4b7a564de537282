"""Where Ray puts actors: anywhere, or in a placement group that reserves room for all of them, on few nodes or on many."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from samepath.rollout.pool.ray_calls import KILL_LIMIT_S, ask, cluster_ended, hangs
from samepath.rollout.pool.settings import Placing

STRATEGIES: Mapping[Placing, str] = {"pack": "PACK", "spread": "SPREAD"}
"""Ray's names; both are preferences, so that an actor whose node is lost finds room on any other."""


class NoRoomError(RuntimeError):
    """The cluster has no room for what a recipe reserves; the message says what was asked for and what there is."""


class RayBundles:
    """Room for `count` actors. Ray moves the room of a node that is lost to another node that has it."""

    def __init__(self, what: str, count: int, needs: Mapping[str, float], placing: Placing, limit_s: float) -> None:
        """Reserve it, unless actors may stand anywhere.

        Args:
            what: The actors, for messages, with the settings that say how much each needs.
            count: How many.
            needs: What each reserves: `CPU` (not for `any`) and `GPU`.
            placing: See `Placing`.
            limit_s: Longest wait for the room, seconds.

        Raises NoRoomError.
        """
        self._needs = {name: amount for name, amount in needs.items() if amount}
        self._group: PlacementGroup | None = None
        if placing == "any":
            self._needs.pop("CPU", None)
            return
        bundles, strategy = [self._needs] * count, STRATEGIES[placing]
        self._group = ask("Ray to take the order for room", limit_s, lambda: placement_group(bundles, strategy))
        ready = self._group.ready
        try:
            ask(f"room for {what}", limit_s, lambda: ray.get(ready(), timeout=limit_s))
        except GetTimeoutError as error:
            there = ask("what the cluster has", limit_s, ray.available_resources)
            self.close()
            free = {name: amount for name, amount in there.items() if name in self._needs}
            raise NoRoomError(
                f"the cluster must have room for {count} {what} of {self._needs} each; waited {limit_s:.0f} s, and {free} of it is free. Lower "
                "what each reserves, or their number, or let them stand anywhere."
            ) from error

    def options(self, index: int) -> dict[str, Any]:
        """What the actor with this number is made with."""
        options: dict[str, Any] = {
            "num_cpus": self._needs.get("CPU", 0),
            "num_gpus": self._needs.get("GPU", 0),
            "max_restarts": 0,
        }
        if self._group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group, index)
        return options

    def close(self) -> None:
        """Give the room back; without a cluster that answers there is none."""
        group, self._group = self._group, None
        if group is None or cluster_ended() or hangs():
            return
        ask("room that is given back", KILL_LIMIT_S, lambda: remove_placement_group(group))
