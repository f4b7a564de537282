"""The optimiser step against AdamW written out, and each of its settings; policy and indexer do not feel each other's gradients."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from samepath.rl.learner.optimizer import Optimizer
from samepath.rl.objective.objective import NonFiniteError
from samepath.rl.recipe.optimizer import OptimizerSettings

PLAIN = {"lr": 2.0**-6, "beta1": 0.0, "beta2": 0.0, "epsilon": 1e-30, "max_grad_norm": 1e9}
"""Every step moves a weight by the learning rate, against the sign of its gradient."""


class Toy(torch.nn.Module):
    """Two weights of a policy and one of its indexer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.policy = Parameter(torch.ones(2, dtype=dtype))
        self.indexer = Parameter(torch.ones(1, dtype=dtype))

    def indexer_parameters(self) -> list[Parameter]:
        return [self.indexer]


def optimizer(toy: Toy, *, indexer_lr_scale: float = 1.0, **changes: object) -> Optimizer:
    chosen = OptimizerSettings.model_validate({**PLAIN, **changes})
    return Optimizer(toy, chosen, total_updates=4, indexer_lr_scale=indexer_lr_scale)  # type: ignore[arg-type]


def weights_after(
    gradients: list[tuple[list[float], list[float]]], **changes: object
) -> tuple[list[float], list[float]]:
    """Policy and indexer weights after one step a pair of gradients."""
    toy = Toy()
    steps = optimizer(toy, **changes)  # type: ignore[arg-type]
    for policy, indexer in gradients:
        steps.add([torch.tensor(policy), torch.tensor(indexer)])
        steps.step()
    return toy.policy.tolist(), toy.indexer.tolist()


def test_step_returns_both_norms_before_clipping_and_forgets_the_gradients() -> None:
    toy = Toy()
    steps = optimizer(toy, max_grad_norm=0.1)
    steps.add([torch.tensor([1.0, 4.0]), torch.tensor([5.0])])
    steps.add([torch.tensor([2.0, 0.0]), None])
    norms = steps.step()
    assert (norms.policy, norms.indexer) == (5.0, 5.0)
    assert toy.policy.grad is None


def test_step_of_a_frozen_indexer_reports_no_norm_and_moves_nothing_of_it() -> None:
    toy = Toy()
    toy.indexer.requires_grad_(False)
    steps = optimizer(toy, weight_decay=0.5)
    assert [parameter.numel() for parameter in steps.parameters] == [2]
    steps.add([torch.ones(2)])
    assert steps.step().indexer is None
    assert toy.indexer.tolist() == [1.0]


@pytest.mark.parametrize("huge", [1e8, 1e15])
def test_step_of_policy_and_of_indexer_do_not_depend_on_each_other(huge: float) -> None:
    """To the bit, with a clip that binds on both."""
    clipped = {"max_grad_norm": 0.1, "epsilon": 0.5}
    policy, indexer = [0.3, -0.4], [0.7]
    plain = weights_after([(policy, indexer)] * 3, **clipped)
    assert weights_after([(policy, [huge])] * 3, **clipped)[0] == plain[0]
    assert weights_after([([huge, 0.0], indexer)] * 3, **clipped)[1] == plain[1]


def test_max_grad_norm_scales_the_gradient_down_to_it() -> None:
    # With ε = 1 a first step is lr·g/(|g| + 1): g = (3, 4) has norm 5 and becomes (0.6, 0.8).
    rate = PLAIN["lr"]
    policy, indexer = weights_after([([3.0, 4.0], [0.5])], max_grad_norm=1.0, epsilon=1.0)
    assert policy == pytest.approx([1 - rate * 0.6 / 1.6, 1 - rate * 0.8 / 1.8], rel=1e-6)
    assert indexer == pytest.approx([1 - rate * 0.5 / 1.5], rel=1e-6), "below the limit nothing is scaled"


def test_max_grad_norm_holds_just_above_it_and_changes_no_bit_below() -> None:
    """With ε = 1 a step grows with the gradient, so a gradient that was not scaled back would show."""
    plain = {"epsilon": 1.0, "max_grad_norm": 1e9}
    for factor, changes in ((1.0003, True), (0.9995, False), (0.5, False)):
        gradients = [([0.6 * factor, 0.8 * factor], [factor])]
        moved, free = weights_after(gradients, epsilon=1.0, max_grad_norm=1.0), weights_after(gradients, **plain)
        assert (moved != free) == changes
        if changes:
            limit = weights_after([([0.6, 0.8], [1.0])], **plain)
            assert moved[0] == pytest.approx(limit[0], rel=1e-6)


def test_warm_up_rises_from_the_first_update_to_the_full_rate() -> None:
    """Update n of w moves by lr·(n + 1)/w, so the w-th is the first at the full rate."""
    rate = PLAIN["lr"]
    moved = [1 - weights_after([([1.0, 1.0], [1.0])] * count, warmup_updates=4)[0][0] for count in range(1, 6)]
    assert moved == [rate * quarters / 4 for quarters in (1, 3, 6, 10, 14)]


