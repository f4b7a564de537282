"""The benchmark's network with its operations taken apart is the same network, on every bit of its forward pass on a GPU."""

import pytest
import torch

from tests.kernels.triton_here import require_triton

DEVICE = require_triton()

from benchmarks.kernels.learner import NETWORKS, multiplied_weights
from benchmarks.kernels.separate import separate_operations
from samepath.kernels.gpu.loading import fused_kernels
from samepath.model.config import ModelConfig
from samepath.model.key_store import PackedKeys
from samepath.model.network.network import CausalLM
from samepath.model.network.placement import rounded
from samepath.model.trace import ForwardTrace
from tests.families import family_model
from tests.tiny_runs import packed_input, random_sequences


def hidden_and_gradients(model: CausalLM) -> tuple[torch.Tensor, list[torch.Tensor]]:
    batch = packed_input(model.config, random_sequences(model.config, (10, 1, 2)))
    hidden_ND = model(batch.to(DEVICE), PackedKeys(), ForwardTrace())
    grads = torch.autograd.grad(hidden_ND.float().square().sum(), list(model.parameters()), allow_unused=True)
    return hidden_ND.detach(), [one for one in grads if one is not None]


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v32"])
def test_separate_operations_compute_what_the_fused_ones_do(family: str) -> None:
    model = family_model(family, num_hidden_layers=2)
    other = CausalLM(model.config, "triton")
    other.load_state_dict(model.state_dict())
    fused_ND, fused = hidden_and_gradients(other.to(DEVICE))
    with separate_operations():
        separate_ND, separate = hidden_and_gradients(other)
    # Triton's interpreter adds in NumPy's order.
    torch.testing.assert_close(fused_ND, separate_ND, rtol=0, atol=1e-5)
    for one, two in zip(fused, separate, strict=True):
        assert float((one - two).norm()) <= 1e-5 * max(1.0, float(two.norm()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2", "glm4_moe", "deepseek_v32", "deepseek_v3"])
def test_forward_of_the_fused_operations_has_the_bits_of_the_separate_ones(family: str, dtype: str) -> None:
    # With norms of each head the order of a sum is the same where the width is a power of two.
    widths = {"head_dim": 32} if family == "qwen3_moe" else {}
    model = family_model(family, num_hidden_layers=2, **widths)
    other = CausalLM(model.config, "triton")
    other.load_state_dict(model.state_dict())
    rounded(other.to(DEVICE), dtype)
    fused_ND, _ = hidden_and_gradients(other)
    with separate_operations():
        separate_ND, _ = hidden_and_gradients(other)
    assert torch.equal(fused_ND, separate_ND)


def test_separate_operations_give_the_kernels_back() -> None:
    before = fused_kernels("triton", "linear")
    with separate_operations():
        assert fused_kernels("triton", "linear") is not before
    assert fused_kernels("triton", "linear") is before


def test_multiplied_weights_of_the_qwen3_moe_are_those_a_token_meets() -> None:
    with torch.device("meta"):
        model = CausalLM(ModelConfig.model_validate({**NETWORKS["qwen3_moe"], "max_position_embeddings": 16}), "triton")
    layer = 2048 * 5120 + 4096 * 2048 + 64 * 2048 + 8 * 3 * 2048 * 768
    assert multiplied_weights(model) == 8 * layer + 32000 * 2048
