"""Exact top-C selection on NVIDIA GPUs (CUDA C++ in selection.cu); same contract and result as `triton_selection`.

Axes: N query rows, S key positions, C selected keys.
"""

import ctypes
import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from samepath.kernels.gpu.cuda_program import CudaKernel, most_shared_memory

SOURCE = Path(__file__).with_name("selection.cu")
ARGUMENTS = [ctypes.c_void_p] * 5 + [ctypes.c_longlong] + [ctypes.c_int] * 3 + [ctypes.c_float]

BLOCK_BYTES, CHUNK, SAMPLE = 8704, 512, 4096
"""Shared memory in front of the pool, keys that a warp looks at together, and keys of a row that are sampled; those of the source."""
THREADS, BLOCKS = 512, 2
"""Threads a block, blocks a multiprocessor."""
KEYS_A_BLOCK = 8192
"""Keys of a row that are worth a block of their own, if there are few rows."""
MARGIN = 5.0
"""Standard deviations that the bar lies below, and the pool's end above, what the sample promises."""


@cache
def kernel(device: int, cluster: int, aligned: bool) -> CudaKernel:
    """The compiled kernel with `cluster` blocks per row, for rows that begin at multiples of 16 bytes or not."""
    macros = {"THREADS": THREADS, "BLOCKS": BLOCKS, "CLUSTER": cluster, "VECTOR": int(aligned)}
    return CudaKernel(SOURCE, "select_rows", ARGUMENTS, device, macros)


def pool_size(num_keys: int, num_selected: int) -> int:
    """Keys that the pool of a row must hold so that a fair sample's bar almost never admits more."""
    share = num_selected * SAMPLE / num_keys
    rank = share + MARGIN * math.sqrt(share) + 4
    return max(SAMPLE, 256 * math.ceil((rank + MARGIN * math.sqrt(rank)) * num_keys / SAMPLE / 256))


@cache
def blocks_a_row(device: int, num_rows: int, num_keys: int) -> int:
    """As many as the card holds at once; one where blocks cannot share their memory (before compute capability 9)."""
    if torch.cuda.get_device_capability(device)[0] < 9:
        return 1
    most = BLOCKS * torch.cuda.get_device_properties(device).multi_processor_count // num_rows
    return next(size for size in (4, 2, 1) if size <= max(1, min(most, num_keys // KEYS_A_BLOCK)))


@cache
def memory(device: int, num_keys: int, num_selected: int) -> tuple[int, int]:
    """(keys a pool, bytes of shared memory of a block); a pool of no keys asks for the sure way."""
    table_bytes = 4 * (num_keys // CHUNK + 2)
    pool = pool_size(num_keys, num_selected)
    if BLOCK_BYTES + 8 * pool + table_bytes > most_shared_memory(device):
        pool = table_bytes = 0
    return pool, BLOCK_BYTES + 8 * pool + table_bytes


def select(logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int) -> tuple[Tensor, Tensor]:
    """(indices_NC, count_N) of the `num_selected` best valid keys of each row of contiguous float32 logits on a GPU.

    Fit for a CUDA graph from the second call of a shape on: the first one may compile.
    """
    num_rows, num_keys = logits_NS.shape
    device = logits_NS.device
    if starts_N.dtype != ends_N.dtype or starts_N.dtype not in (torch.int32, torch.int64):
        starts_N, ends_N = starts_N.long(), ends_N.long()
    starts_N, ends_N = starts_N.contiguous(), ends_N.contiguous()
    indices_NC = torch.empty(num_rows, num_selected, dtype=torch.int32, device=device)
    count_N = torch.empty(num_rows, dtype=torch.int32, device=device)
    cluster = blocks_a_row(device.index, num_rows, num_keys)
    pool, shared_bytes = memory(device.index, num_keys, num_selected)
    logits = logits_NS.data_ptr()
    kernel(device.index, cluster, num_keys % 4 == 0 and logits % 16 == 0).launch(
        num_rows * cluster,
        THREADS,
        shared_bytes,
        logits,
        starts_N.data_ptr(),
        ends_N.data_ptr(),
        indices_NC.data_ptr(),
        count_N.data_ptr(),
        num_keys,
        num_selected,
        pool,
        starts_N.element_size() // 4,
        MARGIN,
    )
    return indices_NC, count_N
