"""A conversation is trained as one answer: how it is cut, into segments or passes, changes neither the loss nor its gradient."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samepath.rl.batch.pack import TrainSequence
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.mini_batches import MicroBatch, MiniBatch, Preparation
from samepath.rl.learner.pass_runner import BY_ITSELF
from samepath.rl.learner.spread_rollouts import with_sums
from samepath.rl.objective.objective import LossTerms, policy_loss
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rollout.segments import joined_segments
from samepath.rollout.types import Segment
from tests.conftest import tiny_model
from tests.conversations import conversations, drawn_call, numbered, one_segment_a_call

MODEL = tiny_model()
GROUP_SIZE = 2
Cut = Callable[[Sequence[Segment]], tuple[Segment, ...]]


def an_epoch(calls: Sequence[Segment]) -> tuple[Segment, ...]:
    """One segment an epoch, as it is trained."""
    return joined_segments(calls, exact=True)


def batch_of(rollouts: Sequence[Sequence[Segment]], cut: Cut) -> TrainBatch:
    """Conversations in groups of two, each cut in the given way; one of three is out of the loss."""
    segments = [cut(calls) for calls in rollouts]
    count = len(rollouts)
    return TrainBatch(
        sequences=tuple(
            TrainSequence(segment=segment, temperature=1.0, name="g/0") for own in segments for segment in own
        ),
        rollout_S=np.repeat(np.arange(count), [len(own) for own in segments]),
        names=tuple(map(str, range(count))),
        advantages_B=(np.arange(count) % 2 - 0.6).astype(np.float32),
        group_B=np.arange(count) // GROUP_SIZE,
        datasets=("sums",) * count,
        in_loss_B=np.arange(count) % 3 != 2,
    )


def mini_batch(batch: TrainBatch, rl: AlgorithmSettings, max_tokens: int) -> MiniBatch:
    learner = LearnerSettings(max_tokens_per_pass=max_tokens)
    (passes,) = Preparation(MODEL, rl, learner, BY_ITSELF).mini_batches(batch, 0)
    return passes


def prepared(batch: TrainBatch, rl: AlgorithmSettings, max_tokens: int) -> list[MicroBatch]:
    return list(mini_batch(batch, rl, max_tokens).own.values())


def step(
    batch: TrainBatch, rl: AlgorithmSettings, max_tokens: int, noise: float
) -> tuple[Tensor, Tensor, list[LossTerms], list[MicroBatch]]:
    """Loss, its gradient to each drawn token's log-probability, and what the passes said.

    In place of a network stands a number a drawn token; in the order of the batch these are the same ones however it is cut.
    """
    passes = mini_batch(batch, rl, max_tokens)
    parts = list(passes.own.values())
    sampler_M = torch.cat([part.packed.sampler_logprobs_M for part in parts]).double()
    generator = torch.Generator().manual_seed(len(sampler_M))
    learner_M, old_M, reference_M = (
        sampler_M + noise * torch.randn(len(sampler_M), generator=generator).double() for _ in range(3)
    )
    learner_M.requires_grad_()
    ends = np.cumsum([0, *(len(part.packed.rows_M) for part in parts)])
    rows = {part.plan.sequences: slice(first, end) for part, first, end in zip(parts, ends, ends[1:])}
    parts = [
        replace(
            part,
            inputs=replace(
                part.inputs,
                reference_logprobs_M=reference_M[rows[part.plan.sequences]],
                old_logprobs_M=old_M[rows[part.plan.sequences]]
                if rl.objective.old_policy == "learner"
                else part.inputs.old_logprobs_M,
            ),
        )
        for part in parts
    ]
    passes = replace(passes, own=dict(enumerate(parts)))
    known = with_sums(passes, rl.objective, lambda part: learner_M.detach()[rows[part.plan.sequences]])
    parts = list(known.own.values())
    losses = [policy_loss(learner_M[rows[part.plan.sequences]], part.inputs, rl.objective) for part in parts]
    loss = torch.stack([one for one, _ in losses]).sum()
    (gradient_M,) = torch.autograd.grad(loss, learner_M)
    return loss.detach(), gradient_M, [terms for _, terms in losses], parts


def settings_of(
    surrogate: str, aggregation: str, importance: str = "none", scope: str = "rollout"
) -> AlgorithmSettings:
    """One update a step; masks, clips and importance weights that bind."""
    objective = {
        "surrogate": surrogate,
        "old_policy": "sampler" if importance == "none" else "learner",
        "importance": {"mode": importance, "cap": 1.05, "band_low": 0.9, "band_high": 1.1},
        "kl": {"beta": 0.5},
        "off_policy_mask": {"delta": 0.02, "scope": scope},
        "aggregation": {"mode": aggregation, "fixed_length": 7 if aggregation == "constant" else 0},
    }
    return AlgorithmSettings.model_validate({"updates_per_rollout": 1, "objective": objective})


rollouts = st.lists(conversations(truncated=True), min_size=2, max_size=3)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
@pytest.mark.parametrize("surrogate", ["grpo", "gspo", "cispo"])
@settings(deadline=None, max_examples=5)
@given(rollouts, st.sampled_from(["none", "truncated", "banded"]), st.integers(16, 40))
def test_any_cutting_gives_the_loss_and_the_gradient_of_one_pass(
    surrogate: str, aggregation: str, made: list[list[Segment]], importance: str, max_tokens: int
) -> None:
    rl = settings_of(surrogate, aggregation, importance)
    whole, whole_gradient_M, _, parts = step(batch_of(made, an_epoch), rl, 100_000, 0.1)
    assert len(parts) == 1
    for cut, limit in ((one_segment_a_call, 100_000), (an_epoch, max_tokens), (one_segment_a_call, 16)):
        loss, gradient_M, _, _ = step(batch_of(made, cut), rl, limit, 0.1)
        torch.testing.assert_close(loss, whole, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gradient_M, whole_gradient_M, rtol=1e-6, atol=1e-7)


def long_conversation(seed: int = 0) -> list[Segment]:
    """Three epochs of 15, 9 and 18 rows: with 16 rows a pass each is a pass of its own."""
    rng = np.random.default_rng(seed)
    ids = [[int(token) for token in rng.integers(2, 17, length)] for length in (8, 8, 5, 5, 9, 10)]
    return numbered([drawn_call(ids[0], ids[1]), drawn_call(ids[2], ids[3]), drawn_call(ids[4], ids[5])], [0, 1, 2])


@pytest.mark.parametrize("scope", ["rollout", "segment"])
@pytest.mark.parametrize("importance", ["none", "banded"])
@pytest.mark.parametrize("surrogate", ["grpo", "gspo", "cispo"])
def test_rollout_spread_over_passes_has_the_result_of_one(surrogate: str, importance: str, scope: str) -> None:
    rl = settings_of(surrogate, "sequence_mean", importance, scope)
    batch = batch_of([long_conversation(0), long_conversation(1)], an_epoch)
    whole, whole_gradient_M, (terms,), _ = step(batch, rl, 100_000, 0.3)
    loss, gradient_M, part_terms, parts = step(batch, rl, 16, 0.3)
    assert [part.plan.rollouts for part in parts] == [(0,), (0,), (0,), (1,), (1,), (1,)]
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient_M, whole_gradient_M, rtol=1e-6, atol=1e-7)
    # Each pass knows the statistic of the whole.
    seen = {
        unit: value for part, one in zip(parts, part_terms) for unit, value in zip(part.plan.units, one.off_policy_J)
    }
    torch.testing.assert_close(torch.stack([seen[unit] for unit in sorted(seen)]), terms.off_policy_J)
    if surrogate == "gspo":
        torch.testing.assert_close(torch.cat([one.ratio_M for one in part_terms]), terms.ratio_M)


def test_conversations_that_fit_stay_whole_and_ask_for_no_sums() -> None:
    batch = batch_of([long_conversation(0), long_conversation(1)], an_epoch)
    # The first segment of the second conversation would fit behind the first conversation.
    passes = mini_batch(batch, settings_of("gspo", "sequence_mean"), 60)
    parts = passes.plans
    assert [part.rollouts for part in parts] == [(0,), (1,)]
    assert [part.sequences for part in parts] == [(0, 1, 2), (3, 4, 5)]

    def refused(part: MicroBatch) -> Tensor:
        raise AssertionError("no pass is needed")

    assert with_sums(passes, settings_of("gspo", "sequence_mean").objective, refused) is passes


def test_sums_leave_out_a_number_that_is_not_finite() -> None:
    """Its own pass is stopped or left out for it; the others must not become as bad."""
    rl = settings_of("gspo", "sequence_mean")
    passes = mini_batch(batch_of([long_conversation(0), long_conversation(1)], an_epoch), rl, 16)

    def scored(part: MicroBatch) -> Tensor:
        logprobs_M = part.packed.sampler_logprobs_M.clone()
        if part is passes.own[1]:
            logprobs_M[0] = torch.nan
        return logprobs_M

    for part in with_sums(passes, rl.objective, scored).own.values():
        assert part.inputs.sums is not None
        for column in (part.inputs.sums.log_ratio_B, part.inputs.sums.off_policy_J):
            assert column.tolist() == [0.0]
        assert part.inputs.sums.policy_weight_B.tolist() == [1.0]


def test_weights_of_a_rollout_of_two_segments_worked_by_hand() -> None:
    """Two answers of 2 + 6 and 4 tokens: 1/(2·8) and 1/(2·4). By segments they would be 1/6, 1/18 and 1/12."""
    two = numbered([drawn_call([2], [3, 4]), drawn_call([2, 5], [3, 4, 5, 6, 7, 8])], [0, 1])
    four = numbered([drawn_call([2], [5, 6, 7, 8])], [0])
    (part,) = prepared(batch_of([two, four], an_epoch), settings_of("grpo", "sequence_mean"), 1000)
    assert part.packed.sequence_M.tolist() == [0] * 2 + [1] * 6 + [2] * 4
    assert part.packed.rollout_M.tolist() == part.inputs.rollout_M.tolist() == [0] * 8 + [1] * 4
    assert part.inputs.weights_M.tolist() == [1 / 16] * 8 + [1 / 8] * 4


def test_sequence_ratio_of_a_rollout_of_two_segments_worked_by_hand() -> None:
    """log(π/π_old) is 0.2 in the first segment, 0, 0 and 0.2 in the second: one ratio exp(0.1), not exp(0.2) and exp(0.0667)."""
    two = numbered([drawn_call([2], [3]), drawn_call([2, 5], [3, 4, 5])], [0, 1])
    rl = settings_of("gspo", "sequence_mean")
    (part,) = prepared(batch_of([two, two], an_epoch), rl, 1000)
    sampler_M = part.packed.sampler_logprobs_M
    learner_M = sampler_M + torch.tensor([0.2, 0, 0, 0.2] + [0.0] * 4)
    _, terms = policy_loss(learner_M, replace(part.inputs, reference_logprobs_M=sampler_M), rl.objective)
    torch.testing.assert_close(terms.ratio_M, torch.tensor([0.1] * 4 + [0.0] * 4).exp())


@pytest.mark.parametrize(("scope", "kept"), [("rollout", [True] * 6), ("segment", [True] * 2 + [False] * 4)])
def test_off_policy_mask_decides_on_the_rollout_or_on_each_segment_as_set(scope: str, kept: list[bool]) -> None:
    """A bad answer of 2 + 4 tokens: the mean log(π_s/π) of its segments is −0.07 and 0.05, of all 0.01."""
    two = numbered([drawn_call([2], [3, 4]), drawn_call([2, 5], [3, 4, 5, 6])], [0, 1])
    (part,) = prepared(batch_of([two, two], an_epoch), settings_of("grpo", "sequence_mean", scope=scope), 1000)
    sampler_M = part.packed.sampler_logprobs_M
    learner_M = sampler_M + torch.tensor([0.07] * 2 + [-0.05] * 4 + [0.0] * 6)
    rl = settings_of("grpo", "sequence_mean", scope=scope)
    inputs = replace(part.inputs, reference_logprobs_M=sampler_M)
    _, terms = policy_loss(learner_M, inputs, rl.objective)
    assert terms.kept_J[inputs.unit_M].tolist() == kept + [True] * 6
    assert terms.off_policy_J.tolist() == pytest.approx(
        [0.01, 0] if scope == "rollout" else [-0.07, 0.05, 0, 0], abs=1e-6
    )
