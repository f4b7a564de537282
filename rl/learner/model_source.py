"""Where a run's model comes from: built new from sizes in the recipe, or a checkpoint folder or hub name."""

from pathlib import Path
from typing import Any

from samepath.model.config import ModelConfig
from samepath.model.files.config_file import write_config
from samepath.model.files.policy_files import load_policy, save_policy
from samepath.model.json_file import read_json
from samepath.model.network.network import CausalLM
from samepath.model.policy import Policy
from samepath.model.text.tokenizer import Tokenizer, load_tokenizer
from samepath.rl.learner.new_tokenizer import new_tokenizer
from samepath.rl.recipe.model import CheckpointModel, NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.hub_folder import CONFIG_FILES, hub_folder
from samepath.rl.tasks.tasks import build_task


def build_model(recipe: Recipe, recipe_dir: Path) -> tuple[Policy, Tokenizer]:
    """A recipe's model and its tokenizer. Raises ValueError or FileNotFoundError that name what is missing."""
    settings = recipe.model
    if isinstance(settings, NewModel):
        task = None if settings.tokenizer is None else build_task(recipe.task, recipe_dir)
        tokenizer = new_tokenizer(recipe, task)
        ids = {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.end_id, "bos_token_id": tokenizer.start_id}
        return _new_network(settings, ModelConfig.model_validate({**settings.config, **ids}), recipe.seed), tokenizer
    policy, tokenizer = (
        build_policy(settings, recipe_dir, recipe.seed),
        load_tokenizer(resolve_folder(settings.path, recipe_dir)),
    )
    if tokenizer.vocab_size > policy.shape.vocab_size:
        raise ValueError(
            f"{settings.path}: the tokenizer has {tokenizer.vocab_size} ids, the model only {policy.shape.vocab_size}"
        )
    return policy, tokenizer


def build_policy(settings: NewModel | CheckpointModel, recipe_dir: Path, seed: int) -> Policy:
    """The model alone, a new one with the most ids that its tokenizer may have. Raises ValueError or FileNotFoundError."""
    if isinstance(settings, NewModel):
        return _new_network(settings, settings.shape, seed)
    folder = resolve_folder(settings.path, recipe_dir)
    check_expected(settings.expected, folder)
    return load_policy(folder, settings.implementation, settings.backend)


def _new_network(settings: NewModel, shape: ModelConfig, seed: int) -> CausalLM:
    model = CausalLM(shape, settings.backend)
    model.initialise(seed)
    return model


def resolve_folder(path: str, recipe_dir: Path, *, weights: bool = True) -> Path:
    """A local folder as it stands or relative to the recipe; otherwise a hub name is downloaded (or taken from the hub cache).

    `weights` False leaves the weights out. Raises FileNotFoundError, of which HubUnreachableError is one.
    """
    for candidate in (Path(path), recipe_dir / path):
        if candidate.is_dir():
            return candidate
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise FileNotFoundError(
            f"model.path must be a folder or a hub name (organisation/name); there is no folder {path} here or beside the recipe in "
            f"{recipe_dir}"
        )
    return hub_folder(path, "model", [*CONFIG_FILES, *(["*.safetensors"] if weights else [])])


def model_config(settings: NewModel | CheckpointModel, recipe_dir: Path) -> dict[str, Any]:
    """The model's config.json, or what a new model's would say of its sizes. Fetches no weights."""
    if isinstance(settings, NewModel):
        return write_config(settings.shape)
    return check_expected(settings.expected, resolve_folder(settings.path, recipe_dir, weights=False))


def check_expected(expected: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ValueError listing every size that is not what the recipe expects."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"a checkpoint needs {path.name}; none at {path}")
    config = read_json(path)
    wrong = [
        f"{key} is {config.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if config.get(key) != value
    ]
    if wrong:
        raise ValueError(
            f"{path} must have the sizes of model.expected: {'; '.join(wrong)}. Correct model.path or model.expected."
        )
    return config


def save_model(policy: Policy, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a self-contained checkpoint folder."""
    save_policy(policy, folder)
    tokenizer.save(folder)
