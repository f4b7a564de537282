"""Where a learner's models compute, and what of them this rank holds: as the recipe says."""

from torch.distributed.fsdp import FSDPModule

from samepath.model.network.network import CausalLM
from samepath.model.network.placement import made_ready, place, rounded
from samepath.model.policy import Policy
from samepath.rl.learner.ranks import Ranks
from samepath.rl.learner.sharding import shard
from samepath.rl.recipe.recipe import Recipe


def placed(model: Policy, recipe: Recipe, *, trained: bool) -> Policy:
    """The own network goes where the recipe says, foreign models where accelerate puts them; what is to be sharded waits where it is."""
    model.activation_checkpointing = trained and recipe.learner.activation_checkpointing
    placement = recipe.model.placement
    if isinstance(model, CausalLM):
        if recipe.learner.shard == "none":
            return place(model, placement)
        # Float32 numbers of the type: the shards that train are masters. A reference stays in the type.
        model = rounded(made_ready(model, placement), placement.dtype)
        return model.float() if trained else model
    # Late: importing accelerate takes seconds that no run of the own network needs.
    from samepath.rl.learner.acceleration import accelerated

    return accelerated(model, recipe.learner, trained=trained)


def spread(model: Policy, recipe: Recipe, ranks: Ranks, *, trained: bool) -> None:
    """Shard a placed model over the ranks, once, where the recipe says so."""
    if recipe.learner.shard == "none" or isinstance(model, FSDPModule):
        return
    if isinstance(model, CausalLM):
        placement = recipe.model.placement
        gathered_in = placement.dtype if trained else "float32"
        shard(model, ranks, placement.device, gathered_in, expert_parallel=recipe.learner.expert_parallel)
        return
    # Late: as above.
    from samepath.rl.learner.acceleration import device_type

    shard(model, ranks, device_type())
