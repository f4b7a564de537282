"""What the kernels of sparse attention in Triton share: a row's block of heads, and one tile of gathered keys in the running softmax.

Axes: H heads, C selected keys.
"""

import triton
import triton.language as tl

from samepath.kernels.gpu.row_parts import add_product, load_parts, no_parts


@triton.jit
def load_heads(q, row, head, num_heads, KEY: tl.constexpr, OPERAND: tl.constexpr):
    """(which heads exist, their places in [N·H], both parts of their queries) of some heads of a row."""
    live = head < num_heads
    places = row * num_heads + head
    main, rest = load_parts(q, places, live, KEY.total, KEY, OPERAND)
    return live, places, main, rest


@triton.jit
def no_keys(HEADS: tl.constexpr, VALUE: tl.constexpr):
    """(values, rest of the values, maximum, sum) before the first tile."""
    out, out_rest = no_parts(HEADS, VALUE)
    return out, out_rest, tl.full((HEADS,), float("-inf"), tl.float32), tl.zeros((HEADS,), tl.float32)


@triton.jit
def add_tile(state, scores, k_main, k_rest, VALUE: tl.constexpr, OPERAND: tl.constexpr):
    """Add one tile of keys, whose front is their value; scores are in base 2, −inf for keys that do not exist."""
    out, out_rest, top, total = state
    new_top = tl.maximum(top, tl.max(scores, 1))
    rescale = tl.exp2(top - new_top)
    probs = tl.exp2(scores - new_top[:, None])
    total = total * rescale + tl.sum(probs, 1)
    factors = rescale[:, None]
    out, out_rest = add_product(probs.to(OPERAND), k_main, k_rest, out * factors, out_rest * factors, VALUE)
    return out, out_rest, new_top, total
