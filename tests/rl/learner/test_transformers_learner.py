"""The learner on foreign models: updates on replayed routes, precision, checkpoints, adapters, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from samepath.model.files.policy_files import load_policy, policy_tensors
from samepath.model.policy import Policy
from samepath.model.text.tokenizer import character_tokenizer
from samepath.model.transformers.policy import TransformersPolicy
from samepath.rl.batch.pack import TrainSequence, pack
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.diagnostics.numerics import NumericsMismatchError
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.policy_checks import check_foreign_checkpoint, check_policy
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.recipe.file import RecipeError
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.types import Segment
from tests.conftest import ALPHABET
from tests.rl.conftest import RESPONSE, SAMPLES
from tests.rl.saved import saved
from tests.tiny_transformers import tiny_transformers

GROUPS, PROMPT = 4, 5
LENGTH = PROMPT + RESPONSE


def checked_policy(recipe: Recipe, policy: Policy) -> None:
    check_policy(policy.shape, recipe.rl, recipe.learner, recipe.model, recipe.engine)


def checked_folder(recipe: Recipe, folder: Path) -> None:
    check_foreign_checkpoint(folder, recipe.rl, recipe.learner, recipe.engine)


def sampled_batch(policy: TransformersPolicy, seed: int = 0, version: int = 0) -> TrainBatch:
    """Random responses, with the policy's own log-probabilities and routes as an engine would record them."""
    shape, rng = policy.shape, np.random.default_rng(seed)
    count = GROUPS * SAMPLES
    trained = np.arange(LENGTH) >= PROMPT
    missing = np.full((LENGTH, len(shape.moe_layers), shape.num_experts_per_tok), -1, np.int16)

    def sequence(tokens: np.ndarray, logprobs: np.ndarray, routes: np.ndarray) -> TrainSequence:
        segment = Segment(
            token_ids=tokens,
            trained=trained,
            sampler_logprobs=logprobs,
            routes=routes,
            support=None,
            selection_fingerprint=None,
            weight_version=np.where(trained, version, -1).astype(np.int32),
            finish_reason="stop",
        )
        return TrainSequence(segment=segment, temperature=1.0, name="test")

    tokens_BT = rng.integers(2, len(ALPHABET), (count, LENGTH)).astype(np.int32)
    tokens_BT[:, :PROMPT] = np.repeat(tokens_BT[::SAMPLES, :PROMPT], SAMPLES, axis=0)
    blank = np.zeros(LENGTH, np.float32)
    sequences = []
    for tokens in tokens_BT:
        packed = pack([sequence(tokens, blank, missing)], shape)
        with torch.no_grad():
            result = run_policy(policy, packed, routes_LNX=None, use_support=False)
        logprobs, routes = blank.copy(), missing.copy()
        logprobs[PROMPT:] = result.logprobs_M.numpy()
        if shape.moe_layers:
            routes[:-1] = result.trace.stacked_routes().numpy()[: LENGTH - 1]
        sequences.append(sequence(tokens, logprobs, routes))
    return TrainBatch(
        sequences=tuple(sequences),
        rollout_S=np.arange(count),
        names=tuple(entry.name for entry in sequences),
        advantages_B=np.where(np.arange(count) % 2, -0.5, 0.5).astype(np.float32),
        group_B=np.repeat(np.arange(GROUPS), SAMPLES),
        datasets=("sums",) * count,
        in_loss_B=np.ones(count, np.bool_),
    )


def learner_of(recipe: Recipe, tmp_path: Path, resume_from: Path | None = None) -> Learner:
    return Learner(recipe, tmp_path, recipe.run_dir, resume_from)


def copied(learner: Learner) -> dict[str, np.ndarray]:
    """The present weights, which later updates leave alone."""
    return {name: tensor.numpy().copy() for name, tensor in learner.named_weights()}


def started(recipe: Recipe, tmp_path: Path) -> tuple[Learner, TransformersPolicy]:
    learner = learner_of(recipe, tmp_path)
    learner.start_rl()
    start = load_policy(learner.reference_dir, "transformers", "torch")
    assert isinstance(start, TransformersPolicy)
    return learner, start


@pytest.mark.parametrize("family", ["Llama", "Qwen3Moe", "DeepseekV3"])
def test_update_at_lag_0_has_no_gap_and_moves_weights(family: str, foreign_recipe, tmp_path: Path) -> None:
    learner, start = started(foreign_recipe(family), tmp_path)
    before = copied(learner)
    report: UpdateReport = learner.update(sampled_batch(start))
    assert report.metrics["policy/gap_at_lag_0"] < 1e-4
    if start.shape.moe_layers:
        assert report.metrics["routing/flip_rate_at_lag_0"] == 0.0
    after = copied(learner)
    assert before.keys() == after.keys() == set(policy_tensors(start))
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert any("q_proj" in name or "q_b_proj" in name for name in moved)
    if start.shape.moe_layers:
        assert any(name.endswith("gate.weight") for name in moved), "the router learns under replay"


def test_update_on_routes_of_another_layer_is_stopped(foreign_recipe, tmp_path: Path) -> None:
    learner, start = started(foreign_recipe("Olmoe"), tmp_path)
    batch = sampled_batch(start)
    rolled = tuple(
        replace(entry, segment=replace(entry.segment, routes=np.roll(entry.segment.routes, 1, axis=1)))
        for entry in batch.sequences
    )
    with pytest.raises(NumericsMismatchError):
        learner.update(replace(batch, sequences=rolled))


def test_update_in_more_passes_with_recomputation_gives_the_weights_of_fewer_plain_ones(
    foreign_recipe, tmp_path: Path
) -> None:
    results = []
    for number, extra in enumerate(
        (["learner.min_passes=1"], ["learner.min_passes=3", "learner.activation_checkpointing=true"])
    ):
        recipe = foreign_recipe("DeepseekV3", f"name=run{number}", "learner.max_tokens_per_pass=48", *extra)
        learner, start = started(recipe, tmp_path)
        learner.update(sampled_batch(start))
        results.append(copied(learner))
    for name, values in results[0].items():
        np.testing.assert_allclose(values, results[1][name], rtol=0, atol=2e-5, err_msg=name)


def test_update_in_bf16_keeps_float32_weights_and_rounds_its_passes(foreign_recipe, tmp_path: Path) -> None:
    recipe = foreign_recipe("Qwen3Moe", "learner.precision=bf16", "rl.max_gap_at_lag_0=5")
    learner, start = started(recipe, tmp_path)
    report = learner.update(sampled_batch(start))
    assert 1e-3 < report.metrics["policy/gap_at_lag_0"] < 5
    assert all(tensor.dtype == torch.float32 for _, tensor in learner.named_weights())


@pytest.mark.parametrize("lora", [False, True])
def test_resumed_learner_continues_to_the_last_bit(lora: bool, foreign_recipe, tmp_path: Path) -> None:
    overrides = ["learner.lora.rank=4", "optimizer.lr=0.01"] if lora else []
    recipe = foreign_recipe("Qwen3Moe", *overrides)
    learner, start = started(recipe, tmp_path)
    learner.update(sampled_batch(start, seed=0))
    folder = saved(learner, 1)
    loaded = load_policy(folder, "transformers", "torch")
    for name, tensor in policy_tensors(loaded).items():
        np.testing.assert_array_equal(tensor.numpy(), copied(learner)[name], err_msg=name)
    second = sampled_batch(start, seed=1)
    learner.update(second)
    resumed = learner_of(recipe, tmp_path, folder)
    assert resumed.version == 1
    resumed.update(second)
    expected = copied(learner)
    assert all(np.array_equal(values, expected[name]) for name, values in copied(resumed).items())


def test_lora_trains_its_adapters_alone_and_merges_them(foreign_recipe, tmp_path: Path) -> None:
    recipe = foreign_recipe(
        "Qwen3Moe", "learner.lora.rank=4", "learner.lora.target_modules=[q_proj, v_proj]", "optimizer.lr=0.01"
    )
    learner, start = started(recipe, tmp_path)
    before = copied(learner)
    assert all(np.array_equal(before[name], tensor.numpy()) for name, tensor in policy_tensors(start).items()), "B = 0"
    learner.update(sampled_batch(start))
    after = copied(learner)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {
        f"model.layers.{layer}.self_attn.{name}.weight" for layer in range(3) for name in ("q_proj", "v_proj")
    }
    difference = after["model.layers.0.self_attn.q_proj.weight"] - before["model.layers.0.self_attn.q_proj.weight"]
    assert np.linalg.matrix_rank(difference.astype(np.float64), tol=1e-6) <= 4
    trained = [name for name, parameter in learner._model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(moved)


def test_lora_weights_handed_out_are_the_policy_that_was_trained(foreign_recipe, tmp_path: Path) -> None:
    """Merged weights in a fresh model give the log-probabilities of base and adapters."""
    recipe = foreign_recipe("Olmoe", "learner.lora.rank=4", "optimizer.lr=0.01")
    learner, start = started(recipe, tmp_path)
    batch = sampled_batch(start)
    learner.update(batch)
    merged = load_policy(saved(learner, 1), "transformers", "torch")
    packed = pack(batch.sequences, start.shape)
    with torch.no_grad():
        ours = run_policy(learner._model, packed, routes_LNX=packed.routes_LNX, use_support=False).logprobs_M
        theirs = run_policy(merged, packed, routes_LNX=packed.routes_LNX, use_support=False).logprobs_M
        base = run_policy(start, packed, routes_LNX=packed.routes_LNX, use_support=False).logprobs_M
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours - base).abs().max() > 1e-3


def test_lora_reference_shares_the_frozen_weights_and_stays_the_start(foreign_recipe, tmp_path: Path) -> None:
    recipe = foreign_recipe("Llama", "learner.lora.rank=4", "optimizer.lr=0.05")
    learner, start = started(recipe, tmp_path)
    assert learner._updater is not None
    reference = learner._updater.reference
    assert reference is not None
    own = {parameter.data_ptr() for parameter in learner._model.parameters()}
    assert all(parameter.data_ptr() in own for parameter in reference.parameters())
    batch = sampled_batch(start)
    report = learner.update(batch)
    packed = pack(batch.sequences, start.shape)
    with torch.no_grad():
        now = run_policy(reference, packed, routes_LNX=None, use_support=False).logprobs_M
        then = run_policy(start, packed, routes_LNX=None, use_support=False).logprobs_M
    assert torch.equal(now, then)
    assert report.kl_B[SAMPLES * GROUPS // 2 :].max() > 0, "the second mini-batch has left the reference"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["learner.lora.dropout=0.1"], "lora.dropout must be 0"),
        (["rl.max_gap_at_lag_0=0"], "implementation=transformers rounds differently"),
        (["learner.indexer=trained"], "implementation: own"),
        (["cold_start.dense_warmup_steps=1"], "implementation: own"),
        (["learner.shard=full", "learner.expert_parallel=true"], "learner.expert_parallel needs model.implementation"),
        (["model.implementation=own", "learner.precision=bf16"], "learner.precision needs model.implementation"),
        (["model.implementation=own", "learner.lora.rank=4"], "learner.lora needs model.implementation"),
    ],
)
def test_recipe_that_asks_for_what_the_implementation_lacks_is_refused(
    overrides: list[str], reason: str, foreign_recipe
) -> None:
    with pytest.raises((RecipeError, ValidationError), match=reason):
        foreign_recipe("Llama", *overrides)


