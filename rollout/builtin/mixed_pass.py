"""One pass over decoding samples and pieces of prompts together, planned on the CPU: as many rows and keys as there are.

Axes: N rows of the pass, B decoding samples, S positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.kernels.window import AttentionPlan
from samepath.model.key_store import SlotCache
from samepath.model.model_input import ModelInput
from samepath.model.network.network import CausalLM
from samepath.model.plan import Span, merge_plans, plan_decode, plan_spans
from samepath.rollout.builtin.decode_pass import run_network
from samepath.rollout.builtin.sample_rows import SampleRows


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPiece:
    """Consecutive tokens of a prompt."""

    token_ids: Sequence[int]
    """The tokens to run."""
    first: int
    """Position of the first."""
    row: int
    """Row of the tables that the prompt has."""


def mixed_pass(
    model: CausalLM, cache: SlotCache, tables: SampleRows, rows: NDArray[np.int64], pieces: Sequence[PromptPiece]
) -> Tensor:
    """Final hidden states [N, D]: the samples of `rows`, then the pieces, then padding."""
    num_decoding = len(rows)
    num_rows = round_up(num_decoding + sum(len(piece.token_ids) for piece in pieces))
    token_ids, positions, slots = np.zeros((3, num_rows), np.int64)
    plan: AttentionPlan | None = None
    if num_decoding:
        lengths = tables.lengths_R[rows]
        token_ids[:num_decoding] = tables.last(rows)
        positions[:num_decoding] = lengths
        slots[:num_decoding] = tables.slots_RS[rows, lengths]
        longest = int(lengths.max()) + 1
        keys_BS = torch.from_numpy(tables.slots_RS[rows, : round_up(longest)])
        ends_B = torch.from_numpy(lengths + 1)
        plan = plan_decode(ends_B, keys_BS, round_up(num_decoding), model.shape.window_heads, longest)
    spans, row = [], num_decoding
    for piece in pieces:
        count = len(piece.token_ids)
        stop = piece.first + count
        token_ids[row : row + count] = piece.token_ids
        positions[row : row + count] = np.arange(piece.first, stop)
        slots[row : row + count] = tables.slots_RS[piece.row, piece.first : stop]
        keys = torch.from_numpy(tables.slots_RS[piece.row])
        spans.append(Span(row=row - num_decoding, first=piece.first, count=count, keys=keys))
        row += count
    if spans:
        prompt_plan = plan_spans(spans, num_rows - num_decoding, model.shape.window_heads)
        plan = prompt_plan if plan is None else merge_plans(plan, prompt_plan, num_decoding, num_rows)
    assert plan is not None
    batch = ModelInput(token_ids_N=torch.from_numpy(token_ids), positions_N=torch.from_numpy(positions), plan=plan)
    return run_network(model, cache, batch, torch.from_numpy(slots).to(model.norm.device))
