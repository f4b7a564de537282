"""A whole job, cold start and RL, on a new model of each kind of attention and router: the learner repeats the sampler's bits."""

from pathlib import Path

import pytest
import yaml

from samepath.model.config import ModelConfig
from samepath.model.files.checkpoint import published_tensors
from samepath.rl.learner.checkpoints import latest_checkpoint
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.model import NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics
from tests.conftest import ALPHABET
from tests.families import family_config, family_model
from tests.rl.conftest import TINY

FROM_ALPHABET = ("vocab_size", "eos_token_id", "bos_token_id")


def sizes_of(config: ModelConfig) -> dict[str, object]:
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in FROM_ALPHABET}


@pytest.mark.parametrize("name", ["smollm", "qwen3_moe", "deepseek_v3", "samepath_grouped experts"])
def test_start_run_on_every_kind_of_model_has_no_gap_and_learns(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    sizes = sizes_of(family_config(name))
    model = {"kind": "new", "alphabet": ALPHABET, "config": sizes}
    overrides = [f"runs_dir={tmp_path / 'runs'}", "cold_start.steps=3", "rl.steps=2"]
    if name == "smollm":
        overrides.append("learner.activation_checkpointing=true")
    if name.startswith("samepath"):
        overrides += ["learner.indexer=trained", "cold_start.dense_warmup_steps=1"]
    path.write_text(yaml.safe_dump({**TINY, "model": model}))
    summary = start_run(load_recipe(path, overrides, Recipe), tmp_path)
    assert summary["gap_at_lag_0"] == 0.0
    last = read_metrics(tmp_path / "runs" / "tiny" / "metrics.jsonl")[2]
    assert float(last["learner/grad_norm"]) > 0
    assert ("routing/flip_rate" in last) == (name != "smollm")
    assert ("indexer/grad_norm" in last) == name.startswith("samepath")
    assert latest_checkpoint(tmp_path / "runs" / "tiny") is not None


def test_new_model_of_a_recipe_takes_every_family() -> None:
    for name in ("llama3", "qwen2", "qwen3 yarn", "qwen3_moe sparse step", "deepseek_v3 direct", "deepseek_v32"):
        settings = NewModel(alphabet=ALPHABET, config=sizes_of(family_config(name)))
        assert settings.shape == family_config(name)
        assert published_tensors(family_model(name))


def test_start_run_training_an_indexer_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    model = {"kind": "new", "alphabet": ALPHABET, "config": sizes_of(family_config("smollm"))}
    path.write_text(yaml.safe_dump({**TINY, "model": model}))
    overrides = [f"runs_dir={tmp_path / 'runs'}", "learner.indexer=trained"]
    with pytest.raises(ValueError, match="needs a model with an indexer; this one attends to every key"):
        start_run(load_recipe(path, overrides, Recipe), tmp_path)
