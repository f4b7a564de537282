"""The tiny network on the Triton backend, on a GPU or in the interpreter, gives the CPU backend's outputs and gradients."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton

DEVICE = require_triton()

from samepath.kernels.backend import round_up
from samepath.model.key_store import CachedKeys, PackedKeys, SlotCache
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.plan import plan_decode
from samepath.model.trace import ForwardTrace
from tests.conftest import tiny_config, tiny_model
from tests.families import family_config, family_model
from tests.tiny_runs import packed_input, random_sequences

LENGTHS = (18, 1, 1, 2)
"""Two windows, rows of padding, and more keys than the tiny models' sparse attention selects."""
SHORT = (10, 1, 1, 2)
"""The same in one window and in half as many rows."""


def outputs_and_gradients(
    model: CausalLM, batch: ModelInput, count: int, num_selected: int | None = None
) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """(logits, gradients, routes) of the first `count` rows, on the CPU."""
    trace = ForwardTrace(train_indexer=True)
    hidden_ND = model(batch, PackedKeys(), trace, num_selected=num_selected)
    logits_NV = hidden_ND[:count] @ model.head.T
    loss = logits_NV.log_softmax(-1)[:, 4].sum()
    if trace.indexer_losses:
        loss = loss + torch.stack(trace.indexer_losses)[:, :count].sum()
    loss.backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return logits_NV.detach().cpu(), gradients, [route.cpu() for route in trace.routes]


@pytest.mark.parametrize(
    ("family", "num_layers", "num_selected", "lengths"),
    [
        ("deepseek_v32", 2, None, LENGTHS),
        # Every key selected, as in the dense warm-up: no lists of keys. The experts are in the line above.
        ("deepseek_v32", 1, 64, SHORT),
        ("qwen3_moe", 2, None, SHORT),
        ("samepath_grouped", 1, None, LENGTHS),
        pytest.param("deepseek_v3", 2, None, LENGTHS, marks=pytest.mark.slow),
    ],
)
def test_model_triton_backend_equals_the_torch_backend(
    family: str, num_layers: int, num_selected: int | None, lengths: tuple[int, ...]
) -> None:
    """Of two layers one is without experts; float32 sums in another order: 5e-5 of the largest value."""
    model = family_model(family, num_hidden_layers=num_layers)
    batch = packed_input(model.config, random_sequences(model.config, lengths))
    assert len(batch.plan.windows) == (2 if lengths == LENGTHS else 1)
    other = CausalLM(model.config, "triton")
    other.load_state_dict(model.state_dict())
    wanted_NV, wanted, wanted_routes = outputs_and_gradients(model, batch, sum(lengths), num_selected)
    logits_NV, gradients, routes = outputs_and_gradients(other.to(DEVICE), batch.to(DEVICE), sum(lengths), num_selected)
    assert all(torch.equal(one, two) for one, two in zip(routes, wanted_routes, strict=True))
    torch.testing.assert_close(logits_NV, wanted_NV, rtol=0, atol=5e-5 * float(wanted_NV.abs().max()))
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        size = max(1.0, float(wanted[name].abs().max()))
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=5e-5 * size, msg=name)


@torch.no_grad()
def whole_and_decoded(model: CausalLM, length: int, prefilled: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states of one sequence: from one pass beside a shorter sequence, and from a cache, token by token after a prefill."""
    config = model.config
    sequence, other = random_sequences(config, [length, length // 2])
    whole = model(packed_input(config, [sequence, other]).to(DEVICE), PackedKeys(), ForwardTrace())[:length]
    cache = SlotCache(config, length + 32, dtype, DEVICE)
    slots = torch.arange(1, length + 16)
    prefill = packed_input(config, [sequence[:prefilled]]).to(DEVICE)
    shifted = tuple(
        type(window)(rows_BT=window.rows_BT, ends_BT=window.ends_BT, keys_BS=window.keys_BS + 1, longest=window.longest)
        for window in prefill.plan.windows
    )
    plan = type(prefill.plan)(windows=shifted, source_N=prefill.plan.source_N)
    batch = ModelInput(token_ids_N=prefill.token_ids_N, positions_N=prefill.positions_N, plan=plan)
    rows = [model(batch, CachedKeys(cache, slots[: round_up(prefilled)].to(DEVICE)), ForwardTrace())[:prefilled]]
    for position in range(prefilled, length):
        ids_N = torch.zeros(16, dtype=torch.int64, device=DEVICE)
        ids_N[0] = sequence[position]
        places_N = torch.zeros_like(ids_N)
        places_N[0] = position
        slots_N = torch.zeros_like(ids_N)
        slots_N[0] = slots[position]
        plan = plan_decode(torch.tensor([position + 1]), slots[None, : round_up(length)], 16, config.window_heads)
        batch = ModelInput(token_ids_N=ids_N, positions_N=places_N, plan=plan.to(DEVICE))
        rows.append(model(batch, CachedKeys(cache, slots_N), ForwardTrace())[:1])
    return whole, torch.cat(rows)


def test_model_triton_backend_decodes_from_a_cache_what_it_computes_in_one_pass() -> None:
    """Prefill of 8 tokens, then one token a step from a cache on the device; each selects 8."""
    model = CausalLM(tiny_config(num_hidden_layers=2), "triton")
    model.initialise(0)
    whole, decoded = whole_and_decoded(model.to(DEVICE), 10, 8, torch.float32)
    torch.testing.assert_close(decoded, whole, rtol=0, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3", "deepseek_v32"])
def test_model_on_a_gpu_decodes_the_bits_that_it_computes_in_one_pass(name: str, dtype: torch.dtype) -> None:
    """What `rl.max_gap_at_lag_0: 0` rests on, for every kind of attention; heads of 64 channels where they are free."""
    sizes = {"head_dim": 64} if name in ("llama", "qwen3_moe") else {}
    model = CausalLM(family_config(name, **sizes), "triton")
    model.load_state_dict(family_model(name, **sizes).state_dict())
    whole, decoded = whole_and_decoded(model.to(DEVICE, dtype), 120, 93, dtype)
    assert torch.equal(decoded, whole)


@pytest.mark.gpu
def test_model_bfloat16_on_the_gpu_is_near_the_float32_cpu_model() -> None:
    model = tiny_model()
    batch = packed_input(model.config, random_sequences(model.config, LENGTHS))
    other = CausalLM(model.config, "triton")
    other.load_state_dict(model.state_dict())
    # The same routes and selections, so that only rounding differs.
    with torch.no_grad():
        trace = ForwardTrace()
        wanted = model(batch, PackedKeys(), trace, num_selected=64)
        replay = ModelInput(
            token_ids_N=batch.token_ids_N,
            positions_N=batch.positions_N,
            plan=batch.plan,
            replay_LNX=torch.stack(trace.routes),
        )
        got = other.to(DEVICE, torch.bfloat16)(replay.to(DEVICE), PackedKeys(), ForwardTrace(), num_selected=64)
    rows = slice(0, sum(LENGTHS))
    assert float((got[rows].float().cpu() - wanted[rows]).norm() / wanted[rows].norm()) < 0.03
