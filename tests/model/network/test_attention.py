"""Attention and indexer of one layer: absorbed form by hand, selections recorded, gradients kept apart, no square allocation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from samepath.kernels.selection.selection import selection_fingerprint
from samepath.model import plan as plan_module
from samepath.model.key_store import PackedKeys
from samepath.model.network import attention
from samepath.model.network.attention import LatentAttention
from samepath.model.network.latent_rows import Selection
from samepath.model.network.network import CausalLM
from samepath.model.network.rope import rotate_interleaved
from samepath.model.trace import ForwardTrace
from tests.conftest import tiny_config, tiny_model
from tests.tiny_runs import packed_input, random_sequences, run


def expanded_attention(layer: LatentAttention, x_ND: Tensor, rope_N2Q: Tensor, kept_NN: Tensor) -> Tensor:
    """Textbook MLA with a key and a value for each head (arXiv:2405.04434 eq. 9 to 19) under a given mask."""
    config, length = layer.config, x_ND.shape[0]
    nope, rope = config.qk_nope_head_dim, config.qk_rope_head_dim
    cos, sin = rope_N2Q[:, 0], rope_N2Q[:, 1]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    q = (norm(x_ND @ layer.query_down.T, layer.query_norm) @ layer.query_up.T).view(length, -1, nope + rope)
    down = x_ND @ layer.key_down.T
    latent, k_rope = norm(down[:, : config.kv_lora_rank], layer.key_norm), down[:, config.kv_lora_rank :]
    kv = (latent @ layer.key_up.T).view(length, -1, nope + config.v_head_dim)
    k_rope = rotate_interleaved(k_rope, cos, sin)
    scores = torch.einsum("nhc,shc->hns", q[..., :nope], kv[..., :nope])
    scores += torch.einsum("nhc,sc->hns", rotate_interleaved(q[..., nope:], cos[:, None], sin[:, None]), k_rope)
    probs = (scores / (nope + rope) ** 0.5).masked_fill(~kept_NN, -torch.inf).softmax(-1)
    return torch.einsum("hns,shv->nhv", probs, kv[..., nope:]).flatten(1) @ layer.output.T


def layer_zero(model: CausalLM) -> LatentAttention:
    block: Any = model.layers[0]
    layer = block.attention
    assert isinstance(layer, LatentAttention)
    return layer


@pytest.mark.parametrize("index_topk", [8, 64])
def test_latent_attention_equals_expanded_attention_over_the_selected_keys(
    monkeypatch: pytest.MonkeyPatch, index_topk: int
) -> None:
    model = tiny_model(index_topk=index_topk).double()
    layer, config = layer_zero(model), model.config
    batch = packed_input(config, [torch.zeros(48, dtype=torch.int64)])
    x_ND = torch.randn(48, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept_NN = torch.zeros(48, 48, dtype=torch.bool)
    select = attention.Indexer.select

    def recorded(self: Any, *args: Any) -> Selection:
        selection = select(self, *args)
        for row, count in enumerate(selection.count_N.tolist()):
            kept_NN[row, selection.positions_NC[row, :count].long()] = True
        return selection

    monkeypatch.setattr(attention.Indexer, "select", recorded)
    rope_N2Q = model.rope[batch.positions_N].double()
    got = layer(x_ND, rope_N2Q, batch.plan, PackedKeys(), ForwardTrace(), index_topk)
    assert kept_NN.sum(1).tolist() == [min(row + 1, index_topk) for row in range(48)]
    assert not kept_NN.triu(1).any()
    torch.testing.assert_close(got, expanded_attention(layer, x_ND, rope_N2Q, kept_NN), rtol=0, atol=1e-10)


def test_fingerprints_of_rows_below_the_top_k_are_those_of_the_whole_past() -> None:
    model = tiny_model()
    _, trace = run(model, packed_input(model.config, random_sequences(model.config, [30, 5])))
    fingerprints_NL = trace.stacked_fingerprints()
    past_NC = torch.arange(8).repeat(8, 1)
    wanted = selection_fingerprint(past_NC, torch.arange(1, 9))
    for layer in range(3):
        assert torch.equal(fingerprints_NL[:8, layer], wanted)
        assert torch.equal(fingerprints_NL[30:35, layer], wanted[:5])
    assert not fingerprints_NL[35:].any()


def test_indexer_loss_reaches_the_indexer_alone_and_the_output_reaches_all_else() -> None:
    model = tiny_model()
    batch = packed_input(model.config, random_sequences(model.config, [40]))
    trace = ForwardTrace(train_indexer=True)
    hidden_ND = model(batch, PackedKeys(), trace)
    assert len(trace.indexer_losses) == 3
    own = {id(parameter) for parameter in model.indexer_parameters()}
    assert len(own) == 3 * 5
    sum(loss_N.sum() for loss_N in trace.indexer_losses).backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (id(parameter) in own), name
    model.zero_grad()
    (hidden_ND @ model.head.T).log_softmax(-1)[:, 3].sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in own), name


def test_indexer_loss_descent_lowers_it_with_everything_else_fixed() -> None:
    model = tiny_model()
    batch = packed_input(model.config, random_sequences(model.config, [60]))
    optimiser = torch.optim.SGD(model.indexer_parameters(), lr=0.5)
    totals = []
    for _ in range(12):
        trace = ForwardTrace(train_indexer=True)
        model(batch, PackedKeys(), trace, num_selected=64)
        loss = torch.stack(trace.indexer_losses).mean()
        totals.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert totals[-1] < 0.9 * totals[0]


def test_num_selected_beyond_the_length_is_dense_attention() -> None:
    """Dense warm-up: every layer attends to the whole past, as a model with a large top-k does."""
    sparse, dense = tiny_model(), tiny_model(index_topk=64)
    batch = packed_input(sparse.config, random_sequences(sparse.config, [50, 9]))
    warm_up = run(sparse, batch, num_selected=64)[0]
    assert torch.equal(warm_up, run(dense, batch)[0])
    assert not torch.equal(warm_up[10:50], run(sparse, batch)[0][10:50])


@pytest.mark.parametrize("bound", [1 << 12, 1 << 14])
def test_index_logits_never_exceed_the_window_bound_and_bucketing_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    config = tiny_config()
    model, sequences = tiny_model(), random_sequences(config, [60, 3, 61, 25, 40, 7])
    whole, trace = run(model, packed_input(config, sequences))
    sizes = []
    original = attention.index_logits

    def measured(q_BTIK: Tensor, k_BSK: Tensor, weights_BTI: Tensor, backend: Any) -> Tensor:
        sizes.append(q_BTIK.shape[0] * q_BTIK.shape[1] * q_BTIK.shape[2] * k_BSK.shape[1])
        return original(q_BTIK, k_BSK, weights_BTI, backend)

    monkeypatch.setattr(attention, "index_logits", measured)
    monkeypatch.setattr(plan_module, "MAX_WINDOW_ELEMENTS", bound)
    cut, cut_trace = run(model, packed_input(config, sequences))
    assert max(sizes) <= bound
    assert torch.equal(cut[:196], whole[:196])
    assert torch.equal(cut_trace.stacked_fingerprints(), trace.stacked_fingerprints())
