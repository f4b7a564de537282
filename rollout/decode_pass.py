"""One decode pass over rows of fixed number and key windows of fixed length: nothing in it waits for the host or depends on a value.

Axes: B rows (a multiple of 16), R rows of the table of slots, S positions.
"""

import torch
from torch import Tensor

from samepath.model.key_store import CachedKeys, SlotCache
from samepath.model.model_input import ModelInput
from samepath.model.network import CausalLM
from samepath.model.plan import plan_decode
from samepath.model.trace import ForwardTrace
from samepath.rollout.drawing import Drawn, draw_rows


def run_network(model: CausalLM, cache: SlotCache, batch: ModelInput, slots_N: Tensor) -> Tensor:
    """Final hidden states [N, D]; keys, routes and fingerprints of the rows go to their slots of the cache."""
    trace = ForwardTrace(record_fingerprints=True)
    hidden_ND: Tensor = model(batch, CachedKeys(cache, slots_N), trace)
    if trace.routes:
        cache.routes.index_copy_(0, slots_N, trace.stacked_routes())
    if trace.fingerprints:
        cache.fingerprints.index_copy_(0, slots_N, trace.stacked_fingerprints())
    return hidden_ND


def decode_pass(
    model: CausalLM, cache: SlotCache, slots_RS: Tensor, inputs_9B: Tensor, num_keys: int, *, truncates: bool
) -> Drawn:
    """Run the last token of every row and draw the next.

    Args:
        slots_RS: slot of each position of each row, on the model's device.
        inputs_9B: int64 inputs as `SampleRows.fill_inputs` writes them, on the model's device.
        num_keys: length of the key windows, a multiple of 16 that is above every row's position.
        truncates: whether a row may leave tokens out.
    """
    tokens_B, positions_B, rows_B = inputs_9B[:3]
    numbers_6B = inputs_9B[3:].view(torch.float64)
    keys_BS = slots_RS[rows_B, :num_keys]
    if keys_BS.shape[1] < num_keys:
        raise ValueError(f"the table of slots must be at least {num_keys} wide; it is {keys_BS.shape[1]}")
    plan = plan_decode(positions_B + 1, keys_BS, len(tokens_B), model.config.window_heads, longest=num_keys)
    slots_B = slots_RS[rows_B, positions_B]
    batch = ModelInput(token_ids_N=tokens_B, positions_N=positions_B, plan=plan)
    hidden_BD = run_network(model, cache, batch, slots_B)
    return draw_rows(model, hidden_BD, numbers_6B[1:], numbers_6B[0], truncates=truncates)
