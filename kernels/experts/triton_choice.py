"""Choice of experts and their gates in one kernel (Triton): comparisons, and the additions and the division of the `torch` way in its order.

One program a few rows, experts as a grid of groups. Bits equal those of the separate operations.
Axes: N tokens, E experts, X experts chosen.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.experts.expert_choice import ChoiceRule


@triton.jit
def _best(values, index, free):
    """(largest free value of each row, its lowest index): [ROWS, EXPERTS] to [ROWS, 1] each."""
    top = tl.max(tl.where(free, values, float("-inf")), 1)[:, None]
    return top, tl.min(tl.where(free & (values == top), index, 1 << 30), 1)[:, None]


@triton.jit
def _choose(
    scores,
    bias,
    ids,
    gates,
    num_rows,
    num_experts,
    scale,
    HAS_BIAS: tl.constexpr,
    NORMALISED: tl.constexpr,
    SCALED: tl.constexpr,
    GROUPS: tl.constexpr,
    OPEN_GROUPS: tl.constexpr,
    SLOTS: tl.constexpr,
    PADDED_SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, EXPERTS)[None, :]
    live = (row < num_rows)[:, None]
    known = expert < num_experts
    own = tl.load(scores + row.to(tl.int64)[:, None] * num_experts + expert, mask=live & known, other=0.0)
    choice = own
    if HAS_BIAS:
        choice = choice + tl.load(bias + expert, mask=known, other=0.0)
    # A number that is not one would be equal to nothing; it ranks first, as in a sort.
    choice = tl.where(choice != choice, float("inf"), choice)
    free = (expert + row[:, None] * 0) < num_experts
    if GROUPS > 1:
        size = num_experts // GROUPS
        group = expert // size
        group_score = tl.zeros((ROWS, EXPERTS), tl.float32)
        for number in tl.static_range(GROUPS):
            member = free & (group == number)
            first, place = _best(choice, expert, member)
            second, _ = _best(choice, expert, member & (expert != place))
            total = first
            if num_experts > GROUPS:
                total = first + second
            group_score = tl.where(group == number, total, group_score)
        # An expert stands for its group at the group's first place.
        leader = free & (expert == group * size)
        opened = tl.zeros((ROWS, EXPERTS), tl.int32)
        for _ in tl.static_range(OPEN_GROUPS):
            _, place = _best(group_score, expert, leader)
            leader = leader & (expert != place)
            opened = tl.where(group == place // size, 1, opened)
        choice = tl.where(opened > 0, choice, float("-inf"))
    total = tl.zeros((ROWS, 1), tl.float32)
    slots = tl.arange(0, PADDED_SLOTS)[None, :]
    chosen = tl.zeros((ROWS, PADDED_SLOTS), tl.int32)
    taken = tl.zeros((ROWS, PADDED_SLOTS), tl.float32)
    for slot in tl.static_range(SLOTS):
        _, place = _best(choice, expert, free)
        free = free & (expert != place)
        gate = tl.sum(tl.where(expert == place, own, 0.0), 1)[:, None]
        total += gate
        chosen = tl.where(slots == slot, place, chosen)
        taken = tl.where(slots == slot, gate, taken)
    if NORMALISED:
        taken = tl.div_rn(taken, tl.broadcast_to(total + 1e-20, (ROWS, PADDED_SLOTS)))
    if SCALED:
        taken = taken * scale
    at = row.to(tl.int64)[:, None] * SLOTS + slots
    keep = live & (slots < SLOTS)
    tl.store(ids + at, chosen.to(tl.int64), mask=keep)
    tl.store(gates + at, taken, mask=keep)


def choose(scores_NE: Tensor, bias_E: Tensor | None, rule: ChoiceRule) -> tuple[Tensor, Tensor]:
    """(ids int64 [N, X], gates float32 [N, X]) of float32 scores, without gradient."""
    if scores_NE.dtype != torch.float32:
        raise ValueError(f"backend triton chooses experts by float32 scores; got {scores_NE.dtype}. Use backend torch.")
    num_rows, num_experts = scores_NE.shape
    ids_NX = torch.empty(num_rows, rule.num_chosen, dtype=torch.int64, device=scores_NE.device)
    gates_NX = torch.empty(num_rows, rule.num_chosen, dtype=torch.float32, device=scores_NE.device)
    experts = triton.next_power_of_2(num_experts)
    rows = max(1, min(8, 256 // experts))
    if num_rows:
        _choose[(triton.cdiv(num_rows, rows),)](
            scores_NE.contiguous(),
            scores_NE if bias_E is None else bias_E,
            ids_NX,
            gates_NX,
            num_rows,
            num_experts,
            float(rule.scale),
            HAS_BIAS=bias_E is not None,
            NORMALISED=rule.normalised,
            SCALED=rule.scale != 1,
            GROUPS=rule.num_groups,
            OPEN_GROUPS=rule.open_groups,
            SLOTS=rule.num_chosen,
            PADDED_SLOTS=triton.next_power_of_2(rule.num_chosen),
            EXPERTS=experts,
            ROWS=rows,
            num_warps=1,
        )
    return ids_NX, gates_NX
