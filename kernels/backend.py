"""The names of the kernel backends and the one place that refuses a missing one."""

from typing import Literal, get_args

# Every kernel imports this file, and with it the mode of MKL, which must stand before a process's first product.
import samepath.kernels.mkl_mode  # noqa: F401

Backend = Literal["reference", "torch", "triton"]
"""`reference`: naive loops and dense products, any float type; the definition. `torch`: chunked, hand-written backward.
`triton`: fused GPU kernels in float32 and bfloat16; on CPU through Triton's interpreter, for tests."""

ROW_MULTIPLE = 16
"""Row counts of every matrix product are padded to this multiple. On CPU a row of a float32 product then has the same bits for any
row count, any offset and any thread count (measured: torch 2.13, AVX-512 and AVX2, widths 16 to 2048; see `mkl_mode.py`)."""


def require_backend(name: str) -> Backend:
    """Return `name` if it is a backend of this build; raise ValueError that lists the ones that are."""
    for known in get_args(Backend):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"kernel backend must be one of {', '.join(get_args(Backend))}; got {name!r}. Set model.backend.")


def round_up(count: int, multiple: int = ROW_MULTIPLE) -> int:
    """Smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple
