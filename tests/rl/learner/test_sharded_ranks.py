"""Ranks that hold a policy in shards learn what one process learns, and each holds its share alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from samepath.model.files.policy_files import load_policy, policy_tensors
from samepath.model.transformers.policy import TransformersPolicy
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.export import export
from samepath.rl.learner.ranks import ALONE, Ranks
from samepath.rl.learner.sharded_runner import ShardedRunner
from tests import rank_cases, sharded_cases
from tests.conftest import tiny_model
from tests.ranks import on_ranks
from tests.rl.learner.test_transformers_learner import sampled_batch


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """See `rank_cases.uneven_batch`."""
    return rank_cases.uneven_batch()


def test_owners_worked_by_hand() -> None:
    """9 and 5, then 5 and 3, then 1 and a blank pass."""
    runner = ShardedRunner(Ranks(0, 2), tiny_model(), None, train_indexer=False)
    assert runner.owners([5, 5, 1, 9, 3]) == [1, 0, 0, 0, 1]
    assert list(runner._rounds([1, 0, 0, 0, 1])) == [1, 2, 3]
    assert list(ShardedRunner(Ranks(1, 2), tiny_model(), None, train_indexer=False)._rounds([1, 0, 0, 0, 1])) == [
        0,
        4,
        None,
    ]


SEQUENCE = {"enabled": True, "delta": 1e-3}
FEATURES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "replay, supports, kl, mask, indexer": (
        {"objective": {"kl": {"estimator": "unbiased", "beta": 0.1}, "off_policy_mask": SEQUENCE}},
        {"indexer": "trained"},
    ),
    "old policy, recomputed, uneven, rollouts over several passes": (
        {"objective": {"old_policy": "learner", "surrogate": "gspo"}, "max_gap_at_lag_0": 1.0},
        {"activation_checkpointing": True, "indexer": "trained", "max_tokens_per_pass": 50},
    ),
    "live routes, full vocabulary": (
        {"keep_routing": "off", "keep_sampling_mask": "off", "objective": {"kl": {"beta": 0.1}}},
        {"min_passes": 5},
    ),
}


ALL, PIECES, LIVE = FEATURES
CASES = [(ALL, 4), (PIECES, 2)]
SLOW = [(ALL, 1), (ALL, 2), (PIECES, 4), (LIVE, 2), (LIVE, 4)]


@pytest.mark.parametrize(
    ("features", "size"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_update_in_shards_is_that_of_one_process(batch: TrainBatch, features: str, size: int) -> None:
    """Two updates of AdamW with clipping; some ranks have no pass in some rounds."""
    rl, learner = FEATURES[features]
    rl = {"updates_per_rollout": 2, **rl}
    alone = sharded_cases.update(ALONE, batch, rl, learner)
    for seen in on_ranks(size, sharded_cases.update, batch, rl, learner):
        sharded_cases.assert_same_update(seen, alone)


def test_indexers_loss_enters_a_layer_with_the_gradient_of_its_output() -> None:
    """For that the layer's weights are gathered again; on a GPU the loss's own could be there before it, because sums on the CPU run beside."""
    assert on_ranks(1, sharded_cases.entries) == [[(True, True)] * len(tiny_model().layers)]


def test_rank_with_nothing_to_do_takes_part(batch: TrainBatch) -> None:
    """One rollout, so one pass, on three ranks."""
    alone = rank_cases.one_rollout(batch)
    rl: dict[str, object] = {"updates_per_rollout": 1}
    _, _, _, weights = sharded_cases.update(ALONE, alone, rl, {})
    for seen in on_ranks(3, sharded_cases.update, alone, rl, {}):
        for name, weight in weights.items():
            torch.testing.assert_close(seen[3][name], weight, rtol=1e-6, atol=1e-6)
    assert any(not torch.equal(weights[name], weight) for name, weight in policy_tensors(tiny_model()).items())


def test_numbers_that_are_not_finite_on_one_rank_cost_the_mini_batch_on_all(batch: TrainBatch) -> None:
    segment = batch.sequences[0].segment
    broken = replace(segment, sampler_logprobs=np.where(segment.trained, np.nan, 0).astype(np.float32))
    bad = replace(batch, sequences=(replace(batch.sequences[0], segment=broken), *batch.sequences[1:]))
    rl: dict[str, object] = {"updates_per_rollout": 2, "nonfinite": "skip", "max_gap_at_lag_0": 1e-3}
    for metrics, norms, _, weights in on_ranks(2, sharded_cases.update, bad, rl, {}):
        assert metrics["learner/updates_nonfinite"] == metrics["learner/updates"] == 1
        assert len(norms) == 2
        assert all(bool(weight.isfinite().all()) for weight in weights.values())
    stopped = on_ranks(2, sharded_cases.update, bad, {**rl, "nonfinite": "stop"}, {})
    assert all(text.startswith("NonFiniteError") for text in stopped)


def test_error_of_one_rank_between_forward_and_backward_is_raised_on_all() -> None:
    seen = on_ranks(3, sharded_cases.failing, 1)
    assert seen == [
        f"NonFiniteError: no number {note}" for note in ("on learner rank 1 of 3", "", "on learner rank 1 of 3")
    ]


@pytest.mark.parametrize("size", [2, 4])
def test_rank_holds_its_share_of_weights_gradients_and_moments(size: int) -> None:
    """The tiny model's matrices divide by 4, its head and embedding of 19 rows do not."""
    for seen in on_ranks(size, sharded_cases.held):
        share = seen["all"] / size
        # One row more of a matrix that does not divide.
        assert share * 0.97 <= seen["weights"] <= share * 1.03
        assert seen["gradients"] <= share * 1.03
        assert share * 1.9 <= seen["moments"] <= share * 2.06


def test_weights_gathered_in_bfloat16_are_masters_rounded() -> None:
    """A pass has the bits of whole bfloat16 weights, gradients come as float32, and a step smaller than a rounding is kept."""
    for seen in on_ranks(2, sharded_cases.rounding):
        assert seen == (True, True, True, [torch.float32])


CHANGES = [
    (("1", "none"), ("2", "full")),
    (("2", "full"), ("1", "none")),
    pytest.param(("4", "full"), ("1", "full"), marks=pytest.mark.slow),
    pytest.param(("1", "full"), ("2", "full"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("wrote", "goes_on"), CHANGES)
def test_checkpoint_is_read_by_another_number_of_ranks(
    tiny_recipe, tmp_path: Path, batch: TrainBatch, wrote: tuple[str, str], goes_on: tuple[str, str]
) -> None:
    """Bit-equal weights, and the next update is the same, so moments, counts and version are."""

    def learned(ranks: str, shard: str, resume_from: Path | None):
        recipe = tiny_recipe(
            f"learner.ranks={ranks}", f"learner.shard={shard}", "learner.indexer=trained", "rl.max_gap_at_lag_0=9"
        )
        if shard == "none":
            return recipe, [sharded_cases.learn(ALONE, recipe, tmp_path, resume_from, batch)]
        return recipe, on_ranks(int(ranks), sharded_cases.learn, recipe, tmp_path, resume_from, batch)

    recipe, (first, *_) = learned(*wrote, None)
    checkpoint = recipe.run_dir / "checkpoints" / "step-000001"
    assert (checkpoint / "shards").is_dir() == (wrote[1] == "full")
    _, (again, *_) = learned(*goes_on, checkpoint)
    assert first[0].keys() == again[0].keys()
    assert all(np.array_equal(again[0][name], values) for name, values in first[0].items())
    assert again[2]["learner/loss"] == pytest.approx(first[2]["learner/loss"], rel=1e-5)
    for name, values in first[1].items():
        np.testing.assert_allclose(again[1][name], values, rtol=1e-4, atol=1e-5)
        assert not np.array_equal(values, first[0][name]) or "indexer" in name or "bias" in name


FOREIGN = [
    ("Qwen3Moe", ("learner.lora.rank=4", "rl.objective.kl.beta=0.1")),
    pytest.param("Llama", ("learner.activation_checkpointing=true",), marks=pytest.mark.slow),
    pytest.param("DeepseekV3", ("learner.precision=bf16",), marks=pytest.mark.slow),
    pytest.param("Qwen3", (), marks=pytest.mark.slow),
    pytest.param("Mixtral", ("learner.lora.rank=4", "learner.activation_checkpointing=true"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "settings"), FOREIGN)
def test_foreign_model_in_shards_learns_what_one_process_learns(
    foreign_recipe, tmp_path: Path, family: str, settings: tuple[str, ...]
) -> None:
    """Tied heads, experts on replayed routes, sigmoid routers with a bias, adapters, recomputation, bfloat16; also from a checkpoint of shards."""
    common = (*settings, "optimizer.epsilon=1.0", "rl.max_gap_at_lag_0=0.5", "learner.min_passes=3")
    policy = load_policy(Path(foreign_recipe(family).model.path), "transformers", "torch")
    assert isinstance(policy, TransformersPolicy)
    batch = sampled_batch(policy)
    alone = foreign_recipe(family, *common, "name=alone")
    whole = sharded_cases.learn(ALONE, alone, tmp_path, None, batch)
    recipe = foreign_recipe(family, *common, "learner.ranks=2", "learner.shard=full", "name=sharded")
    checkpoint = recipe.run_dir / "checkpoints" / "step-000001"
    (seen, again), _ = on_ranks(2, sharded_cases.learn_and_go_on, recipe, tmp_path, batch)
    # Of bfloat16 a pass with other rows beside it has other last bits.
    bound = 1e-3 if "learner.precision=bf16" in settings else 1e-6
    assert seen[1].keys() == whole[1].keys()
    for name, values in whole[1].items():
        np.testing.assert_allclose(seen[1][name], values, rtol=bound, atol=bound)
        assert np.array_equal(again[0][name], seen[0][name])
        assert np.array_equal(again[1][name], seen[1][name])
    assert seen[2]["learner/loss"] == pytest.approx(whole[2]["learner/loss"], rel=1e-4, abs=bound)
    exported = export(checkpoint, tmp_path / "exported", 1 << 30)
    (model_file,) = exported.folder.glob("*.safetensors")
    for name, tensor in load_file(model_file).items():
        assert np.array_equal(tensor.float().numpy(), seen[0][name]), name


def test_error_inside_a_network_ends_the_other_ranks_at_once() -> None:
    """They wait for this one at a layer, where nothing can be told them."""
    first, second = on_ranks(2, sharded_cases.failing_inside, 1)
    assert second.startswith("LearnerLostError: learner rank 1 of 2 failed in the middle of a pass")
    assert "ValueError: no such layer" in second
    assert first.startswith("LearnerLostError: learner rank 0 of 2")


def test_rank_that_is_killed_inside_a_network_is_noticed_by_the_others_at_once() -> None:
    for text in on_ranks(3, sharded_cases.killed_inside, 1, lost=1):
        assert text.startswith("LearnerLostError: learner rank ")
        assert "samepath resume" in text


def test_pass_without_a_token_in_the_loss_has_no_part_in_the_gradient(batch: TrainBatch) -> None:
    """Its rank sends zeros for every weight: a collective of other sizes would never end."""
    some = replace(batch, in_loss_B=np.arange(len(batch.in_loss_B)) >= 8)
    rl: dict[str, object] = {"updates_per_rollout": 1}
    learner: dict[str, object] = {"max_tokens_per_pass": 40}
    metrics, _, gradients, _ = sharded_cases.update(ALONE, some, rl, learner)
    scale = max(float(one.abs().max()) for one in gradients.values())
    for seen in on_ranks(2, sharded_cases.update, some, rl, learner):
        assert seen[0]["learner/loss"] == pytest.approx(metrics["learner/loss"], rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(seen[2][name], gradient, rtol=1e-6, atol=1e-6 * scale)