def test_lora_on_a_module_that_is_not_there_or_the_head_is_refused(foreign_recipe, tmp_path: Path) -> None:
    for target in ("q_b_proj", "lm_head"):
        recipe = foreign_recipe("Llama", "learner.lora.rank=4", f"learner.lora.target_modules=[q_proj, {target}]")
        with pytest.raises(ValueError, match=rf"got \['{target}'\]"):
            learner_of(recipe, tmp_path)


def test_resume_with_other_adapters_is_refused(foreign_recipe, tmp_path: Path) -> None:
    learner, _ = started(foreign_recipe("Llama", "learner.lora.rank=4"), tmp_path)
    folder = saved(learner, 1)
    with pytest.raises(ValueError, match="rank or target_modules have changed"):
        learner_of(foreign_recipe("Llama", "learner.lora.rank=8"), tmp_path, folder)


def config_folder(folder: Path, architecture: str, **sizes: Any) -> Path:
    """A checkpoint folder whose weights are not there: what `samepath validate` sees of a hub model."""
    config = getattr(transformers, f"{architecture}Config")(**sizes, architectures=[f"{architecture}ForCausalLM"])
    config.save_pretrained(folder)
    return folder


def test_check_foreign_checkpoint_refuses_an_unknown_router_under_keep_routing_alone(
    foreign_recipe, tmp_path: Path
) -> None:
    folder = config_folder(tmp_path / "config", "MiniMaxM2", num_hidden_layers=1, hidden_size=64)
    with pytest.raises(ValueError, match="Qwen3MoeTopKRouter.*MiniMaxM2ForCausalLM has another.*keep_routing=off"):
        checked_folder(foreign_recipe("Olmoe"), folder)
    checked_folder(foreign_recipe("Olmoe", "rl.keep_routing=off"), folder)


def test_check_foreign_checkpoint_of_a_published_size_reads_no_weights(foreign_recipe, tmp_path: Path) -> None:
    """DeepSeek-V3 as published, 671 billion parameters."""
    checked_folder(foreign_recipe("Olmoe"), config_folder(tmp_path / "config", "DeepseekV3"))


def test_check_foreign_checkpoint_refuses_the_builtin_engine_for_what_the_own_network_cannot_load(
    foreign_recipe, tmp_path: Path
) -> None:
    recipe = foreign_recipe("Olmoe")
    checked_folder(recipe, tmp_path / "Olmoe")
    with pytest.raises(ValueError, match="Set engine=vllm"):
        checked_folder(foreign_recipe("Olmoe", "engine=builtin"), tmp_path / "Olmoe")


def test_check_policy_refuses_to_train_an_indexer_that_is_not_there(foreign_recipe) -> None:
    recipe = foreign_recipe("Llama")
    trained = recipe.model_copy(update={"learner": recipe.learner.model_copy(update={"indexer": "trained"})})
    with pytest.raises(ValueError, match="needs a model with an indexer"):
        checked_policy(trained, TransformersPolicy(tiny_transformers("Llama")))


def test_tokenizer_of_the_tiny_models_fits() -> None:
    assert character_tokenizer(ALPHABET).vocab_size <= tiny_transformers("Llama").config.vocab_size


@pytest.mark.parametrize(("family", "lora"), [("Qwen3Moe", "learner.lora.rank=4"), ("Qwen3", "learner.lora.rank=0")])
def test_checkpoint_written_beside_the_training_has_the_bytes_of_one_written_at_once(
    family: str, lora: str, foreign_recipe, tmp_path: Path
) -> None:
    """With merged adapters, and with a tied matrix, which must not be written twice."""
    learner, start = started(foreign_recipe(family, lora), tmp_path)
    learner.update(sampled_batch(start))
    beside = saved(learner, 1)
    learner._recipe = foreign_recipe(family, lora, "checkpoint.asynchronous=false")
    at_once = saved(learner, 2)
    files = {path.name for path in beside.iterdir()} - {"step.json", "manifest.json"}
    assert {"model.safetensors", "learner.pt"} <= files
    assert all((beside / name).read_bytes() == (at_once / name).read_bytes() for name in files)
