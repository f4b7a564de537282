"""Rows cut at a power of two, as every attention kernel in Triton reads and writes them: a main part and the rest (576 = 512 + 64).

The tensor cores want powers of two, and padding 576 to 1024 would nearly double the products. A kernel gets a `Width` as one compile-time argument.
Where a row has no rest, the second part repeats the first and is never used.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """How the channels of a row are cut."""

    total: int
    """Channels of the row."""
    main: int
    """Channels of the first part, a power of two of at least 16; channels from `total` on are 0."""
    rest: int
    """Channels of the second part, likewise; 0: there is none."""


def split_width(width: int) -> Width:
    """The largest power of two ≤ width, and the padded power of two that holds the rest; each at least 16."""
    main = max(16, 1 << (width.bit_length() - 1))
    return Width(total=width, main=main, rest=0 if width <= main else max(16, triton.next_power_of_2(width - main)))


def front_width(key: Width, width: int) -> Width:
    """Cut the first `width` channels of a key, its value, where the key is cut."""
    return Width(total=width, main=key.main, rest=key.rest if width > key.main else 0)


@triton.jit
def load_rows(base, rows, first, stop, stride, live, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """Channels first … first + WIDTH − 1 of the given rows; 0 for rows that are not live and channels from `stop` on."""
    channel = first + tl.arange(0, WIDTH)
    pointers = base + rows[:, None] * stride + channel[None, :]
    if FULL:
        return tl.load(pointers, mask=live[:, None], other=0.0)
    return tl.load(pointers, mask=live[:, None] & (channel < stop)[None, :], other=0.0)


@triton.jit
def load_main(base, rows, live, stride, ROW: tl.constexpr, OPERAND: tl.constexpr):
    """The first part of some rows."""
    FULL: tl.constexpr = ROW.main <= ROW.total
    return load_rows(base, rows, 0, ROW.total, stride, live, ROW.main, FULL).to(OPERAND)


@triton.jit
def load_rest(base, rows, live, stride, ROW: tl.constexpr, OPERAND: tl.constexpr):
    """The second part of some rows."""
    FULL: tl.constexpr = ROW.main + ROW.rest == ROW.total
    return load_rows(base, rows, ROW.main, ROW.total, stride, live, ROW.rest, FULL).to(OPERAND)


@triton.jit
def load_parts(base, rows, live, stride, ROW: tl.constexpr, OPERAND: tl.constexpr):
    """Both parts of some rows."""
    main = load_main(base, rows, live, stride, ROW, OPERAND)
    rest = main
    if ROW.rest:
        rest = load_rest(base, rows, live, stride, ROW, OPERAND)
    return main, rest


@triton.jit
def product(a, b, total, KEYS_LEFT: tl.constexpr):
    """total + a · bᵀ of queries and keys [M, KEYS], or b · aᵀ [KEYS, M]."""
    if KEYS_LEFT:
        scores = tl.dot(b, tl.trans(a), total, input_precision="ieee")
    else:
        scores = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return scores


@triton.jit
def score_rows(
    q_main,
    q_rest,
    base,
    rows,
    live,
    stride,
    ROW: tl.constexpr,
    OPERAND: tl.constexpr,
    KEYS_LEFT: tl.constexpr = False,
):
    """(q · k [M, KEYS] or, with KEYS_LEFT, [KEYS, M]; both parts of the keys) of gathered keys."""
    k_main = load_main(base, rows, live, stride, ROW, OPERAND)
    scores = product(q_main, k_main, None, KEYS_LEFT)
    k_rest = k_main
    if ROW.rest:
        k_rest = load_rest(base, rows, live, stride, ROW, OPERAND)
        scores = product(q_rest, k_rest, scores, KEYS_LEFT)
    return scores, k_main, k_rest


@triton.jit
def no_part(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """One part of sums of nothing."""
    return tl.zeros((ROWS, WIDTH), tl.float32)


@triton.jit
def no_parts(ROWS: tl.constexpr, ROW: tl.constexpr):
    """Both parts of sums of nothing."""
    return no_part(ROWS, ROW.main), no_part(ROWS, ROW.rest if ROW.rest else 1)


@triton.jit
def add_product(left, main, rest, total, total_rest, ROW: tl.constexpr):
    """Both parts of total + left · [main, rest]."""
    total = tl.dot(left, main, total, input_precision="ieee")
    if ROW.rest:
        total_rest = tl.dot(left, rest, total_rest, input_precision="ieee")
    return total, total_rest


@triton.jit
def store_rows(base, rows, live, stride, values, first, stop, WIDTH: tl.constexpr):
    """Store channels first … first + WIDTH − 1 of the rows that are live, but none from `stop` on."""
    channel = first + tl.arange(0, WIDTH)
    keep = live[:, None] & (channel < stop)[None, :]
    tl.store(base + rows[:, None] * stride + channel[None, :], values.to(base.dtype.element_ty), mask=keep)


@triton.jit
def store_parts(base, rows, live, stride, main, rest, factor, ROW: tl.constexpr):
    """Store both parts, times the factor, of the rows that are live."""
    store_rows(base, rows, live, stride, main * factor, 0, ROW.total, ROW.main)
    if ROW.rest:
        store_rows(base, rows, live, stride, rest * factor, ROW.main, ROW.total, ROW.rest)
