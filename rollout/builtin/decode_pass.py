"""One decode pass over rows of fixed number and key windows of fixed length: nothing in it waits for the host or depends on a value.

Axes: B rows (a multiple of 16), R rows of the table of slots, S positions.
"""

import torch
from torch import Tensor

from samepath.model.key_store import CachedKeys, SlotCache
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.plan import plan_decode
from samepath.model.trace import ForwardTrace
from samepath.rollout.builtin.drawing import Drawn, draw_rows
from samepath.rollout.builtin.sample_rows import RUN_ROWS


def run_network(model: CausalLM, cache: SlotCache, batch: ModelInput, slots_N: Tensor) -> Tensor:
    """Final hidden states [N, D]; keys, routes and fingerprints of the rows go to their slots of the cache."""
    trace = ForwardTrace(record_fingerprints=True)
    hidden_ND: Tensor = model(batch, CachedKeys(cache, slots_N), trace)
    if trace.routes:
        cache.routes.index_copy_(0, slots_N, trace.stacked_routes())
    if trace.fingerprints:
        cache.fingerprints.index_copy_(0, slots_N, trace.stacked_fingerprints())
    return hidden_ND


def run_rows(model: CausalLM, cache: SlotCache, slots_RS: Tensor, inputs_3B: Tensor, num_keys: int) -> Tensor:
    """Final hidden states [B, D] of tokens, each with a key window of its own.

    Args:
        slots_RS: slot of each position of each row of the table, on the model's device.
        inputs_3B: int64 token, position and row of the table, on the model's device.
        num_keys: length of the key windows, a multiple of 16 that is above every position.
    """
    tokens_B, positions_B, rows_B = inputs_3B
    if num_keys > slots_RS.shape[1]:
        raise ValueError(f"key windows of {num_keys} need a table of slots that wide; it is {slots_RS.shape[1]}")
    keys_BS = slots_RS[rows_B, :num_keys]
    plan = plan_decode(positions_B + 1, keys_BS, len(tokens_B), model.shape.window_heads, longest=num_keys)
    batch = ModelInput(token_ids_N=tokens_B, positions_N=positions_B, plan=plan)
    return run_network(model, cache, batch, slots_RS[rows_B, positions_B])


def decode_pass(
    model: CausalLM, cache: SlotCache, slots_RS: Tensor, inputs_9B: Tensor, num_keys: int, *, truncates: bool
) -> Drawn:
    """Run the last token of every row and draw the next.

    `inputs_9B` are those of `run_rows`, uniform number and `setting_rows` (float64 by their bits); `truncates` says whether a row may leave tokens
    out.
    """
    hidden_BD = run_rows(model, cache, slots_RS, inputs_9B[:RUN_ROWS], num_keys)
    numbers_6B = inputs_9B[RUN_ROWS:].view(torch.float64)
    return draw_rows(model, hidden_BD, numbers_6B[1:], numbers_6B[0], truncates=truncates)
