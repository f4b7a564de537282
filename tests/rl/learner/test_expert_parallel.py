"""Ranks whose routed experts lie in place learn what one process learns, and no rank ever has more than its share of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.policy_checks import check_experts
from samepath.rl.learner.ranks import ALONE
from samepath.rl.recipe.learner import LearnerSettings
from tests import expert_cases, rank_cases, sharded_cases
from tests.kernels.triton_here import require_triton
from tests.ranks import on_ranks
from tests.rl.learner.test_sharded_ranks import ALL, FEATURES, LIVE, PIECES


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    """See `rank_cases.uneven_batch`."""
    return rank_cases.uneven_batch()


@pytest.mark.parametrize(
    ("features", "size"),
    [
        (ALL, 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(ALL, 4), (PIECES, 2), (PIECES, 4), (LIVE, 4), (ALL, 1)]
        ),
    ],
)
def test_update_with_experts_in_place_is_that_of_one_process(batch: TrainBatch, features: str, size: int) -> None:
    """Two updates of AdamW with clipping by the norm of all; some ranks have no pass in some rounds."""
    rl, learner = FEATURES[features]
    rl = {"updates_per_rollout": 2, **rl}
    alone = sharded_cases.update(ALONE, batch, rl, learner)
    for seen in on_ranks(size, sharded_cases.update, batch, rl, {**learner, "expert_parallel": True}):
        sharded_cases.assert_same_update(seen, alone)


@pytest.mark.parametrize(
    ("size", "family"),
    [
        (2, "tiny"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(4, "tiny"), (4, "qwen3_moe"), (2, "glm4_moe")]),
    ],
)
def test_forward_has_the_bits_of_one_process_and_holds_a_share_of_the_experts(size: int, family: str) -> None:
    """Unequal numbers of rows, replayed and live. While a layer computes, the rest of it is gathered whole."""
    for equal, missing, experts in on_ranks(size, expert_cases.forward, family):
        assert equal
        assert missing == [0 if one == 0 else experts - experts // size for one in missing]
        assert any(missing)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_rank_holds_its_share_of_weights_gradients_and_moments(size: int) -> None:
    """As without: see the test of the same name of ranks that gather experts too."""
    for seen in on_ranks(size, sharded_cases.held, True):
        share = seen["all"] / size
        assert share * 0.97 <= seen["weights"] <= share * 1.03
        assert seen["gradients"] <= share * 1.03
        assert share * 1.9 <= seen["moments"] <= share * 2.06


def test_weights_leave_a_share_of_the_experts_at_a_time() -> None:
    for same, held, experts in on_ranks(4, expert_cases.published):
        assert same
        assert 0 < held < experts / 4


def test_rank_with_nothing_to_do_takes_part_in_the_exchange(batch: TrainBatch) -> None:
    """One rollout, so one pass, on two ranks, with layers that are run again in the backward."""
    alone = rank_cases.one_rollout(batch)
    rl: dict[str, object] = {"updates_per_rollout": 1}
    learner: dict[str, object] = {"activation_checkpointing": True}
    _, _, _, weights = sharded_cases.update(ALONE, alone, rl, learner)
    for seen in on_ranks(2, sharded_cases.update, alone, rl, {**learner, "expert_parallel": True}):
        for name, weight in weights.items():
            torch.testing.assert_close(seen[3][name], weight, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_rank_that_fails_or_is_killed_inside_a_network_ends_the_others() -> None:
    """They wait for it at an exchange, not at a layer that is gathered."""
    first, second = on_ranks(2, sharded_cases.failing_inside, 1, True)
    assert second.startswith("LearnerLostError: learner rank 1 of 2 failed in the middle of a pass")
    assert first.startswith("LearnerLostError: learner rank 0 of 2")
    (left,) = on_ranks(2, sharded_cases.killed_inside, 1, True, lost=1)
    assert left.startswith("LearnerLostError: learner rank 0 of 2")
    assert "samepath resume" in left


@pytest.mark.slow
def test_numbers_that_are_not_finite_on_one_rank_cost_the_mini_batch_on_all(batch: TrainBatch) -> None:
    segment = batch.sequences[0].segment
    broken = replace(segment, sampler_logprobs=np.where(segment.trained, np.nan, 0).astype(np.float32))
    bad = replace(batch, sequences=(replace(batch.sequences[0], segment=broken), *batch.sequences[1:]))
    rl: dict[str, object] = {"updates_per_rollout": 2, "nonfinite": "skip", "max_gap_at_lag_0": 1e-3}
    for metrics, norms, _, weights in on_ranks(2, sharded_cases.update, bad, rl, {"expert_parallel": True}):
        assert metrics["learner/updates_nonfinite"] == metrics["learner/updates"] == 1
        assert len(norms) == 2
        assert all(bool(weight.isfinite().all()) for weight in weights.values())


@pytest.mark.slow
def test_experts_in_place_compute_in_bfloat16_and_learn_in_float32() -> None:
    """Triton's kernels, interpreted: the rows that come back are added by the kernel that ends the whole product."""
    if require_triton().type != "cpu":
        pytest.skip("these ranks compute on CPUs, where Triton is interpreted")
    for seen in on_ranks(2, expert_cases.rounding):
        assert seen == (True, True, [torch.float32] * 2, True)


IN_PLACE, GATHERED, WHOLE = ("full", "true"), ("full", "false"), ("none", "false")
CHANGES = [
    ((2, IN_PLACE), (1, WHOLE)),
    pytest.param((1, WHOLE), (2, IN_PLACE), marks=pytest.mark.slow),
    pytest.param((2, GATHERED), (4, IN_PLACE), marks=pytest.mark.slow),
    pytest.param((4, IN_PLACE), (2, GATHERED), marks=pytest.mark.slow),
    pytest.param((2, IN_PLACE), (4, IN_PLACE), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("wrote", "goes_on"), CHANGES)
def test_checkpoint_is_read_with_experts_elsewhere(
    tiny_recipe,
    tmp_path: Path,
    batch: TrainBatch,
    wrote: tuple[int, tuple[str, str]],
    goes_on: tuple[int, tuple[str, str]],
) -> None:
    """Bit-equal weights, and the next update is the same. Rows are exchanged where the recipe says so and nowhere else; cold start, KL, trained indexer."""

    def learned(ranks: int, way: tuple[str, str], resume_from: Path | None):
        recipe = tiny_recipe(
            f"learner.ranks={ranks}",
            f"learner.shard={way[0]}",
            f"learner.expert_parallel={way[1]}",
            "learner.indexer=trained",
            "rl.max_gap_at_lag_0=9",
            "cold_start.steps=2",
            "rl.objective.kl.beta=0.1",
        )
        if way == WHOLE:
            return recipe, [expert_cases.learn(ALONE, recipe, tmp_path, resume_from, batch)]
        return recipe, on_ranks(ranks, expert_cases.learn, recipe, tmp_path, resume_from, batch)

    recipe, seen = learned(*wrote, None)
    assert all((exchanges > 0) == (wrote[1] == IN_PLACE) for _, exchanges in seen)
    first = seen[0][0]
    _, seen = learned(*goes_on, recipe.run_dir / "checkpoints" / "step-000001")
    assert all((exchanges > 0) == (goes_on[1] == IN_PLACE) for _, exchanges in seen)
    again = seen[0][0]
    assert list(first[0]) == list(again[0])
    assert all(np.array_equal(again[0][name], values) for name, values in first[0].items())
    assert again[2]["learner/loss"] == pytest.approx(first[2]["learner/loss"], rel=1e-5)
    for name, values in first[1].items():
        np.testing.assert_allclose(again[1][name], values, rtol=1e-4, atol=1e-5)


def test_check_experts_says_what_must_hold() -> None:
    settings = LearnerSettings.model_validate({"ranks": 3, "shard": "full", "expert_parallel": True})
    check_experts(9, settings)
    check_experts(8, settings.model_copy(update={"expert_parallel": False}))
    with pytest.raises(ValueError, match="learner.ranks must divide the model's 8 routed experts; got 3"):
        check_experts(8, settings)
    with pytest.raises(ValueError, match="needs a mixture-of-experts model; this one is dense"):
        check_experts(0, settings)


def test_learner_of_a_model_whose_experts_do_not_divide_is_not_begun(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe("learner.ranks=3", "learner.shard=full", "learner.expert_parallel=true")
    with pytest.raises(ValueError, match="learner.ranks must divide the model's 8 routed experts; got 3"):
        sharded_cases.Learner(recipe, tmp_path, recipe.run_dir, None, ALONE)
