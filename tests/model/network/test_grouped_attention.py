"""Grouped-query attention over selected keys: the textbook form under the selection, both losses kept apart, the warm-up over all keys."""

from typing import Any

import pytest
import torch
from torch import Tensor

from samepath.model.key_store import PackedKeys
from samepath.model.network import grouped_attention, indexer
from samepath.model.network.grouped_attention import GroupedAttention
from samepath.model.network.latent_rows import Selection
from samepath.model.network.network import CausalLM
from samepath.model.trace import ForwardTrace
from tests.families import FAMILIES, family_model
from tests.tiny_runs import packed_input, random_sequences, run

INDEXED = [name for name in FAMILIES if name.startswith("samepath_grouped")]


def first_layer(model: CausalLM) -> GroupedAttention:
    block: Any = model.layers[0]
    assert isinstance(block.attention, GroupedAttention)
    return block.attention


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs (i, i + half) of one row's first channels."""
    half = len(angles)
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat(
        [
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
            x[..., 2 * half :],
        ],
        -1,
    )


def naive(layer: GroupedAttention, x_ND: Tensor, kept_NN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(output, index logits [N, N], probabilities [H, N, N]) by the equations, row by row."""
    config, selecting = layer.config, layer.indexer
    assert selecting is not None
    heads, groups, width, rows = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_width,
        len(x_ND),
    )
    bias = 0 if layer.qkv_bias is None else layer.qkv_bias
    qkv = (x_ND @ layer.qkv.T + bias).view(rows, -1, width)
    q, k, v = qkv.split([heads, groups, groups], 1)
    if layer.query_norm is not None and layer.key_norm is not None:
        q, k = (
            part / (part.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * norm
            for part, norm in ((q, layer.query_norm), (k, layer.key_norm))
        )
    theta = config.rope_parameters.rope_theta
    places = torch.arange(rows, dtype=torch.float64)

    def angles(channels: int) -> Tensor:
        return places[:, None, None] * theta ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels)

    q, k = (torch.stack([rotated(part[row], angles(width)[row, 0]) for row in range(rows)]) for part in (q, k))
    rope = config.index_rope_head_dim
    index_q = (x_ND @ selecting.query.T).view(rows, config.index_n_heads, -1)
    index_k = x_ND @ selecting.key.T
    index_k = (index_k - index_k.mean(-1, keepdim=True)) / (index_k.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    index_k = index_k * selecting.key_norm_weight + selecting.key_norm_bias
    index_q = torch.stack([rotated(index_q[row], angles(rope)[row, 0]) for row in range(rows)])
    index_k = torch.stack([rotated(index_k[row], angles(rope)[row, 0]) for row in range(rows)])
    weights = x_ND @ selecting.head_weights.T * (config.index_n_heads * config.index_head_dim) ** -0.5
    logits = torch.einsum("tj,tjs->ts", weights, torch.einsum("tjd,sd->tjs", index_q, index_k).relu())
    shared = heads // groups
    scores = torch.stack([q[:, head] @ k[:, head // shared].T for head in range(heads)]) * width**-0.5
    probs = scores.masked_fill(~kept_NN, -torch.inf).softmax(-1)
    out = torch.stack([probs[head] @ v[:, head // shared] for head in range(heads)], 1)
    out = out.flatten(1) @ layer.output.T
    return out if layer.output_bias is None else out + layer.output_bias, logits, probs


@pytest.mark.parametrize("name", INDEXED)
def test_grouped_attention_equals_the_textbook_over_the_best_keys_of_the_indexer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 rows select 8: past the top-k, where the indexer's rotation shows."""
    model = family_model(name).double()
    layer = first_layer(model)
    batch = packed_input(model.config, [torch.zeros(48, dtype=torch.int64)])
    x_ND = torch.randn(48, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept_NN = torch.zeros(48, 48, dtype=torch.bool)
    select = indexer.Indexer.select

    def recorded(self: Any, *args: Any) -> Selection:
        selection = select(self, *args)
        for row, count in enumerate(selection.count_N.tolist()):
            kept_NN[row, selection.positions_NC[row, :count].long()] = True
        return selection

    monkeypatch.setattr(indexer.Indexer, "select", recorded)
    # The table in the model is float32.
    exact = torch.arange(48, dtype=torch.float64)[:, None] * model.config.rope_parameters.rope_theta ** -(
        torch.arange(0, model.config.rope_width, 2, dtype=torch.float64) / model.config.rope_width
    )
    cos, sin = exact.cos(), exact.sin()
    rope_N2R = torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)], 1)
    trace = ForwardTrace(train_indexer=True)
    got = layer(x_ND, rope_N2R, batch.plan, PackedKeys(), trace, model.config.index_topk)
    wanted, logits, probs = (result.detach() for result in naive(layer, x_ND, kept_NN))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    # The sparse stage's loss: over the selected keys alone (arXiv:2512.02556 eq. 4).
    p_NN = probs.mean(0)
    guess_NN = logits.masked_fill(~kept_NN, -torch.inf).log_softmax(-1).masked_fill(~kept_NN, 0)
    losses_N = (torch.xlogy(p_NN, p_NN) - p_NN * guess_NN).sum(-1)
    assert float(losses_N.max()) > 0.01
    torch.testing.assert_close(trace.indexer_losses[0].detach(), losses_N, rtol=0, atol=1e-10)
    past = torch.ones(48, 48, dtype=torch.bool).tril()
    logits = logits.masked_fill(~past, -torch.inf)
    for row in range(48):
        best = sorted(range(row + 1), key=lambda place: (-float(logits[row, place]), place))[:8]
        assert sorted(best) == kept_NN[row].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("num_selected", [8, 64], ids=["sparse stage", "dense warm-up"])
