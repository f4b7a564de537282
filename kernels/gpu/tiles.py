"""What all Triton kernels share about matrix products: the operand type that goes into the tensor cores, tiles, and whether Hopper's
kernels fit."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting

OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float8_e4m3fn: tl.float8e4nv}
"""Types that the kernels multiply. float32 products are exact IEEE ones, never tf32."""


def operand_type(dtype: torch.dtype) -> Any:
    """Triton's type of products in `dtype`; raise ValueError on one that the kernels do not multiply.

    The interpreter multiplies the bit patterns of bfloat16 instead of the numbers, so there the operands are widened first.
    """
    if dtype not in OPERANDS:
        raise ValueError(
            f"backend triton multiplies {', '.join(str(dtype) for dtype in OPERANDS)}; got {dtype}. Cast, or use backend torch."
        )
    return tl.float32 if interpreting() else OPERANDS[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products; changes the speed, never a result's meaning."""

    rows: int = 128
    """Rows a tile."""
    columns: int = 256
    """Columns a tile."""
    inner: int = 64
    """Inner width of one step."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 4
    """Steps in flight."""

    def arguments(self) -> dict[str, int]:
        """Compile-time arguments of a kernel but for its rows and columns."""
        return {"INNER": self.inner, "num_warps": self.num_warps, "num_stages": self.num_stages}


def default_tiles(dtype: torch.dtype) -> Tiles:
    """Tiles that fit the multiprocessor for this type."""
    if interpreting():
        return Tiles(rows=16, columns=32, inner=16)
    if dtype == torch.float32:
        return Tiles(rows=32, columns=64, inner=32, num_warps=4, num_stages=2)
    return Tiles()


GROUP_TILES = 8
"""Row tiles that walk over the columns together, so that they share the weights in L2."""


@triton.jit
def tile_place(num_columns, COLUMNS: tl.constexpr, GROUP: tl.constexpr, num_tiles):
    """(row tile, column tile) of this program: GROUP row tiles go through the columns together."""
    across = tl.cdiv(num_columns, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    inside = tl.program_id(0) % (GROUP * across)
    height = tl.minimum(num_tiles - group * GROUP, GROUP)
    return group * GROUP + inside % height, inside // height


def on_hopper(tensor: Tensor) -> bool:
    """Whether kernels written for Hopper can run where the tensor is: compute capability 9, and not in the interpreter, which Gluon has none of."""
    return not interpreting() and _capability(tensor.device) == 9


@cache
def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def fits_hopper(x_ND: Tensor, weight_OD: Tensor) -> bool:
    """Whether `rows.hopper_product` serves x · weightᵀ, for any number of rows: bfloat16, D a multiple of 8, compute capability 9."""
    bfloat16 = x_ND.dtype == weight_OD.dtype == torch.bfloat16
    return bfloat16 and x_ND.shape[1] % 8 == 0 and on_hopper(x_ND)
