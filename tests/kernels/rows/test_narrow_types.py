"""The `torch` backend on bfloat16 without gradients: inputs as they are, everything that is added or compared in float32."""

import torch

from samepath.kernels.experts.expert_product import expert_product
from samepath.kernels.head.logprob import padded_logits
from samepath.kernels.indexer.index_logits import index_logits
from samepath.kernels.sparse_attention.sparse_attention import attend

BF16 = torch.bfloat16


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(BF16)


@torch.no_grad()
def test_index_logits_and_head_give_float32_of_what_stands_there() -> None:
    q, k, weights = drawn(2, 3, 4, 16), drawn(2, 20, 16), drawn(2, 3, 4)
    logits = index_logits(q, k, weights, "torch")
    assert logits.dtype == torch.float32
    assert torch.equal(logits, index_logits(q.float(), k.float(), weights.float(), "torch"))
    hidden, head = drawn(5, 32), drawn(40, 32)
    assert torch.equal(padded_logits(hidden, head), padded_logits(hidden.float(), head.float()))


@torch.no_grad()
def test_sparse_attention_rounds_its_output_alone() -> None:
    q, kv = drawn(4, 2, 32), drawn(24, 32)
    indices = torch.stack([torch.randperm(24)[:8] for _ in range(4)]).int()
    count = torch.tensor([8, 3, 0, 5])

    def attended(queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return attend(queries, keys, indices, count, scale=0.2, value_width=16, backend="torch")

    out, lse, mass = attended(q, kv)
    wide_out, wide_lse, wide_mass = attended(q.float(), kv.float())
    assert out.dtype == BF16
    assert torch.equal(out, wide_out.to(BF16))
    assert torch.equal(lse, wide_lse)
    assert torch.equal(mass, wide_mass)


@torch.no_grad()
def test_experts_are_added_in_the_gates_type_and_rounded_once() -> None:
    x, gate_up, down = drawn(6, 32), drawn(4, 64, 32) / 6, drawn(4, 32, 32) / 6
    ids, gates = torch.tensor([[0, 1], [1, 3], [2, 0], [3, 2], [0, 2], [1, 2]]), torch.rand(6, 2)
    out = expert_product(x, gates, ids, gate_up, down, "torch")
    exact = expert_product(x.double(), gates.double(), ids, gate_up.double(), down.double(), "reference")
    assert out.dtype == BF16
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)
