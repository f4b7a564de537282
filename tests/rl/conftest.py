"""A whole recipe small enough for tests: seconds for a run."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from tests.conftest import ALPHABET, tiny_config
from tests.rl.warm import undrawn, unpainted

TIMED = (
    "time/",
    "weights/",
    "memory/",
    "rollout/tokens_per_s",
    "learner/tokens_per_s",
    "learner/collectives_",
    "cold_start/collectives_",
    "rollout/cache_share",
    "rollout/rerun_share",
)
"""How metrics begin in which two equal runs may differ: times, and the cache, which a resumed run does not find as an evaluation left it."""
TINY: dict[str, Any] = {
    "name": "tiny",
    "runtime": "inline",
    "model": {
        "kind": "new",
        "alphabet": ALPHABET,
        "config": {
            key: value
            for key, value in tiny_config().model_dump(mode="json").items()
            if key not in ("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id", "rope_parameters")
        },
    },
    "task": {
        "kind": "reasoning_gym",
        "dataset": "chain_sum",
        "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        "num_train": 64,
        "num_held_out": 8,
        "rewrite": {"match": "problem: (.+) =", "template": "{1}=", "remove": [" "]},
    },
    # Brevity spreads rewards even for a model that knows nothing, so that every update has a gradient.
    "reward": {
        "parts": {"short": {"function": "samepath.rewards.length:brevity", "options": {"max_tokens": 16}}},
        "num_workers": 1,
    },
    "sampling": {"top_p": 0.9, "max_new_tokens": 16},
    "cold_start": {"steps": 6, "batch_size": 8, "dense_warmup_steps": 2},
    "rollout": {"num_workers": 2},
    "rl": {"steps": 3, "prompts_per_step": 4, "group_size": 4, "updates_per_rollout": 2},
    "learner": {"max_tokens_per_pass": 200},
    "tracking": {"kind": "jsonl"},
    "checkpoint": {"every": 1, "keep": 8},
}


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `unpainted` and `undrawn`."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", unpainted)
    monkeypatch.setattr("samepath.rl.report.report.drawn_sections", undrawn)


@pytest.fixture
def tiny_recipe(tmp_path: Path, blank_pictures: None):
    """`tiny_recipe("key=value", …)`: the recipe with its runs below the test's folder."""

    def load(*overrides: str) -> Recipe:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(TINY))
        return load_recipe(path, [f"runs_dir={tmp_path / 'runs'}", *overrides], Recipe)

    return load


SAMPLES, RESPONSE = 2, 16
FOREIGN: dict[str, Any] = {
    **TINY,
    "engine": "vllm",
    "cold_start": {"steps": 0},
    "rl": {**TINY["rl"], "max_gap_at_lag_0": 0.01, "group_size": SAMPLES},
    "sampling": {"max_new_tokens": RESPONSE},
}


@pytest.fixture
def foreign_recipe(tmp_path: Path, blank_pictures: None):
    """`foreign_recipe("Olmoe", "key=value", …)`: a recipe on a tiny checkpoint of that family."""
    # Late: importing these takes seconds that tests of the own network need not wait for.
    from accelerate.state import AcceleratorState

    from tests.tiny_transformers import save_tiny

    AcceleratorState._reset_state(reset_partial_state=True)

    def load(family: str, *overrides: str) -> Recipe:
        folder = tmp_path / family
        if not folder.exists():
            save_tiny(folder, family)
        path = tmp_path / "foreign.yaml"
        model = {"kind": "checkpoint", "path": str(folder), "implementation": "transformers"}
        path.write_text(yaml.safe_dump({**FOREIGN, "model": model}))
        return load_recipe(path, [f"runs_dir={tmp_path / 'runs'}", *overrides], Recipe)

    return load
