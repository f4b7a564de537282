"""Masters: what is below one rounding of bfloat16 adds up, float32 weights are their own masters, checkpoints bring both back."""

import pytest
import torch
from torch.nn import Parameter

from samepath.rl.learner.gradients import add_gradients
from samepath.rl.learner.master_weights import MasterWeights

STEP = 2.0**-11
"""A sixteenth of the distance from 1 to the next bfloat16 number above it."""


def stepped(weights: MasterWeights, count: int) -> None:
    """Plain gradient descent by `STEP` upwards, `count` times."""
    optimizer = torch.optim.SGD(weights.masters, lr=STEP)
    for _ in range(count):
        add_gradients(weights.masters, [torch.full_like(parameter, -1.0) for parameter in weights.parameters])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights.publish()


def test_float32_weights_are_their_own_masters() -> None:
    parameter = Parameter(torch.ones(3))
    weights = MasterWeights([parameter])
    assert weights.masters[0] is parameter
    assert weights.of([parameter])[0] is parameter
    assert weights.state() == []
    stepped(weights, 1)
    assert parameter.tolist() == [1 + STEP] * 3


def test_steps_below_one_rounding_add_up_in_the_masters() -> None:
    parameter = Parameter(torch.ones(4, dtype=torch.bfloat16))
    weights = MasterWeights([parameter])
    stepped(weights, 7)
    assert weights.masters[0].tolist() == [1 + 7 * STEP] * 4
    assert parameter.tolist() == [1.0] * 4, "not yet half way to the next number"
    stepped(weights, 9)
    assert parameter.tolist() == [1 + 16 * STEP] * 4
    assert parameter.dtype == torch.bfloat16


def test_gradients_of_several_passes_add_up_in_float32() -> None:
    """1 + 2⁻⁹ is no bfloat16 number."""
    weights = MasterWeights([Parameter(torch.zeros(1, dtype=torch.bfloat16))])
    for gradient in (1.0, 2.0**-9):
        add_gradients(weights.masters, [torch.tensor([gradient], dtype=torch.bfloat16)])
    assert weights.masters[0].grad is not None
    assert weights.masters[0].grad.item() == 1 + 2.0**-9


def test_restore_brings_back_masters_and_rounded_weights() -> None:
    first = MasterWeights([Parameter(torch.ones(2, dtype=torch.bfloat16)), Parameter(torch.ones(2))])
    stepped(first, 10)
    second = MasterWeights([Parameter(torch.zeros(2, dtype=torch.bfloat16)), Parameter(torch.zeros(2))])
    second.restore([tensor.clone() for tensor in first.state()])
    assert torch.equal(second.masters[0], first.masters[0])
    assert torch.equal(second.parameters[0], first.parameters[0])
    with pytest.raises(ValueError, match="1 float32 masters"):
        second.restore([])