def test_indexer_lr_scale_moves_the_indexer_alone() -> None:
    rate = PLAIN["lr"]
    policy, indexer = weights_after([([1.0, 1.0], [1.0])], indexer_lr_scale=4.0)
    assert (policy, indexer) == ([1 - rate] * 2, [1 - 4 * rate])


def test_weight_decay_shrinks_weights_without_a_gradient() -> None:
    policy, indexer = weights_after([([0.0, 0.0], [0.0])], weight_decay=0.25)
    assert policy == [1 - 0.25 * PLAIN["lr"]] * 2
    assert indexer == [1 - 0.25 * PLAIN["lr"]]


def adamw(weights: Tensor, gradients: list[Tensor], chosen: OptimizerSettings) -> Tensor:
    """AdamW as arXiv:1711.05101 algorithm 2 prints it, with a clip before it."""
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    for number, gradient in enumerate(gradients):
        gradient = gradient * min(1.0, chosen.max_grad_norm / (float(gradient.norm()) + 1e-6))
        rate = chosen.lr * min(1.0, (number + 1) / max(chosen.warmup_updates, 1))
        first = chosen.beta1 * first + (1 - chosen.beta1) * gradient
        second = chosen.beta2 * second + (1 - chosen.beta2) * gradient.square()
        mean = first / (1 - chosen.beta1 ** (number + 1))
        root = (second / (1 - chosen.beta2 ** (number + 1))).sqrt()
        weights = weights - rate * chosen.weight_decay * weights - rate * mean / (root + chosen.epsilon)
    return weights


@settings(deadline=None, max_examples=20)
@given(
    st.floats(1e-4, 0.5),
    st.integers(0, 3),
    st.floats(0, 0.95),
    st.floats(0, 0.999),
    st.floats(1e-8, 0.5),
    st.floats(0, 0.5),
    st.floats(0.1, 3),
    st.integers(0, 2**31),
)
def test_steps_equal_adamw_written_out(
    lr: float, warmup: int, beta1: float, beta2: float, epsilon: float, decay: float, limit: float, seed: int
) -> None:
    chosen = OptimizerSettings(
        lr=lr, warmup_updates=warmup, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay, max_grad_norm=limit
    )
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(2, generator=generator, dtype=torch.float64) for _ in range(4)]
    toy = Toy(torch.float64)
    steps = Optimizer(toy, chosen, total_updates=1)  # type: ignore[arg-type]
    for gradient in gradients:
        steps.add([gradient.clone(), None])
        steps.step()
    expected = adamw(torch.ones(2, dtype=torch.float64), gradients, chosen)
    torch.testing.assert_close(toy.policy.detach(), expected, rtol=1e-9, atol=1e-11)


def test_restored_optimizer_goes_on_as_if_nothing_had_happened() -> None:
    gradients = [[torch.tensor([0.3, -1.0]) * (number + 1), torch.tensor([0.1])] for number in range(4)]
    changes = {"beta1": 0.9, "beta2": 0.9, "warmup_updates": 3}
    whole, half = Toy(torch.bfloat16), Toy(torch.bfloat16)
    steps = optimizer(whole, **changes)
    before = optimizer(half, **changes)
    for gradient in gradients[:2]:
        for one in (steps, before):
            one.add(gradient)
            one.step()
    later = Toy(torch.bfloat16)
    after = optimizer(later, **changes)
    after.restore(copy.deepcopy(before.state()))
    assert after.updates == 2
    for gradient in gradients[2:]:
        for one in (steps, after):
            one.add(gradient)
            one.step()
    assert all(map(torch.equal, steps.state()["masters"], after.state()["masters"]))
    assert all(map(torch.equal, whole.parameters(), later.parameters()))


def test_step_with_a_gradient_that_is_not_finite_is_refused_before_a_weight_moves() -> None:
    for policy, indexer in (([float("nan"), 0.0], [0.0]), ([0.0, 0.0], [float("inf")])):
        toy = Toy()
        steps = optimizer(toy, weight_decay=0.5)
        steps.add([torch.tensor(policy), torch.tensor(indexer)])
        with pytest.raises(NonFiniteError, match="gradient must be finite; got"):
            steps.step()
        assert toy.policy.tolist() == [1.0, 1.0]
        # What was forgotten is not in the next step, and the refused step is not counted.
        steps.forget()
        steps.add([torch.zeros(2), torch.zeros(1)])
        steps.step()
        assert steps.updates == 1
        assert all(bool(parameter.isfinite().all()) for parameter in toy.parameters())


def test_schedule_falls_over_the_planned_updates_and_is_reported() -> None:
    """Of four updates the linear rates to a half are 1, 7/8, 6/8 and 5/8 of lr, which is what the weights move by."""
    toy = Toy()
    steps = optimizer(toy, schedule="linear", min_lr_share=0.5)
    rate, left = PLAIN["lr"], 1.0
    for eighths in (8, 7, 6, 5, 4, 4):
        steps.add([torch.ones(2), torch.ones(1)])
        assert steps.step().lr == rate * eighths / 8
        left -= rate * eighths / 8
        assert toy.policy.tolist() == pytest.approx([left] * 2)
