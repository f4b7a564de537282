"""What a recipe asks of its model, beyond what the recipe alone can tell; checked by `samepath validate` and before any work."""

from pathlib import Path
from typing import get_args

from torch import nn
from torch.distributed.tensor import DTensor

from samepath.model.files.config_file import read_config
from samepath.model.policy import Policy
from samepath.model.shape import ModelShape
from samepath.model.transformers.lora import check_targets
from samepath.rl.objective.own_surrogate import own_surrogate
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.engine_demands import gap_problem
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rl.recipe.model import CheckpointModel, NewModel
from samepath.rl.recipe.objective import SurrogateName
from samepath.rollout.engine_description import Capability
from samepath.rollout.engine_settings import ENGINES, AnyEngine, describe


def check_foreign_checkpoint(folder: Path, rl: AlgorithmSettings, learner: LearnerSettings, engine: AnyEngine) -> None:
    """Raise ValueError, with what to change, if these settings cannot train the transformers model of a folder; reads no weights."""
    # Late: importing transformers' models takes seconds that no run of the own network needs.
    from samepath.model.transformers.router_replay import require_known_routers
    from samepath.model.transformers.support import blank_model

    model = blank_model(folder)
    if rl.keep_routing != "off":
        require_known_routers(model)
    if learner.lora.enabled:
        check_targets(model, learner.lora)
    if not describe(engine).cells[Capability.PUBLISHED_MODELS].supported:
        others = " or ".join(engine.kind for engine in ENGINES if engine.cells[Capability.PUBLISHED_MODELS].supported)
        try:
            read_config(folder / "config.json")
        except ValueError as error:
            raise ValueError(f"engine: {engine.kind} cannot run this model ({error}). Set engine={others}.") from error


def same_path(rl: AlgorithmSettings, shape: ModelShape) -> bool:
    """True if learner and sampler compute one distribution, so that equal weights must give equal log-probabilities.

    Live routes, or the full vocabulary where the sampler truncated, are another distribution by choice. A dense model's path is the
    same without replay, which the recipe alone cannot know.
    """
    return rl.keep_sampling_mask == "on" and (rl.keep_routing == "sampler" or not shape.moe_layers)


def check_reference(model: Policy, reference: Policy) -> None:
    """Raise ValueError if a tensor that is trained is one of the reference's too, which would move along and hold the policy nowhere."""
    frozen = {place for parameter in reference.parameters() if (place := _place(parameter))}
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    shared = [name for name, parameter in trained if _place(parameter) in frozen]
    if shared:
        raise ValueError(
            f"the reference must keep the weights that RL began with; it shares {len(shared)} trained tensors with the policy, the first {shared[0]}, and "
            "would move along. Copy the policy before it is trained."
        )


def _place(parameter: nn.Parameter) -> int:
    """Where this process holds it, 0 if it holds nothing of it."""
    own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return own.data_ptr() if own.numel() else 0


def check_experts(num_experts: int, learner: LearnerSettings) -> None:
    """Raise ValueError, with what to do, if `learner.expert_parallel` cannot spread layers of so many routed experts; 0 is a dense model."""
    if not learner.expert_parallel:
        return
    if not num_experts:
        raise ValueError(
            "learner.expert_parallel needs a mixture-of-experts model; this one is dense. Leave it out: learner.shard=full shares all of it."
        )
    if num_experts % learner.ranks:
        fitting = ", ".join(str(ranks) for ranks in range(1, min(num_experts, 64) + 1) if num_experts % ranks == 0)
        raise ValueError(
            f"learner.expert_parallel gives every rank as many experts: learner.ranks must divide the model's {num_experts} routed experts; got "
            f"{learner.ranks}. Set learner.ranks to one of {fitting}, or leave expert_parallel out."
        )


def check_policy(
    shape: ModelShape,
    rl: AlgorithmSettings,
    learner: LearnerSettings,
    model: NewModel | CheckpointModel,
    engine: AnyEngine,
) -> None:
    """Raise ValueError if an indexer is trained that the policy has not, a gap of 0 asked for that the two sides cannot give, experts are to be
    spread that cannot, or a surrogate of the user's own cannot be used."""
    objective = rl.objective
    if rl.trains and objective.surrogate not in get_args(SurrogateName):
        own_surrogate(objective.surrogate, objective.surrogate_options, objective.clip_low, objective.clip_high)
    check_experts(shape.n_routed_experts if shape.moe_layers else 0, learner)
    exact = rl.trains and same_path(rl, shape) and rl.max_gap_at_lag_0 == 0
    if exact and (problem := gap_problem(engine, model)):
        raise ValueError(problem)
    if learner.indexer == "trained" and not shape.sparse_layers:
        raise ValueError("learner.indexer: trained needs a model with an indexer; this one attends to every key")
