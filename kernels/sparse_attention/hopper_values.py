"""The two warpgroups of sparse attention's forward for Hopper that add the values (Gluon).

The products of a tile are issued in two halves: one beside the scores of the next tile, the other while those scores' softmax is taken, so that the
tensor cores always have work.

Axes: N query rows, H heads, V value width.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from samepath.kernels.gpu.gluon import block_barrier
from samepath.kernels.sparse_attention.hopper_gather import HEADS, KEYS, MAIN, SLICE, SLICES, SLOTS, find_item


@gluon.jit
def add_values(out, work, keys, handover, HALF: gl.constexpr, PART: gl.constexpr):
    """Role of two warpgroups, every other slot of a tile each: output = output · rescale + P · V."""
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    ROWS: gl.constexpr = gl.SliceLayout(1, OUTPUT)
    EACH: gl.constexpr = gl.BlockedLayout([1, HEADS // 8], [32, 1], [4, 1], [1, 0])
    _, items, _, _, num_heads, _ = work
    k_main, _, _, empty, _, rest_empty = keys
    p_shared, factors, least, ready, taken = handover
    n = 0
    event = 0
    piece, first_head, _, _, count = find_item(gl.program_id(0), work, PART)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        next_piece, next_head, _, _, next_count = find_item(item + gl.num_programs(0), work, PART)
        front = gl.zeros([HEADS, SLICE], gl.float32, OUTPUT)
        back = gl.zeros([HEADS, SLICE], gl.float32, OUTPUT)
        tiles = (count + KEYS - 1) // KEYS
        for tile in range(tiles):
            mbarrier.wait(ready, event & 1)
            rescale = factors.load(ROWS)
            if gl.min(gl.min(least.slice(0, 1, dim=0).load(EACH), 1), 0) < 1.0:
                front = front * gl.expand_dims(rescale, 1)
                back = back * gl.expand_dims(rescale, 1)
            # Out of the way of the next tile's probabilities at once.
            probs = p_shared.load(gl.DotOperandLayout(0, OUTPUT, 2))
            block_barrier()
            mbarrier.arrive(taken, count=1)
            # The scores' role has waited for this tile's keys, and its fence covers them.
            slot = n * SLICES + HALF
            front = hopper.warpgroup_mma(probs, k_main.index(slot % SLOTS), front, is_async=True)
            front = hopper.warpgroup_mma_wait(0, deps=[front])
            block_barrier()
            mbarrier.arrive(empty.index(slot % SLOTS), count=1)
            if tile < tiles - 1:
                # The scores of the next tile first: this half fills the time of its softmax.
                mbarrier.wait(rest_empty.index((n + 1) % 2), ((n + 1) // 2) & 1)
            back = hopper.warpgroup_mma(probs, k_main.index((slot + 2) % SLOTS), back, is_async=True)
            back = hopper.warpgroup_mma_wait(0, deps=[back])
            block_barrier()
            mbarrier.arrive(empty.index((slot + 2) % SLOTS), count=1)
            n += 1
            event += 1
        mbarrier.wait(ready, event & 1)
        share = gl.expand_dims(factors.load(ROWS), 1)
        block_barrier()
        mbarrier.arrive(taken, count=1)
        event += 1
        live_heads = num_heads - first_head
        q_row = piece.to(gl.int64) * num_heads + first_head
        _store_slice(out + q_row * MAIN + HALF * SLICE, front * share, live_heads)
        _store_slice(out + q_row * MAIN + (HALF + 2) * SLICE, back * share, live_heads)
        piece = next_piece
        first_head = next_head
        count = next_count


@gluon.jit
def _store_slice(out, values, live_heads):
    """Store [HEADS, SLICE] values; for bfloat16 four lanes exchange theirs first, two bits of the column in turn, so that each holds 16 bytes."""
    if out.dtype.element_ty == gl.float32:
        STORE: gl.constexpr = values.type.layout
        final = values
    else:
        BETWEEN: gl.constexpr = gl.DistributedLinearLayout(
            reg_bases=[[0, 1], [8, 0], [0, 2], [0, 16], [0, 32], [0, 64]],
            lane_bases=[[0, 8], [0, 4], [1, 0], [2, 0], [4, 0]],
            warp_bases=[[16, 0], [32, 0]],
            block_bases=[],
            shape=[64, 128],
        )
        STORE: gl.constexpr = gl.DistributedLinearLayout(
            reg_bases=[[0, 1], [0, 2], [0, 4], [8, 0], [0, 32], [0, 64]],
            lane_bases=[[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
            warp_bases=[[16, 0], [32, 0]],
            block_bases=[],
            shape=[64, 128],
        )
        final = gl.convert_layout(gl.convert_layout(values.to(gl.bfloat16), BETWEEN), STORE)
    head = gl.arange(0, HEADS, gl.SliceLayout(1, STORE))
    channel = gl.arange(0, SLICE, gl.SliceLayout(0, STORE))
    place = gl.expand_dims(head, 1) * MAIN + gl.expand_dims(channel, 0)
    gl.store(out + place, final, mask=gl.expand_dims(head < live_heads, 1))
