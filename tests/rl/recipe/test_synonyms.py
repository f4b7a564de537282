"""What people of other tools write, and what they are told."""

import pytest

from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.node import RecipeError
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.reference import sections
from samepath.rl.recipe.synonyms import SYNONYMS


def test_every_synonym_leads_to_settings_that_exist() -> None:
    settings = {row.key for table in sections(Recipe) for row in table.rows}
    missing = {word: paths for word, paths in SYNONYMS.items() if not paths or not set(paths) <= settings}
    assert missing == {}
    assert not SYNONYMS.keys() & Recipe.model_fields.keys()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("rl.num_generations", "rl.group_size"),
        ("sampling.n", "rl.group_size"),
        ("sampling.max_completion_length", "sampling.max_new_tokens"),
        ("rl.kl_coef", "rl.objective.kl.beta"),
        ("rl.beta", "rl.objective.kl.beta"),
        ("learning_rate", "optimizer.lr"),
        ("rl.learning_rate", "optimizer.lr"),
        ("rl.batch_size", "rl.prompts_per_step"),
        ("batch_size", "rl.prompts_per_step"),
        ("epsilon", "rl.objective.clip_low or rl.objective.clip_high or optimizer.epsilon"),
        ("rl.epsilon", "rl.objective.clip_low or rl.objective.clip_high"),
        ("optimizer.eps", "optimizer.epsilon"),
        ("optimizer.betas", "optimizer.beta1 or optimizer.beta2"),
        ("num_train_epochs", "rl.epochs"),
        ("logging_steps", "tracking.log_every"),
        ("tensor_parallel_size", "engine.tensor_parallel (with engine.kind=vllm)"),
        ("rl.lr", "cold_start.optimizer.lr or optimizer.lr"),
    ],
)
def test_unknown_key_is_answered_with_the_setting_that_is_meant(key: str, meant: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipes/quickstart.yaml", [f"{key}=1"], Recipe)
    assert f"{key}: unknown key; did you mean {meant}? (in override '{key}=1')" in str(caught.value)
