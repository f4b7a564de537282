"""The recipes hold: each passes `samepath validate` without a network, and says what it needs and that it was not run."""

import itertools
import re
from pathlib import Path

import pytest

from samepath.model.files.published_sizes import published_sizes
from samepath.rl.evaluation.sets import build_set
from samepath.rl.recipe.file import dump_recipe, load_recipe, recipe_keys
from samepath.rl.recipe.model import CheckpointModel, NewModel
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.text import TextRecipe
from samepath.rl.tasks.tasks import build_task
from samepath.rl.validate import memory_findings
from samepath.rl.validate.memory_plan import DEVICES, MemoryPlan, memory_lines, memory_plan
from samepath.rl.validate.validation import validate_recipe
from tests.model.files.test_published_sizes import SMOLLM2

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NOT_RUN = [ROOT / "recipes" / name for name in ("qwen3_moe_gsm8k.yaml", "deepseek_v32.yaml")]
WORKED = [*NOT_RUN, *(ROOT / "recipes" / name for name in ("quickstart.yaml", "smollm2_arithmetic.yaml"))]
PAGE = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh clone without network: nothing resolves, nothing is cached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(memory_findings, "memory_bytes", lambda: 24 * 10**9)
    monkeypatch.setattr(memory_findings, "list_gpus", list)


def plan_of(path: Path) -> MemoryPlan:
    """What validate works out, without a checkpoint."""
    recipe = load_recipe(path, [], Recipe)
    if isinstance(recipe.model, NewModel):
        plan = validate_recipe(recipe, path.parent).memory
        assert plan is not None
        return plan
    if recipe.model.expected:
        return memory_plan(recipe, published_sizes(recipe.model.expected))
    # The folder of the SmolLM2 recipe is made by `make smollm2`: its sizes, and the length of its longest prompt.
    return memory_plan(recipe, published_sizes(SMOLLM2), prompt_tokens=31)


def heading(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])


@pytest.mark.parametrize("path", NOT_RUN, ids=lambda path: path.stem)
def test_recipe_that_was_not_run_passes_validate_and_names_its_obstacle(path: Path) -> None:
    result = validate_recipe(load_recipe(path, [], Recipe), path.parent)
    found = {finding.name: finding for finding in result.findings}
    assert result.passed(strict=False)
    assert not result.passed(strict=True)
    assert {found[name].outcome for name in ("settings", "sizes", "reward", "cache")} == {"ok"}
    assert {found[name].outcome for name in ("task", "model", "tokenizer", "prompts")} == {"not checked"}
    assert found["memory"].outcome == "obstacle"
    assert "with learner.shard=full" in found["memory"].detail


@pytest.mark.parametrize("path", NOT_RUN, ids=lambda path: path.stem)
def test_recipe_that_was_not_run_says_so_and_what_it_needs(path: Path) -> None:
    said, plan = heading(path), plan_of(path)
    assert "NOT RUN" in said
    assert "ran on CPUs only" in said
    counts = {name: plan.learners["sharded, experts in place"].least_devices(size) for name, size in DEVICES.items()}
    engines = {name: plan.engine.least_devices(size) for name, size in DEVICES.items()}
    assert f"at least {counts['80 GB']} GPUs of 80 GB or {counts['141 GB']} of 141 GB" in said
    assert re.search(rf"{engines['80 GB']} GPUs of 80 GB or {engines['141 GB']} of 141 GB for each of", said)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_written_out_loads_back(path: Path, tmp_path: Path) -> None:
    kind = TextRecipe if "stage" in recipe_keys(path, []) else Recipe
    recipe = load_recipe(path, [], kind)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml", [], kind) == recipe


def test_deepseek_recipe_has_the_settings_of_the_report() -> None:
    recipe = load_recipe(NOT_RUN[1], [], Recipe)
    rl = recipe.rl
    assert (rl.objective.kl.estimator, rl.objective.off_policy_mask.enabled) == ("unbiased", True)
    assert (rl.keep_routing, rl.keep_sampling_mask, recipe.learner.indexer) == ("sampler", "on", "frozen")
    assert recipe.sampling.truncates
    assert isinstance(recipe.model, CheckpointModel)
    assert recipe.engine.kind == "vllm"
    assert (recipe.engine.return_routes, recipe.engine.return_sampling_mask) == (True, True)


@pytest.mark.parametrize("path", WORKED, ids=lambda path: path.stem)
def test_memory_page_shows_the_table_that_validate_prints(path: Path) -> None:
    shown = "\n".join(line for line in memory_lines(plan_of(path)) if line.startswith("|"))
    assert shown in PAGE


def test_store_recipe_asks_harder_rows_apart_and_trains_on_some() -> None:
    path = ROOT / "recipes" / "store.yaml"
    recipe = load_recipe(path, [], Recipe)
    task = build_task(recipe.task, path.parent)
    kinds = {
        name: {row.episode.row.data["harder"] for row in build_set(recipe, name, task, path.parent).rows if row.episode}
        for name in recipe.evaluation.named
    }
    assert kinds == {"held_out": {""}, "harder": {"chain", "terms"}}
    assert {row.episode.row.data["harder"] for row in itertools.islice(task.train, 100) if row.episode} == {
        "",
        "chain",
        "terms",
    }
