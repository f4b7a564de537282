"""A recipe is refused where its engine cannot do what it asks, and the documentation has the same table."""

from pathlib import Path

import pytest

from samepath.model.policy import Policy
from samepath.rl.learner.policy_checks import check_policy
from samepath.rl.recipe import engine_demands
from samepath.rl.recipe.node import RecipeError
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.run_state import STATE_FILE
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.capabilities import capability_table, refusal
from samepath.rollout.engine_description import Capability, no
from samepath.rollout.engine_errors import EngineUnavailableError
from samepath.rollout.vllm import version as vllm_version
from samepath.rollout.vllm.settings import VllmSettings
from tests.families import family_model

ROOT = Path(__file__).resolve().parents[3]
VLLM = ("engine={kind: vllm, network: own, dtype: float32, return_sampling_mask: true}",)


def checked_policy(recipe: Recipe, policy: Policy) -> None:
    check_policy(policy.shape, recipe.rl, recipe.learner, recipe.model, recipe.engine)


def test_docs_hold_the_table_that_the_code_reads() -> None:
    page = (ROOT / "docs" / "engines.md").read_text()
    assert capability_table() in page, "run python -m samepath.rollout.capabilities and paste its output"


def test_recipe_with_the_own_network_in_vllm_is_accepted_with_a_gap_of_zero(tiny_recipe) -> None:
    assert tiny_recipe(*VLLM).rl.max_gap_at_lag_0 == 0


def test_recipe_that_bears_the_gap_of_a_narrower_engine_is_accepted(tiny_recipe) -> None:
    assert tiny_recipe("engine.dtype=bfloat16", "rl.max_gap_at_lag_0=0.5").engine.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("engine={kind: vllm, dtype: float32}",), r"sampling truncates .*engine\.return_sampling_mask=true"),
        (
            (
                "engine={kind: vllm, dtype: float32}",
                "sampling.top_p=1.0",
                "evaluation.temperature=1",
                "evaluation.top_p=0.9",
            ),
            r"evaluation\.top_p truncates.*return_sampling_mask=true",
        ),
        (
            ("engine={kind: vllm, dtype: float32, return_sampling_mask: true, return_routes: false}",),
            r"rl\.keep_routing=sampler .*engine\.return_routes=true",
        ),
        ((*VLLM, "sampling.support_cap=100"), r"support_cap .*does not offer it"),
        (("engine.dtype=bfloat16",), r"rl\.max_gap_at_lag_0=0 .*engine\.dtype=model.*Set rl\.max_gap_at_lag_0=0\.5"),
        (
            ("engine.dtype=bfloat16", "rl.max_gap_at_lag_0=0.5", "runtime=ray", "learner.weight_deltas=true"),
            r"weight_deltas sends numbers of model\.dtype=float32, and the engine holds them in bfloat16",
        ),
        (
            ("engine={kind: vllm, return_sampling_mask: true}",),
            r"rl\.max_gap_at_lag_0=0 .*Set rl\.max_gap_at_lag_0=0\.5",
        ),
        (
            ("engine={kind: vllm, dtype: float32, return_sampling_mask: true}",),
            r"engine\.network=own .*Set rl\.max_gap_at_lag_0=0\.01",
        ),
        (
            (*VLLM, "~model", "model={kind: checkpoint, path: a/b, implementation: transformers}"),
            r"implementation=transformers rounds differently\. Set rl\.max_gap_at_lag_0=0\.01",
        ),
        (
            (*VLLM, "model.device=cuda", "model.backend=triton"),
            r"the engine computes on cpu, the learner with model\.device=cuda\. Set rl\.max_gap_at_lag_0=0\.01",
        ),
        (("engine={kind: vllm, network: own}",), r"network=own runs with device=cpu and dtype=float32"),
        ((*VLLM, "sampling.temperature=2.5"), r"sampling\.temperature=2\.5: .*does not offer it"),
        ((*VLLM, "evaluation.temperature=0.001"), r"evaluation\.temperature=0\.001: .*raises the former"),
        (("engine={kind: vllm, prefix_cache: false}",), r"return_routes needs prefix_cache"),
        (("engine={kind: vllm, tensor_parallel: 2}",), r"tensor_parallel=2 needs device=cuda"),
        (("engine={kind: vllm, max_batch_tokens: 64}",), r"max_batch_tokens must hold"),
    ],
)
def test_recipe_that_asks_too_much_of_vllm_is_refused_with_the_cure(tiny_recipe, overrides, message) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(*overrides)


