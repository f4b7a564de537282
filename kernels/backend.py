"""The kernel backends by name, what each can do, and the one place that refuses an unknown one."""

from dataclasses import dataclass
from typing import Literal

# Every kernel imports this file, and with it the mode of MKL, which must stand before a process's first product.
import samepath.kernels.mkl_mode  # noqa: F401

Backend = Literal["reference", "torch", "triton"]
"""`reference`: naive loops and dense products, any float type; the definition. `torch`: chunked, hand-written backward.
`triton`: fused GPU kernels in float32 and bfloat16; on CPU through Triton's interpreter, for tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do beyond every operation in float32."""

    fused: bool = False
    """Every operation is a kernel of its own (`fused_kernels`): no head's scores are held, and a row's LSE comes for nothing."""
    bfloat16: bool = False
    """Products of bfloat16 are added in float32."""
    narrow_sampling: bool = True
    """Passes without gradients run in bfloat16 too, with products added and compared in float32."""
    graphs: bool = False
    """Nothing waits for the host, so a pass on a GPU can be captured as a CUDA graph."""
    exact_on: tuple[str, ...] = ()
    """Device types on which a row's bits do not depend on its batch."""


CAPABILITIES: dict[Backend, Capabilities] = {
    "reference": Capabilities(narrow_sampling=False),
    "torch": Capabilities(exact_on=("cpu",)),
    "triton": Capabilities(fused=True, bfloat16=True, graphs=True, exact_on=("cpu", "cuda")),
}
"""Nobody else asks for a backend's name to know what it can do."""

ROW_MULTIPLE = 16
"""Row counts of every matrix product are padded to this multiple. On CPU a row of a float32 product then has the same bits for any
row count, any offset and any thread count (measured: torch 2.13, AVX-512 and AVX2, widths 16 to 2048; see `mkl_mode.py`)."""


def require_backend(name: str) -> Backend:
    """Return `name` if it is a backend of this build; raise ValueError that lists the ones that are."""
    for known in CAPABILITIES:
        if name == known:
            return known
    raise ValueError(f"kernel backend must be one of {', '.join(CAPABILITIES)}; got {name!r}. Set model.backend.")


def backends_that(capability: Literal["fused", "bfloat16", "graphs", "narrow_sampling"]) -> str:
    """Names of the backends that have it, for a message: `triton`, or `a or b`."""
    return " or ".join(name for name, able in CAPABILITIES.items() if getattr(able, capability))


def round_up(count: int, multiple: int = ROW_MULTIPLE) -> int:
    """Smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple
