import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samepath.rl.objective.aggregation import token_weights
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.objective import policy_loss
from samepath.rl.recipe.objective import (
    AggregationSettings,
    ImportanceSettings,
    KlSettings,
    ObjectiveSettings,
    SequenceMaskSettings,
)

AGGREGATIONS = ("sequence_mean", "token_mean", "constant")
SURROGATES = ("grpo", "gspo", "cispo")
ESTIMATORS = ("unbiased", "k1", "k2", "k3")
NAN = float("nan")


def objective(
    surrogate: str = "grpo",
    aggregation: str = "sequence_mean",
    estimator: str = "unbiased",
    importance: str = "none",
    delta: float = 0.1,
) -> ObjectiveSettings:
    return ObjectiveSettings(
        surrogate=surrogate,
        old_policy="sampler" if importance == "none" else "learner",
        importance=ImportanceSettings(mode=importance, cap=1.1, band_low=0.8, band_high=1.2),
        kl=KlSettings(estimator=estimator),
        off_policy_mask=SequenceMaskSettings(delta=delta),
        aggregation=AggregationSettings(mode=aggregation, fixed_length=7 if aggregation == "constant" else 0),
    )


def ragged_batch(
    lengths: list[int], seed: int, chosen: ObjectiveSettings, group_size: int = 2
) -> tuple[Tensor, LossInputs]:
    """Sequences of one prompt row (NaN everywhere) and `lengths` sampled tokens; policies differ by some 0.3 nats."""
    generator = torch.Generator().manual_seed(seed)
    num_rollouts = len(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rollout_M = torch.arange(num_rollouts).repeat_interleave(torch.tensor(lengths) + 1)
    in_loss_M = torch.ones_like(rollout_M, dtype=torch.bool)
    in_loss_M[torch.tensor(list(itertools.accumulate([0, *lengths[:-1]]))) + torch.arange(num_rollouts)] = False
    sampler_M = (-normal(len(rollout_M)).abs() - 0.1).masked_fill(~in_loss_M, NAN)
    old_M = sampler_M + 0.2 * normal(len(rollout_M))
    group_B = torch.arange(num_rollouts) // group_size
    return (sampler_M + 0.3 * normal(len(rollout_M)) - 0.05).requires_grad_(), LossInputs(
        sampler_logprobs_M=sampler_M,
        old_logprobs_M=sampler_M if chosen.old_policy == "sampler" else old_M,
        reference_logprobs_M=sampler_M + 0.3 * normal(len(rollout_M)),
        advantages_B=normal(num_rollouts),
        beta_B=normal(num_rollouts).abs(),
        rollout_M=rollout_M,
        unit_M=rollout_M,
        rollout_J=torch.arange(num_rollouts),
        in_loss_M=in_loss_M,
        weights_M=token_weights(rollout_M, in_loss_M, group_B, chosen.aggregation, torch.float64),
    )


def kl_by_the_formula(estimator: str, now: Tensor, sampler: Tensor, reference: Tensor) -> Tensor:
    x = (reference - now).exp()
    match estimator:
        case "unbiased":
            return (now - sampler).exp() * (x - x.log() - 1)
        case "k1":
            return -x.log()
        case "k2":
            return x.log() ** 2 / 2
        case _:
            return x - x.log() - 1


def loss_by_loops(logprobs_M: Tensor, inputs: LossInputs, chosen: ObjectiveSettings, group_size: int = 2) -> Tensor:
    """The objective one token at a time, as the papers print it, with denominators of its own."""
    num_rollouts = len(inputs.advantages_B)
    rows = [
        [n for n in range(len(logprobs_M)) if inputs.rollout_M[n] == i and inputs.in_loss_M[n]]
        for i in range(num_rollouts)
    ]
    num_groups = math.ceil(num_rollouts / group_size)
    old_M = inputs.old_logprobs_M
    loss = torch.zeros((), dtype=torch.float64)
    for i, tokens in enumerate(rows):
        group_count = min(group_size, num_rollouts - i // group_size * group_size)
        advantage = inputs.advantages_B[i]
        gap = sum(float(inputs.sampler_logprobs_M[n] - logprobs_M[n].detach()) for n in tokens) / len(tokens)
        keep = 0.0 if advantage < 0 and gap > chosen.off_policy_mask.delta else 1.0
        for n in tokens:
            ratio = (logprobs_M[n] - old_M[n]).exp()
            if chosen.surrogate == "gspo":
                ratio = torch.stack([logprobs_M[m] - old_M[m] for m in tokens]).mean().exp()
            low, high = 1 - chosen.clip_low, 1 + chosen.clip_high
            if chosen.surrogate == "cispo":
                term = min(max(float(ratio.detach()), low), high) * advantage * logprobs_M[n]
            else:
                term = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
            importance = math.exp(float(old_M[n] - inputs.sampler_logprobs_M[n]))
            match chosen.importance.mode:
                case "none":
                    importance = 1.0
                case "truncated":
                    importance = min(importance, chosen.importance.cap)
                case "banded":
                    importance = (
                        importance if chosen.importance.band_low <= importance <= chosen.importance.band_high else 0.0
                    )
            weight = {
                "sequence_mean": 1 / (num_groups * group_count * len(tokens)),
                "token_mean": 1 / sum(len(row) for row in rows),
                "constant": 1 / (num_rollouts * max(chosen.aggregation.fixed_length, 1)),
            }[chosen.aggregation.mode]
            kl = kl_by_the_formula(
                chosen.kl.estimator, logprobs_M[n], inputs.sampler_logprobs_M[n], inputs.reference_logprobs_M[n]
            )
            loss = loss - weight * (keep * importance * term - inputs.beta_B[i] * kl)
    return loss


def loss_and_gradient(logprobs_M: Tensor, inputs: LossInputs, chosen: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    loss, _ = policy_loss(logprobs_M, inputs, chosen)
    (gradient_M,) = torch.autograd.grad(loss, logprobs_M)
    return loss.detach(), gradient_M


def assert_equals_loops(lengths: list[int], seed: int, chosen: ObjectiveSettings) -> None:
    logprobs_M, inputs = ragged_batch(lengths, seed, chosen)
    loss, gradient_M = loss_and_gradient(logprobs_M, inputs, chosen)
    expected = loss_by_loops(logprobs_M, inputs, chosen)
    (expected_gradient_M,) = torch.autograd.grad(expected, logprobs_M)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    # Prompt rows hold NaN, and the loop never touches them: their gradient is exactly 0 on both sides.
    torch.testing.assert_close(gradient_M, expected_gradient_M, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_policy_loss_of_every_combination_equals_loops(aggregation: str, surrogate: str, estimator: str) -> None:
    assert_equals_loops([3, 1, 4, 2, 5], 11, objective(surrogate, aggregation, estimator))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("importance", ["truncated", "banded"])
def test_policy_loss_with_importance_weights_equals_loops(surrogate: str, importance: str) -> None:
    assert_equals_loops([3, 1, 4, 2], 12, objective(surrogate, importance=importance))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.integers(0, 2**31),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from(SURROGATES),
    st.sampled_from(ESTIMATORS),
)
def test_policy_loss_of_random_ragged_batches_equals_loops(
    lengths: list[int], seed: int, aggregation: str, surrogate: str, estimator: str
) -> None:
    assert_equals_loops(lengths, seed, objective(surrogate, aggregation, estimator))


def hand_batch() -> tuple[Tensor, LossInputs]:
    """Two one-prompt sequences: one token with π = 0.5, π_s = 0.25, A = 1; one with π = 0.2, π_s = 0.4, A = −1; π_ref = π_s."""
    sampler_M = torch.tensor([0.25, 0.4], dtype=torch.float64).log()
    inputs = LossInputs(
        sampler_logprobs_M=sampler_M,
        old_logprobs_M=sampler_M,
        reference_logprobs_M=sampler_M,
        advantages_B=torch.tensor([1.0, -1.0], dtype=torch.float64),
        beta_B=torch.tensor([0.1, 0.1], dtype=torch.float64),
        rollout_M=torch.tensor([0, 1]),
        unit_M=torch.tensor([0, 1]),
        rollout_J=torch.tensor([0, 1]),
        in_loss_M=torch.tensor([True, True]),
        weights_M=torch.tensor([0.5, 0.5], dtype=torch.float64),
    )
    return torch.tensor([0.5, 0.2], dtype=torch.float64).log().requires_grad_(), inputs


def test_policy_loss_hand_worked() -> None:
    logprobs_M, inputs = hand_batch()
    # r = 2 is clipped to 1.28; r = 0.5 with A < 0 to 0.8. KL: 2·(0.5 + log 2 − 1) and 0.5·(2 − log 2 − 1). δ is out of reach.
    kl_sum = 2 * (math.log(2) - 0.5) + 0.5 * (1 - math.log(2))
    loss, terms = policy_loss(logprobs_M, inputs, objective(delta=10.0))
    assert loss.item() == pytest.approx(-0.5 * (1.28 - 0.8 - 0.1 * kl_sum), rel=1e-14)
    assert terms.ratio_M.tolist() == pytest.approx([2.0, 0.5])
    assert terms.clipped_high_M.tolist() == [True, False]
    assert terms.clipped_low_M.tolist() == [False, True]
    assert terms.kl_M.sum().item() == pytest.approx(kl_sum)


def test_policy_loss_mask_removes_the_surrogate_and_leaves_kl_and_denominators() -> None:
    logprobs_M, inputs = hand_batch()
    # Sequence 1 has A < 0 and log(π_s/π) = log 2 = 0.69 > 0.5; sequence 0 is as far off but good.
    kl_sum = 2 * (math.log(2) - 0.5) + 0.5 * (1 - math.log(2))
    loss, gradient_M = loss_and_gradient(logprobs_M, inputs, objective(delta=0.5))
    _, terms = policy_loss(logprobs_M, inputs, objective(delta=0.5))
    assert terms.kept_J.tolist() == [True, False]
    assert terms.off_policy_J.tolist() == pytest.approx([-math.log(2), math.log(2)])
    # The denominator stays 2 although one sequence of two is masked.
    assert loss.item() == pytest.approx(-0.5 * (1.28 - 0.1 * kl_sum), rel=1e-14)
    # What is left on the masked token is the KL's gradient, β·w·ρ·log(π/π_ref).
    assert gradient_M[1].item() == pytest.approx(0.5 * 0.1 * 0.5 * math.log(0.5), rel=1e-12)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_policy_loss_masked_and_unmasked_differ_by_exactly_the_masked_surrogates(surrogate: str) -> None:
    chosen = objective(surrogate, delta=0.02)
    logprobs_M, inputs = ragged_batch([3, 2, 4, 1, 2, 3], 5, chosen)
    masked, terms = policy_loss(logprobs_M, inputs, chosen)
    unmasked, _ = policy_loss(
        logprobs_M, inputs, chosen.model_copy(update={"off_policy_mask": SequenceMaskSettings(enabled=False)})
    )
    assert 0 < int(terms.kept_J.sum()) < 6
    dropped_M = (~terms.kept_J)[inputs.rollout_M] * inputs.weights_M * terms.surrogate_M
    torch.testing.assert_close(masked - unmasked, dropped_M.sum())


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_policy_loss_at_ratio_one_gives_the_reinforce_gradient(surrogate: str) -> None:
    chosen = objective(surrogate)
    _, inputs = ragged_batch([2, 3], 3, chosen)
    inputs = replace(inputs, beta_B=torch.zeros(2), reference_logprobs_M=None)
    logprobs_M = inputs.sampler_logprobs_M.clone().requires_grad_()
    _, gradient_M = loss_and_gradient(logprobs_M, inputs, chosen)
    torch.testing.assert_close(gradient_M, -inputs.weights_M * inputs.advantages_B[inputs.rollout_M])


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_policy_loss_zero_advantage_without_kl_has_zero_gradient(surrogate: str) -> None:
    chosen = objective(surrogate)
    logprobs_M, inputs = ragged_batch([2, 3, 1], 4, chosen)
    inputs = replace(inputs, beta_B=torch.zeros(3), advantages_B=torch.zeros(3))
    loss, gradient_M = loss_and_gradient(logprobs_M, inputs, chosen)
    assert loss.item() == 0.0
    assert torch.equal(gradient_M, torch.zeros_like(gradient_M))


def rows_of(inputs: LossInputs, order_M: Tensor, sequences_B: Tensor) -> LossInputs:
    """The chosen rows in the chosen order, with sequences renumbered to their place in `sequences_B`."""
    new_number = {int(old): new for new, old in enumerate(sequences_B)}
    rollout_M = torch.tensor([new_number[int(old)] for old in inputs.rollout_M[order_M]])
    return LossInputs(
        sampler_logprobs_M=inputs.sampler_logprobs_M[order_M],
        old_logprobs_M=inputs.old_logprobs_M[order_M],
        reference_logprobs_M=inputs.reference_logprobs_M[order_M],
        advantages_B=inputs.advantages_B[sequences_B],
        beta_B=inputs.beta_B[sequences_B],
        rollout_M=rollout_M,
        unit_M=rollout_M,
        rollout_J=torch.arange(len(sequences_B)),
        in_loss_M=inputs.in_loss_M[order_M],
        weights_M=inputs.weights_M[order_M],
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_policy_loss_permuted_tokens_and_sequences_change_nothing(aggregation: str, surrogate: str) -> None:
    chosen = objective(surrogate, aggregation)
    logprobs_M, inputs = ragged_batch([3, 1, 4, 2], 6, chosen)
    generator = torch.Generator().manual_seed(0)
    order_M = torch.randperm(len(logprobs_M), generator=generator)
    loss, gradient_M = loss_and_gradient(logprobs_M, inputs, chosen)
    permuted_M = logprobs_M.detach()[order_M].requires_grad_()
    permuted = rows_of(inputs, order_M, torch.randperm(4, generator=generator))
    permuted_loss, permuted_gradient_M = loss_and_gradient(permuted_M, permuted, chosen)
    torch.testing.assert_close(permuted_loss, loss, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(permuted_gradient_M, gradient_M[order_M], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_policy_loss_split_into_micro_batches_adds_up_to_the_whole(aggregation: str, surrogate: str) -> None:
    chosen = objective(surrogate, aggregation)
    logprobs_M, inputs = ragged_batch([3, 1, 4, 2, 2], 7, chosen)
    loss, gradient_M = loss_and_gradient(logprobs_M, inputs, chosen)
    total = torch.zeros((), dtype=torch.float64)
    for sequences in ([0, 3], [1], [2, 4]):
        sequences_B = torch.tensor(sequences)
        order_M = torch.isin(inputs.rollout_M, sequences_B).nonzero()[:, 0]
        part_M = logprobs_M.detach()[order_M].requires_grad_()
        part_loss, part_gradient_M = loss_and_gradient(part_M, rows_of(inputs, order_M, sequences_B), chosen)
        total += part_loss
        torch.testing.assert_close(part_gradient_M, gradient_M[order_M], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(total, loss, rtol=1e-13, atol=1e-14)


def test_policy_loss_kl_ratio_stays_per_token_under_a_sequence_surrogate() -> None:
    chosen = objective("gspo")
    logprobs_M, inputs = ragged_batch([4], 8, chosen)
    _, gspo = policy_loss(logprobs_M, inputs, chosen)
    _, grpo = policy_loss(logprobs_M, inputs, objective("grpo"))
    assert torch.equal(gspo.kl_M, grpo.kl_M)
    assert len(gspo.ratio_M[inputs.in_loss_M].unique()) == 1


def test_policy_loss_in_float32_is_close_to_float64() -> None:
    chosen = objective()
    logprobs_M, inputs = ragged_batch([30, 40, 25, 33], 9, chosen)
    loss, _ = policy_loss(logprobs_M, inputs, chosen)
    narrow = LossInputs(
        **{
            name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in ((name, getattr(inputs, name)) for name in LossInputs.__slots__)
        }
    )
    narrow_loss, _ = policy_loss(logprobs_M.detach().float().requires_grad_(), narrow, chosen)
    assert narrow_loss.dtype == torch.float32
    assert narrow_loss.item() == pytest.approx(loss.item(), rel=1e-5)


def test_policy_loss_terms_carry_no_gradient_and_are_zero_on_prompt_rows() -> None:
    logprobs_M, inputs = ragged_batch([2, 2], 10, objective())
    _, terms = policy_loss(logprobs_M, inputs, objective())
    for name in terms.__slots__:
        value = getattr(terms, name)
        assert not value.requires_grad, name
        if name.endswith("_M"):
            assert not value[~inputs.in_loss_M].any(), name


@pytest.mark.parametrize("policy", ["learner", "sampler", "old", "reference"])
@pytest.mark.parametrize("value", [NAN, -math.inf])
def test_policy_loss_non_finite_trained_logprob_is_refused_with_count_and_place(policy: str, value: float) -> None:
    chosen = objective(importance="truncated")
    logprobs_M, inputs = ragged_batch([2, 2], 10, chosen)
    spoilt = (logprobs_M if policy == "learner" else getattr(inputs, f"{policy}_logprobs_M")).detach().clone()
    spoilt[[2, 4]] = value
    if policy == "learner":
        logprobs_M = spoilt
    else:
        inputs = replace(inputs, **{f"{policy}_logprobs_M": spoilt})
    with pytest.raises(
        ValueError, match=rf"The {policy} log-probability .* got 2 of 4 that are not, the first {value} at row 2"
    ):
        policy_loss(logprobs_M, inputs, chosen)


def test_policy_loss_kl_without_reference_is_refused() -> None:
    logprobs_M, inputs = ragged_batch([2], 1, objective())
    with pytest.raises(ValueError, match="A KL weight above 0 needs reference_logprobs_M"):
        policy_loss(logprobs_M, replace(inputs, reference_logprobs_M=None), objective())


def test_policy_loss_rows_that_do_not_fit_are_refused_by_name() -> None:
    logprobs_M, inputs = ragged_batch([2], 1, objective())
    with pytest.raises(ValueError, match=r"got \{'weights_M': \(2,\)\}"):
        policy_loss(logprobs_M, replace(inputs, weights_M=inputs.weights_M[1:]), objective())
    with pytest.raises(ValueError, match=r"advantages_B and beta_B must both be \[B\]"):
        policy_loss(logprobs_M, replace(inputs, beta_B=torch.zeros(3)), objective())
