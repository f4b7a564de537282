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


MOST_LONE_PAIRS = 1 << 15
"""Rows of prompts and padding times the longest sequence up to which each such row gets a key window of its own, as a decoding sample has one.

One window for the whole pass costs fewer operations than one for each kind of row, but copies the indexer's keys for every row: measured on
CPU with contexts of 128 keys, it wins up to about 300 rows of prompts."""


def mixed_pass(
    model: CausalLM, cache: SlotCache, tables: SampleRows, rows: NDArray[np.int64], pieces: Sequence[PromptPiece]
) -> Tensor:
    """Final hidden states [N, D]: the samples of `rows`, then the pieces, then padding. A row has the same bits in either plan."""
    counts = [len(piece.token_ids) for piece in pieces]
    num_decoding, used = len(rows), len(rows) + sum(counts)
    num_rows = round_up(used)
    token_ids, positions = np.zeros((2, num_rows), np.int64)
    token_ids[:num_decoding], positions[:num_decoding] = tables.last(rows), tables.lengths_R[rows]
    # Padding runs token 0 at position 0 of the scratch row.
    table_rows = np.full(num_rows, tables.scratch)
    table_rows[:num_decoding] = rows
    table_rows[num_decoding:used] = np.repeat([piece.row for piece in pieces], counts)
    row = num_decoding
    for piece, count in zip(pieces, counts):
        token_ids[row : row + count] = piece.token_ids
        positions[row : row + count] = np.arange(piece.first, piece.first + count)
        row += count
    longest = int(positions.max()) + 1
    # Without an indexer a row's keys are copied whole.
    lone = bool(model.config.index_topk) or not pieces
    if lone and (num_rows - num_decoding) * longest <= MOST_LONE_PAIRS:
        plan = _decode_plan(model, tables, table_rows, positions, num_rows)
    elif not pieces:
        plan = _decode_plan(model, tables, rows, positions[:num_decoding], num_rows)
    else:
        plan = plan_spans(_spans(tables, pieces), num_rows - num_decoding, model.shape.window_heads)
        if num_decoding:
            decoding = _decode_plan(model, tables, rows, positions[:num_decoding], round_up(num_decoding))
            plan = merge_plans(decoding, plan, num_decoding, num_rows)
    batch = ModelInput(token_ids_N=torch.from_numpy(token_ids), positions_N=torch.from_numpy(positions), plan=plan)
    slots = torch.from_numpy(tables.slots_RS[table_rows, positions])
    return run_network(model, cache, batch, slots.to(model.norm.device))


def _decode_plan(
    model: CausalLM, tables: SampleRows, rows: NDArray[np.int64], positions: NDArray[np.int64], num_rows: int
) -> AttentionPlan:
    """A key window for each of these rows of the tables, up to its position."""
    longest = int(positions.max()) + 1
    keys_BS = torch.from_numpy(tables.slots_RS[rows, : round_up(longest)])
    return plan_decode(torch.from_numpy(positions + 1), keys_BS, num_rows, model.shape.window_heads, longest)


def _spans(tables: SampleRows, pieces: Sequence[PromptPiece]) -> list[Span]:
    """The pieces one behind the other."""
    spans, row = [], 0
    for piece in pieces:
        keys = torch.from_numpy(tables.slots_RS[piece.row])
        spans.append(Span(row=row, first=piece.first, count=len(piece.token_ids), keys=keys))
        row += len(piece.token_ids)
    return spans
