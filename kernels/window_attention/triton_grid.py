"""What the kernels of a window with a key and a value for each head share (Triton): its operands, how tiles of heads are read and written.

On a GPU tiles come by tensor maps where widths allow it, which leaves the registers to the sums.

Axes: B sequences, T query rows of each, S keys of each, H heads, K key width, V value width, W words of 32 bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.row_parts import Width, load_rows, split_width
from samepath.kernels.gpu.tiles import on_hopper, operand_type


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTiles:
    """Shape of the products; changes the speed, never a result's meaning."""

    queries: int = 128
    """Query rows of a tile."""
    keys: int = 64
    """Keys of a tile. Where the mask is read along them, that is but in the key gradients, 32 or 64; there the queries are."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 2
    """Tiles in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One window's operands."""

    q_BTHK: Tensor
    """Contiguous."""
    k_BSHK: Tensor
    """Contiguous."""
    v_BSHV: Tensor
    """Last axis dense, sequences one after the other."""
    ends_BT: Tensor
    """int32, keys that each query may see: its sequence's first query's + t; 0 for padding, at the end."""
    words_BTW: Tensor | None
    """int32, bit s of a row tells whether key s counts; None if all do up to the end."""
    words_BSW: Tensor | None
    """The same along the queries."""
    scale: float
    """Softmax scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a kernel knows of a window when it is compiled."""

    keys: Width
    """Channels of a head's key."""
    values: Width
    """Channels of a head's value, in one part."""
    masked: bool
    """Whether words say which keys count."""
    mapped: bool
    """Whether tiles come by tensor maps."""
    operand: Any
    """Triton's type of the products."""


@triton.jit
def window_rows(sequence, first, count, ROWS: tl.constexpr):
    """(places in the sequence, which exist, rows in [B·count], row of the first) of ROWS queries, or keys, of a sequence that has `count`."""
    place = first + tl.arange(0, ROWS)
    row = (tl.full((), 0, tl.int64) + sequence) * count + place
    return place, place < count, row, sequence * count + first