@pytest.mark.parametrize("name", INDEXED)
def test_each_loss_reaches_its_own_parameters_alone(name: str, num_selected: int) -> None:
    model = family_model(name)
    trace = ForwardTrace(train_indexer=True)
    batch = packed_input(model.config, random_sequences(model.config, [40, 9]))
    hidden_ND = model(batch, PackedKeys(), trace, num_selected=num_selected)
    own = {id(parameter) for parameter in model.indexer_parameters()}
    assert (len(trace.indexer_losses), len(own)) == (3, 3 * 5)
    sum(loss_N.sum() for loss_N in trace.indexer_losses).backward(retain_graph=True)
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (id(parameter) in own), key
    model.zero_grad()
    (hidden_ND @ model.head.T).log_softmax(-1)[:, 3].sum().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in own), key


@pytest.mark.parametrize("name", INDEXED)
def test_dense_warm_up_is_attention_over_all_keys_and_the_loss_over_a_selection_of_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the sparse form with a selection that leaves no key out: hidden states and losses differ by rounding."""
    model = family_model(name).double()
    batch = packed_input(model.config, random_sequences(model.config, [40, 9, 25]))
    calls = []
    streamed = grouped_attention.grouped_indexer_loss
    monkeypatch.setattr(
        grouped_attention, "grouped_indexer_loss", lambda *arguments: (calls.append(1), streamed(*arguments))[1]
    )
    trace = ForwardTrace(train_indexer=True)
    dense = model(batch, PackedKeys(), trace, num_selected=64)
    assert len(calls) == 3
    selecting = ForwardTrace(train_indexer=True, record_fingerprints=True)
    sparse = model(batch, PackedKeys(), selecting, num_selected=64)
    assert len(calls) == 3
    rows = slice(0, 74)
    torch.testing.assert_close(dense[rows], sparse[rows], rtol=0, atol=1e-10)
    for ours, theirs in zip(trace.indexer_losses, selecting.indexer_losses, strict=True):
        torch.testing.assert_close(ours[rows], theirs[rows], rtol=0, atol=1e-10)
    narrow, _ = run(model, batch)
    assert float((narrow[rows] - dense[rows]).detach().abs().max()) > 1e-3


def test_short_sequences_have_the_same_bits_whether_the_indexer_learns_or_not() -> None:
    """No row has more keys than are selected, and none may be attended to in another form: the sampler's bits would not be the learner's."""
    model = family_model("samepath_grouped")
    batch = packed_input(model.config, random_sequences(model.config, [8, 5, 7]))
    learning = model(batch, PackedKeys(), ForwardTrace(train_indexer=True))
    sampled, _ = run(model, batch)
    assert torch.equal(learning[:20], sampled[:20])
    assert not torch.equal(model(batch, PackedKeys(), ForwardTrace(), num_selected=16)[:20], sampled[:20])
