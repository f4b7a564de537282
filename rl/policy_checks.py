"""What a recipe asks of a model that only the loaded model can answer; checked by `samepath validate` and before any work."""

from pathlib import Path

from samepath.model.config_file import read_config
from samepath.model.network import CausalLM
from samepath.model.policy import Policy
from samepath.rl.model_source import CheckpointModel, resolve_folder
from samepath.rl.recipe import Recipe
from samepath.rollout.engine_settings import BuiltinSettings


def check_policy(recipe: Recipe, policy: Policy) -> None:
    """Raise ValueError, with what to change, if the recipe cannot train this policy."""
    if recipe.learner.indexer == "trained" and not policy.shape.sparse_layers:
        raise ValueError("learner.indexer: trained needs a model with an indexer; this one attends to every key")
    if isinstance(policy, CausalLM):
        return
    # Late: importing transformers' models takes seconds that no run of the own network needs.
    from samepath.model.transformers_policy import TransformersPolicy, require_known_routers

    assert isinstance(policy, TransformersPolicy)
    if recipe.rl.keep_routing != "off":
        require_known_routers(policy)


def check_engine(recipe: Recipe, recipe_dir: Path) -> None:
    """Raise ValueError if the built-in engine, which runs the own network, cannot load a foreign model's checkpoint."""
    model = recipe.model
    if not isinstance(model, CheckpointModel) or model.implementation == "own":
        return
    if isinstance(recipe.engine, BuiltinSettings):
        try:
            read_config(resolve_folder(model.path, recipe_dir) / "config.json")
        except ValueError as error:
            raise ValueError(f"engine: builtin cannot run this model ({error}). Set engine=vllm.") from error
