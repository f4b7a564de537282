"""What all Triton kernels share about matrix products: the operand type that goes into the tensor cores."""

from typing import Any

import torch
import triton.language as tl

from samepath.kernels.triton_loading import interpreting

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
