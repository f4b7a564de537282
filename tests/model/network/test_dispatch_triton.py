"""The tiny network on the Triton backend with rows that may depend on their batch: all its forms give the CPU backend's results."""

import pytest
import torch

from tests.kernels.triton_here import require_triton

DEVICE = require_triton()

from samepath.kernels.sparse_attention import triton_joined as triton_sparse_attention
from samepath.model.key_store import CachedKeys, SlotCache
from samepath.model.model_input import ModelInput
from samepath.model.network import dispatch
from samepath.model.network.dispatch import divide
from samepath.model.network.network import CausalLM
from samepath.model.plan import plan_decode
from samepath.model.trace import ForwardTrace
from tests.conftest import tiny_model
from tests.model.network.test_dispatch import TOPK, everything, forked_input


def free_on_device(model: CausalLM) -> CausalLM:
    other = CausalLM(model.config, "triton")
    other.load_state_dict(model.state_dict())
    other.let_rows_depend_on_their_batch()
    return other.to(DEVICE)


def test_responses_over_a_shared_prompt_give_the_same_by_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and later parts of sequences, within the selection's limit and beyond, and one response in absorbed form."""
    monkeypatch.setattr(dispatch, "EXPANDED_QUERIES", 2)
    model = tiny_model(num_hidden_layers=2)
    batch = forked_input(model.config, 6, (2, 9, 1))
    division = divide(batch.plan, TOPK).division
    assert division is not None
    wanted, got = everything(model, batch, 18), everything(free_on_device(model), batch.to(DEVICE), 18)
    assert torch.equal(got[1].cpu(), wanted[1])
    for one, other in ((got[0], wanted[0]), (got[2], wanted[2])):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=5e-5 * max(1.0, float(other.abs().max())))
    for name, gradient in wanted[3].items():
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(got[3][name].cpu(), gradient, rtol=0, atol=5e-5 * size, msg=name)


@torch.no_grad()
def test_decode_rows_are_cut_along_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = triton_sparse_attention.attend_decode
    monkeypatch.setattr(
        triton_sparse_attention, "attend_decode", lambda *rows: (calls.append(len(rows[0])), original(*rows))[1]
    )
    model = tiny_model(num_hidden_layers=2)
    config = model.config
    ends, keys_BS = torch.tensor([20, 6]), torch.arange(1, 65).view(2, 32)
    plan = plan_decode(ends, keys_BS, 16, config.window_heads)
    slots = torch.cat([keys_BS[0, 19:20], keys_BS[1, 5:6], torch.zeros(14, dtype=torch.int64)])
    positions = torch.cat([ends - 1, torch.zeros(14, dtype=torch.int64)])
    batch = ModelInput(token_ids_N=torch.arange(16), positions_N=positions, plan=plan)
    results = []
    for network in (model, free_on_device(model)):
        device = network.norm.device
        cache = SlotCache(config, 65, torch.float32, device)
        cache.rows.copy_(torch.randn(cache.rows.shape, generator=torch.Generator().manual_seed(1)))
        cache.index.copy_(torch.randn(cache.index.shape, generator=torch.Generator().manual_seed(2)))
        results.append(network(batch, CachedKeys(cache, slots.to(device)), ForwardTrace())[:2].cpu())
    assert calls == [16] * config.num_hidden_layers
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=5e-5)
