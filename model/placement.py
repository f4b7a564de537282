"""Whose network runs, on which device, in which type, with which kernels: the choice itself, without torch."""

from dataclasses import dataclass
from typing import Literal

from samepath.kernels.backend import CAPABILITIES, Backend, backends_that

Implementation = Literal["own", "transformers"]
"""`own`: the network of this package, which the built-in engine runs too. `transformers`: any causal language model of it."""
DeviceName = Literal["cpu", "cuda"]
"""`cuda`: the first visible GPU of the process; CUDA_VISIBLE_DEVICES, or Ray's number of GPUs, chooses which one that is."""
TypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Device, type, kernels and batch invariance of a network.

    Example:
        Placement(device="cuda", dtype="bfloat16", backend="triton")
    """

    device: DeviceName = "cpu"
    """One GPU a process, or the CPU."""
    dtype: TypeName = "float32"
    """Type of weights and activations in the passes."""
    backend: Backend = "torch"
    """Kernels."""
    batch_invariant: bool = True
    """Whether a row's bits are the same in every batch; without that, what is fastest for the batch at hand."""

    @property
    def problem(self) -> str | None:
        """Why this combination can run nowhere; None if it can somewhere."""
        able = CAPABILITIES[self.backend]
        if self.dtype == "bfloat16" and not able.bfloat16:
            wanted = backends_that("bfloat16")
            return (
                f"model.dtype=bfloat16 needs model.backend={wanted}, whose kernels add in float32; got {self.backend}. "
                f"Set model.dtype=float32 or model.backend={wanted}."
            )
        if not self.batch_invariant and not (self.device == "cuda" and able.fused):
            return (
                f"model.batch_invariant=false needs model.device=cuda and model.backend={backends_that('fused')}: it chooses between those "
                f"kernels and the library's, and nothing else has a choice; got {self.device} and {self.backend}. Set these, or model.batch_invariant=true."
            )
        return None


ON_CPU = Placement()
"""The CPU in float32: the default, and the definition that everything else is compared with."""