@triton.jit
def head_tile(
    source,
    head,
    first_row,
    rows,
    live,
    row_stride,
    head_stride,
    first,
    stop,
    WIDTH: tl.constexpr,
    FULL: tl.constexpr,
    MAPPED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Channels first … first + WIDTH − 1 of one head's rows, from `first_row` on through a tensor map, or `rows` by pointers."""
    if MAPPED:
        tile = source.load([first_row, head * head_stride + first])
    else:
        tile = load_rows(source + head * head_stride, rows, first, stop, row_stride, live, WIDTH, FULL).to(OPERAND)
    return tile


@triton.jit
def head_main(source, head, rows, stride, head_stride, ROW: tl.constexpr, FORM: tl.constexpr):
    """The first part of one head's rows."""
    FULL: tl.constexpr = ROW.main <= ROW.total
    _, live, row, first_row = rows
    return head_tile(
        source, head, first_row, row, live, stride, head_stride, 0, ROW.total, ROW.main, FULL, FORM.mapped, FORM.operand
    )


@triton.jit
def head_rest(source, head, rows, stride, head_stride, ROW: tl.constexpr, FORM: tl.constexpr):
    """The second part of one head's rows."""
    FULL: tl.constexpr = ROW.main + ROW.rest == ROW.total
    _, live, row, first_row = rows
    return head_tile(
        source, head, first_row, row, live, stride, head_stride, ROW.main, ROW.total, ROW.rest, FULL, FORM.mapped, FORM.operand
    )  # fmt: skip


@triton.jit
def head_parts(sources, head, rows, num_heads, FORM: tl.constexpr):
    """Both parts of one head's queries or keys; the second repeats the first where there is none."""
    KEY: tl.constexpr = FORM.keys
    source, rest_source = sources
    main = head_main(source, head, rows, num_heads * KEY.total, KEY.total, KEY, FORM)
    rest = main
    if KEY.rest:
        rest = head_rest(rest_source, head, rows, num_heads * KEY.total, KEY.total, KEY, FORM)
    return main, rest


@triton.jit
def score_head(left_main, left_rest, sources, head, rows, num_heads, FORM: tl.constexpr):
    """(left · rightᵀ, both parts of the right rows), which are one head's queries or keys."""
    KEY: tl.constexpr = FORM.keys
    source, rest_source = sources
    main = head_main(source, head, rows, num_heads * KEY.total, KEY.total, KEY, FORM)
    scores = tl.dot(left_main, tl.trans(main), input_precision="ieee")
    rest = main
    if KEY.rest:
        rest = head_rest(rest_source, head, rows, num_heads * KEY.total, KEY.total, KEY, FORM)
        scores = tl.dot(left_rest, tl.trans(rest), scores, input_precision="ieee")
    return scores, main, rest


@triton.jit
def store_part(target, head, rows, num_heads, values, first, ROW: tl.constexpr, WIDTH: tl.constexpr):
    _, live, row, _ = rows
    channel = first + tl.arange(0, WIDTH)
    place = row[:, None] * (num_heads * ROW.total) + head * ROW.total + channel[None, :]
    keep = live[:, None] & (channel < ROW.total)[None, :]
    tl.store(target + place, values.to(target.dtype.element_ty), mask=keep)


@triton.jit
def store_head(target, head, rows, num_heads, main, rest, factor, ROW: tl.constexpr):
    """Store both parts of one head's rows, times the factor."""
    store_part(target, head, rows, num_heads, main * factor, 0, ROW, ROW.main)
    if ROW.rest:
        store_part(target, head, rows, num_heads, rest * factor, ROW.main, ROW, ROW.rest)


def mapped(grid: Grid) -> bool:
    """Whether tiles can come by tensor maps: on Hopper, and no padded channel."""
    key, value_width = split_width(grid.k_BSHK.shape[3]), grid.v_BSHV.shape[3]
    fits = key.main + key.rest == key.total and value_width >= 16 and value_width & (value_width - 1) == 0
    aligned = all(
        size * grid.v_BSHV.element_size() % 16 == 0 for size in (grid.v_BSHV.stride(1), grid.v_BSHV.stride(2))
    )
    aligned = aligned and grid.v_BSHV.data_ptr() % 16 == 0
    return grid.q_BTHK.dtype == torch.bfloat16 and fits and aligned and on_hopper(grid.q_BTHK)


def form(grid: Grid) -> Form:
    """What the kernels are compiled for."""
    width = grid.v_BSHV.shape[3]
    return Form(
        keys=split_width(grid.k_BSHK.shape[3]),
        values=Width(total=width, main=max(16, triton.next_power_of_2(width)), rest=0),
        masked=grid.words_BTW is not None,
        mapped=mapped(grid),
        operand=operand_type(grid.q_BTHK.dtype),
    )


def source(values: Tensor, rows: int, width: int, is_mapped: bool) -> Tensor | TensorDescriptor:
    """[B, S, H, W] as what `head_tile` reads tiles of `rows` × `width` from."""
    if not is_mapped:
        return values
    num_sequences, num_rows, num_heads, channels = values.shape
    shape = [num_sequences * num_rows, (num_heads - 1) * values.stride(2) + channels]
    return TensorDescriptor(values, shape, [values.stride(1), 1], [rows, width])


def key_sources(grid: Grid, tiles: WindowTiles) -> tuple[Any, Any, Any, Any]:
    """(queries, their last channels, keys, their last channels)."""
    key, is_mapped = split_width(grid.k_BSHK.shape[3]), mapped(grid)
    main, rest = key.main, key.rest or key.main
    return (
        source(grid.q_BTHK, tiles.queries, main, is_mapped),
        source(grid.q_BTHK, tiles.queries, rest, is_mapped),
        source(grid.k_BSHK, tiles.keys, main, is_mapped),
        source(grid.k_BSHK, tiles.keys, rest, is_mapped),
    )


def sizes(grid: Grid, words: Tensor | None) -> tuple[int, ...]:
    """(queries, keys, heads, steps between a value's rows and heads, words a row) of a launch."""
    num_queries, num_heads = grid.q_BTHK.shape[1:3]
    steps = grid.v_BSHV.stride(1), grid.v_BSHV.stride(2)
    return num_queries, grid.k_BSHK.shape[1], num_heads, *steps, 0 if words is None else words.shape[2]


def small_tiles(grid: Grid) -> WindowTiles | None:
    """Tiles of the interpreter and of float32; None in bfloat16 on a GPU."""
    if interpreting() or grid.q_BTHK.dtype == torch.float32:
        return WindowTiles(queries=32, keys=32, num_warps=4, num_stages=1)
    return None
