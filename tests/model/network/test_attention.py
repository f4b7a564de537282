"""Attention and indexer of one layer: absorbed form by hand, selections recorded, gradients kept apart, no square allocation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from samepath.kernels.indexer import index_logits as index_logits_module
from samepath.kernels.selection.selection import selection_fingerprint
from samepath.model import plan as plan_module
from samepath.model.key_store import PackedKeys
from samepath.model.network import attention as attention_module
from samepath.model.network import indexer as indexer_module
from samepath.model.network.attention import LatentAttention
from samepath.model.network.latent_rows import Selection
from samepath.model.network.network import CausalLM
from samepath.model.network.rope import rotate_interleaved
from samepath.model.trace import ForwardTrace
from tests.conftest import tiny_config, tiny_model
from tests.tiny_runs import packed_input, random_sequences, run


def expanded_attention(
    layer: LatentAttention, x_ND: Tensor, rope_N2Q: Tensor, kept_NN: Tensor
) -> tuple[Tensor, Tensor]:
    """(probabilities [H, N, S], output) of textbook MLA with a key and a value for each head (arXiv:2405.04434 eq. 9 to 19) under a given mask."""
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
    return probs, torch.einsum("hns,shv->nhv", probs, kv[..., nope:]).flatten(1) @ layer.output.T


def attention_probabilities(layer: LatentAttention, x_ND: Tensor, rope_N2Q: Tensor) -> Tensor:
    """[H, N, S] of the same, over the whole past."""
    past_NN = torch.ones(len(x_ND), len(x_ND), dtype=torch.bool).tril()
    return expanded_attention(layer, x_ND, rope_N2Q, past_NN)[0]


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
    select = indexer_module.Indexer.select

    def recorded(self: Any, *args: Any) -> Selection:
        selection = select(self, *args)
        for row, count in enumerate(selection.count_N.tolist()):
            kept_NN[row, selection.positions_NC[row, :count].long()] = True
        return selection

    monkeypatch.setattr(indexer_module.Indexer, "select", recorded)
    rope_N2Q = model.rope[batch.positions_N].double()
    got = layer(x_ND, rope_N2Q, batch.plan, PackedKeys(), ForwardTrace(), index_topk)
    assert kept_NN.sum(1).tolist() == [min(row + 1, index_topk) for row in range(48)]
    assert not kept_NN.triu(1).any()
    torch.testing.assert_close(got, expanded_attention(layer, x_ND, rope_N2Q, kept_NN)[1], rtol=0, atol=1e-10)


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


def naive_indexer_losses(layer: LatentAttention, x_ND: Tensor, rope_N2Q: Tensor) -> list[float]:
    """Σ p · ln(p / softmax(I)) of each row over its whole past, by the report's equations (arXiv:2512.02556 eq. 1, 3), one number at a time."""
    config, indexer = layer.config, layer.indexer
    assert indexer is not None
    heads, width, rope = config.index_n_heads, config.index_head_dim, config.qk_rope_head_dim
    probs_HNS = attention_probabilities(layer, x_ND, rope_N2Q)
    latent = x_ND @ layer.query_down.T
    latent = latent / (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.query_norm
    q_NIJ = (latent @ indexer.query.T).view(len(x_ND), heads, width)
    k_NJ = x_ND @ indexer.key.T
    k_NJ = (k_NJ - k_NJ.mean(-1, keepdim=True)) / (k_NJ.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    k_NJ = k_NJ * indexer.key_norm_weight + indexer.key_norm_bias

    def turned(x_J: Tensor, position: int) -> Tensor:
        """Pairs (i, i + rope / 2) of the first channels."""
        (cos_Q, sin_Q), (first, second) = rope_N2Q[position], (x_J[: rope // 2], x_J[rope // 2 : rope])
        return torch.cat([first * cos_Q - second * sin_Q, second * cos_Q + first * sin_Q, x_J[rope:]])

    weights_NI = x_ND @ indexer.head_weights.T / (heads**0.5 * width**0.5)
    losses = []
    for row in range(len(x_ND)):
        logits = [
            sum(
                weights_NI[row, head] * (turned(q_NIJ[row, head], row) @ turned(k_NJ[key], key)).clamp(min=0)
                for head in range(heads)
            )
            for key in range(row + 1)
        ]
        mass = probs_HNS[:, row, : row + 1].sum(0)
        share = mass / mass.sum()
        losses.append(float((share * (share.log() - torch.stack(logits).log_softmax(0))).sum()))
    return losses


def test_indexer_loss_is_the_divergence_from_the_attention_over_all_heads_with_the_published_scale() -> None:
    """Selection does not depend on the scale of the logits; what the indexer learns does."""
    model = tiny_model(index_topk=64).double()
    layer = layer_zero(model)
    assert layer.indexer is not None
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        layer.indexer.key_norm_bias.normal_(0, 0.3, generator=generator)
        layer.indexer.head_weights.mul_(20)
    batch = packed_input(model.config, [torch.zeros(16, dtype=torch.int64)])
    x_ND = torch.randn(16, 64, generator=generator, dtype=torch.float64)
    rope_N2Q = model.rope[batch.positions_N].double()
    trace = ForwardTrace(train_indexer=True)
    layer(x_ND, rope_N2Q, batch.plan, PackedKeys(), trace, 64)
    with torch.no_grad():
        wanted = naive_indexer_losses(layer, x_ND, rope_N2Q)
    assert max(wanted) > 0.1
    assert trace.indexer_losses[0].tolist() == pytest.approx(wanted, abs=1e-9)


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
    original = index_logits_module.index_logits

    def measured(q_BTIK: Tensor, k_BSK: Tensor, weights_BTI: Tensor, backend: Any) -> Tensor:
        sizes.append(q_BTIK.shape[0] * q_BTIK.shape[1] * q_BTIK.shape[2] * k_BSK.shape[1])
        return original(q_BTIK, k_BSK, weights_BTI, backend)

    monkeypatch.setattr(index_logits_module, "index_logits", measured)
    monkeypatch.setattr(plan_module, "MAX_WINDOW_ELEMENTS", bound)
    cut, cut_trace = run(model, packed_input(config, sequences))
    assert max(sizes) <= bound
    assert torch.equal(cut[:196], whole[:196])
    assert torch.equal(cut_trace.stacked_fingerprints(), trace.stacked_fingerprints())


def test_indexer_alone_learns_from_all_keys_without_lists_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen attention, as in the warm-up on text: losses and gradients of the form with lists, which is refused meanwhile."""
    model = tiny_model().double()
    batch = packed_input(model.config, random_sequences(model.config, [40, 9]))

    def learned() -> tuple[Tensor, list[Tensor], Tensor]:
        trace = ForwardTrace(train_indexer=True)
        hidden_ND = model(batch, PackedKeys(), trace, num_selected=64)
        losses_LN = torch.stack(trace.indexer_losses)[:, :49]
        return losses_LN, list(torch.autograd.grad(losses_LN.sum(), model.indexer_parameters())), hidden_ND[:49]

    wanted = learned()
    own = {id(parameter) for parameter in model.indexer_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("lists of keys")

    monkeypatch.setattr(attention_module, "attend", refused)
    losses_LN, gradients, hidden_ND = learned()
    torch.testing.assert_close(losses_LN, wanted[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(hidden_ND, wanted[2], rtol=0, atol=1e-10)
    for ours, theirs in zip(gradients, wanted[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