def test_engine_without_log_probabilities_cannot_train_with_the_off_policy_mask(
    tiny_recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        engine_demands,
        "refusal",
        lambda capability, engine: "it samples blindly" if capability is Capability.LOGPROBS else "",
    )
    with pytest.raises(RecipeError, match=r"off_policy_mask compares .*it samples blindly"):
        tiny_recipe()
    tiny_recipe("rl.steps=0")


def test_refusal_names_the_setting_or_the_reason() -> None:
    assert refusal(Capability.CANDIDATES, VllmSettings(return_sampling_mask=True)) == ""
    assert refusal(Capability.CANDIDATES, VllmSettings()).startswith("it needs engine.return_sampling_mask=true")
    assert no("why").note in refusal(Capability.FINGERPRINTS, VllmSettings()) or "selection" in refusal(
        Capability.FINGERPRINTS, VllmSettings()
    )
    assert refusal(Capability.FINGERPRINTS, BuiltinSettings()) == ""


def test_run_whose_vllm_is_not_installed_stops_before_any_work(tiny_recipe, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(vllm_version, "installed_vllm", lambda: None)
    recipe = tiny_recipe(*VLLM, "runtime=inline")
    with pytest.raises(EngineUnavailableError, match="make setup-vllm"):
        start_run(recipe, tmp_path)
    assert not (recipe.run_dir / STATE_FILE).exists()


def test_dense_model_without_replay_is_held_to_the_gap_that_its_engine_can_give(tiny_recipe) -> None:
    """The recipe alone does not know that the model is dense; the loaded policy does."""
    engine = ("engine={kind: vllm, dtype: float32, network: vllm, return_sampling_mask: true}", "rl.keep_routing=off")
    dense = family_model("llama")
    with pytest.raises(ValueError, match=r"Set rl\.max_gap_at_lag_0=0\.01"):
        checked_policy(tiny_recipe(*engine), dense)
    checked_policy(tiny_recipe(*engine, "rl.max_gap_at_lag_0=0.01"), dense)
    checked_policy(tiny_recipe("rl.keep_routing=off"), dense)
    checked_policy(tiny_recipe(*engine), family_model("qwen3_moe"))


def test_pages_that_vllm_attention_on_cpu_cannot_have_are_refused_with_the_settings() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        VllmSettings(page_size=16)
    assert VllmSettings(page_size=16, network="own", dtype="float32").page_size == 16
    assert VllmSettings(page_size=16, device="cuda").page_size == 16


FREE = (
    "model.device=cuda",
    "model.backend=triton",
    "model.batch_invariant=false",
    "rl.max_gap_at_lag_0=0.5",
)
"""Rows that may depend on their batch, and a limit that allows for it."""
BY_THE_LEARNER = (*FREE, "rl.objective.old_policy=learner", "rl.objective.off_policy_mask.enabled=false")


def test_rows_that_depend_on_their_batch_need_a_gpu_a_gap_and_a_correction(tiny_recipe) -> None:
    assert not tiny_recipe(*FREE).model.placement.batch_invariant
    with pytest.raises(
        RecipeError, match=r"model\.batch_invariant=false needs model\.device=cuda and model\.backend=triton"
    ):
        tiny_recipe("model.batch_invariant=false", "rl.max_gap_at_lag_0=0.5")
    with pytest.raises(RecipeError, match=r"lets a row's bits depend on its batch\. Set rl\.max_gap_at_lag_0=0\.01"):
        tiny_recipe(*FREE, "rl.max_gap_at_lag_0=0")
    with pytest.raises(RecipeError, match=r"nothing here corrects for it"):
        tiny_recipe(*BY_THE_LEARNER)


@pytest.mark.parametrize(
    "cure", ["rl.objective.importance.mode=truncated", "rl.objective.off_policy_mask.enabled=true", "rl.steps=0"]
)
def test_each_cure_of_an_uncorrected_gap_is_accepted(tiny_recipe, cure: str) -> None:
    assert not tiny_recipe(*BY_THE_LEARNER, cure).model.batch_invariant
