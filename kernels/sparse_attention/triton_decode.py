"""Sparse attention of few query rows (Triton): the selected keys cut at fixed boundaries, a program each, then one sum over the parts.

A decoding step has too few rows to fill the card with one program a row and block of heads. Here the boundaries follow from C alone and the
parts are added in slot order, so a row's result depends neither on the batch nor on chance. Its rounding differs from
`triton_forward`, which carries one running maximum through all keys.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys, P parts of the selected keys.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.row_parts import LOG2_E, load_rows
from samepath.kernels.gpu.tiles import operand_type
from samepath.kernels.sparse_attention.triton_forward import fits_hopper, widths

PARTS_AT_ONCE = tl.constexpr(16)
"""Parts that one step of the final sum holds."""

HOPPER_PART = 256
"""Selected keys a part where the kernel written for Hopper takes the parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How one row's work is cut; `part` and `keys` decide the rounding of results, the rest the speed."""

    part: int = 128
    """Selected keys a part, a multiple of `keys`."""
    keys: int = 64
    """Keys a tile."""
    heads: int = 64
    """Heads a program at most."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 2
    """Key tiles in flight."""


@triton.jit
def _attend_parts(
    q,
    kv,
    indices,
    counts,
    partial,
    partial_lse,
    scale,
    num_heads,
    num_selected,
    num_parts,
    blocks,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Output of one part of a row's keys, divided by its own sum, and the base-2 logarithm of that sum; nothing for a part without keys."""
    KEY_WIDTH: tl.constexpr = KEY.total
    VALUE_WIDTH: tl.constexpr = VALUE.total
    MAIN: tl.constexpr = KEY.main
    REST: tl.constexpr = KEY.rest
    # Blocks of heads stand next to each other, so that the second finds its keys in the cache.
    program = tl.program_id(0)
    row = (program // (blocks * num_parts)).to(tl.int64)
    part = program // blocks % num_parts
    head = program % blocks * HEADS + tl.arange(0, HEADS)
    count = tl.load(counts + row)
    stop = tl.minimum(count, (part + 1) * PART)
    if part * PART < stop:
        live_head = head < num_heads
        q_rows = row * num_heads + head
        q_main = load_rows(q, q_rows, 0, KEY_WIDTH, KEY_WIDTH, live_head, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
        if REST:
            q_rest = load_rows(q, q_rows, MAIN, KEY_WIDTH, KEY_WIDTH, live_head, REST, MAIN + REST == KEY_WIDTH).to(
                OPERAND
            )
        accumulator = tl.zeros((HEADS, MAIN), tl.float32)
        if VALUE_WIDTH > MAIN:
            accumulator_rest = tl.zeros((HEADS, REST), tl.float32)
        top = tl.full((HEADS,), float("-inf"), tl.float32)
        total = tl.zeros((HEADS,), tl.float32)
        for first in range(part * PART, stop, KEYS):
            slot = first + tl.arange(0, KEYS)
            live = slot < stop
            key_rows = tl.load(indices + row * num_selected + slot, mask=live, other=0).to(tl.int64)
            k_main = load_rows(kv, key_rows, 0, KEY_WIDTH, KEY_WIDTH, live, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
            scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
            if REST:
                k_rest = load_rows(kv, key_rows, MAIN, KEY_WIDTH, KEY_WIDTH, live, REST, MAIN + REST == KEY_WIDTH).to(
                    OPERAND
                )
                scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
            scores = tl.where(live[None, :], scores * (scale * LOG2_E), float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            rescale = tl.exp2(top - new_top)
            probs = tl.exp2(scores - new_top[:, None])
            total = total * rescale + tl.sum(probs, 1)
            top = new_top
            accumulator = tl.dot(probs.to(OPERAND), k_main, accumulator * rescale[:, None], input_precision="ieee")
            if VALUE_WIDTH > MAIN:
                accumulator_rest = tl.dot(
                    probs.to(OPERAND), k_rest, accumulator_rest * rescale[:, None], input_precision="ieee"
                )
        place = (row * num_parts + part) * num_heads + head
        tl.store(partial_lse + place, top + tl.log2(total), mask=live_head)
        channel = tl.arange(0, MAIN)
        keep = live_head[:, None] & (channel < VALUE_WIDTH)[None, :]
        tl.store(partial + place[:, None] * VALUE_WIDTH + channel[None, :], accumulator / total[:, None], mask=keep)
        if VALUE_WIDTH > MAIN:
            channel = MAIN + tl.arange(0, REST)
            keep = live_head[:, None] & (channel < VALUE_WIDTH)[None, :]
            rest = partial + place[:, None] * VALUE_WIDTH + channel[None, :]
            tl.store(rest, accumulator_rest / total[:, None], mask=keep)


@triton.jit
def _add_parts(
    partial,
    partial_lse,
    counts,
    out,
    lse,
    num_heads,
    num_parts,
    VALUE_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    STEP: tl.constexpr,
):
    """One row and head: Σ 2^(lse_p − max) · out_p / Σ 2^(lse_p − max) over the parts that hold keys, STEP parts after STEP parts."""
    row_head = tl.program_id(0).to(tl.int64)
    row = row_head // num_heads
    parts = tl.cdiv(tl.load(counts + row), PART)
    first_place = row * num_parts * num_heads + row_head % num_heads
    channel = tl.arange(0, WIDTH)
    top = tl.full((), float("-inf"), tl.float32)
    for first in range(0, parts, STEP):
        part = first + tl.arange(0, STEP)
        logs = tl.load(partial_lse + first_place + part * num_heads, mask=part < parts, other=float("-inf"))
        top = tl.maximum(top, tl.max(logs, 0))
    total = tl.zeros((), tl.float32)
    output = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, parts, STEP):
        part = first + tl.arange(0, STEP)
        place = first_place + part * num_heads
        weight = tl.exp2(tl.load(partial_lse + place, mask=part < parts, other=float("-inf")) - top)
        keep = (part < parts)[:, None] & (channel < VALUE_WIDTH)[None, :]
        values = tl.load(partial + place[:, None] * VALUE_WIDTH + channel[None, :], mask=keep, other=0.0)
        total += tl.sum(weight, 0)
        output += tl.sum(weight[:, None] * values, 0)
    divisor = tl.where(total > 0, total, 1.0)
    tl.store(lse + row_head, tl.where(total > 0, (top + tl.log2(divisor)) / LOG2_E, float("-inf")))
    final = (output / divisor).to(out.dtype.element_ty)
    tl.store(out + row_head * VALUE_WIDTH + channel, final, mask=channel < VALUE_WIDTH)


def attend_decode(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    scale: float,
    value_width: int,
    cut: Cut | None = None,
) -> tuple[Tensor, Tensor]:
    """Sparse attention without gradients for few rows, as in a decoding step; correct for any number of them.

    Same arguments and meaning as `triton_forward.attend_forward`: contiguous bfloat16 or float32 q and kv, int32 indices whose first
    `count_N` are valid, any head count and widths. Deterministic, and a row's bits do not depend on the other rows; but they differ from
    `attend_forward`'s within rounding, so a sampler that must reproduce the learner's log-probabilities exactly may not call this.
    Needs N · ceil(C / part) · H · (V + 1) · 4 bytes of scratch memory and never waits for the host, so a CUDA graph can hold it.

    Returns:
        (out_NHV in q's type, lse_NH float32 natural logarithm); rows without keys give 0 and −inf.
    """
    num_rows, num_heads, _ = q_NHK.shape
    hopper = cut is None and fits_hopper(q_NHK, value_width)
    cut = cut or (Cut(part=HOPPER_PART) if hopper else default_cut(q_NHK))
    if cut.part % cut.keys:
        raise ValueError(
            f"a part of the keys must be whole tiles; got part {cut.part} and keys {cut.keys}. Change Cut.part."
        )
    out_NHV = torch.empty(num_rows, num_heads, value_width, dtype=q_NHK.dtype, device=q_NHK.device)
    lse_NH = torch.empty(num_rows, num_heads, dtype=torch.float32, device=q_NHK.device)
    if not lse_NH.numel():
        return out_NHV, lse_NH
    num_parts = max(1, triton.cdiv(indices_NC.shape[1], cut.part))
    partial_NPHV = torch.empty(num_rows, num_parts, num_heads, value_width, dtype=torch.float32, device=q_NHK.device)
    partial_lse_NPH = torch.empty(num_rows, num_parts, num_heads, dtype=torch.float32, device=q_NHK.device)
    arguments = (q_NHK, kv_SK, indices_NC, count_N, scale, (partial_NPHV, partial_lse_NPH))
    if hopper:
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.sparse_attention.hopper_forward import attend_parts

        attend_parts(*arguments, cut.part)
    else:
        _launch_parts(*arguments, cut)
    _add_parts[(num_rows * num_heads,)](
        partial_NPHV,
        partial_lse_NPH,
        count_N,
        out_NHV,
        lse_NH,
        num_heads,
        num_parts,
        VALUE_WIDTH=value_width,
        WIDTH=triton.next_power_of_2(value_width),
        PART=cut.part,
        STEP=PARTS_AT_ONCE.value,
        num_warps=4,
    )
    return out_NHV, lse_NH


def _launch_parts(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    scale: float,
    partial: tuple[Tensor, Tensor],
    cut: Cut,
) -> None:
    """Fill the parts' outputs and LSE where they hold keys."""
    num_rows, num_heads, key_width = q_NHK.shape
    num_parts = partial[0].shape[1]
    heads = max(16, min(cut.heads, triton.next_power_of_2(num_heads)))
    blocks = triton.cdiv(num_heads, heads)
    _attend_parts[(num_rows * num_parts * blocks,)](
        q_NHK,
        kv_SK,
        indices_NC,
        count_N,
        *partial,
        scale,
        num_heads,
        indices_NC.shape[1],
        num_parts,
        blocks,
        **widths(key_width, partial[0].shape[3]),
        HEADS=heads,
        KEYS=cut.keys,
        PART=cut.part,
        OPERAND=operand_type(q_NHK.dtype),
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
    )


def default_cut(q_NHK: Tensor) -> Cut:
    """The cut for this type and number of heads; never depends on the number of rows."""
    if interpreting():
        return Cut(part=16, keys=16, heads=16)
    if q_NHK.dtype == torch.float32:
        return Cut(keys=16, heads=16, num_stages=1)
    # More heads a program share gathered keys, and longer parts write fewer float32 outputs, whose bytes count where heads are many.
    return Cut(part=256) if q_NHK.shape[1] > 32 else Cut(heads=16, num_warps=4)
