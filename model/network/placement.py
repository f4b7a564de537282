"""Where a network of this package computes and in which type: the one place that moves weights and refuses what cannot run."""

from dataclasses import dataclass
from typing import Literal

import torch

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import interpreting, triton_problem
from samepath.model.network.network import CausalLM

DeviceName = Literal["cpu", "cuda"]
"""`cuda`: the first visible GPU of the process; CUDA_VISIBLE_DEVICES, or Ray's number of GPUs, chooses which one that is."""
TypeName = Literal["float32", "bfloat16"]
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PlacementError(RuntimeError):
    """A device, type or backend that this process does not have; the message says what to do."""


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
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        return torch.device("cuda", 0) if self.device == "cuda" else torch.device("cpu")

    @property
    def problem(self) -> str | None:
        """Why this combination can run nowhere; None if it can somewhere."""
        if self.dtype == "bfloat16" and self.backend != "triton":
            return (
                f"model.dtype=bfloat16 needs model.backend=triton, whose kernels add in float32; got {self.backend}. "
                "Set model.dtype=float32 or model.backend=triton."
            )
        if not self.batch_invariant and (self.device, self.backend) != ("cuda", "triton"):
            return (
                "model.batch_invariant=false needs model.device=cuda and model.backend=triton: it chooses between those kernels and the "
                f"library's, and nothing else has a choice; got {self.device} and {self.backend}. Set these, or model.batch_invariant=true."
            )
        return None

    def require(self) -> None:
        """Raise PlacementError unless this process can compute so."""
        if self.problem is not None:
            raise PlacementError(self.problem)
        if self.device == "cuda" and not torch.cuda.is_available():
            built = "" if torch.version.cuda else f"; torch {torch.__version__} was built without CUDA"
            raise PlacementError(
                f"model.device=cuda needs a visible NVIDIA GPU; this process sees none{built}. Run `nvidia-smi`, look at "
                "CUDA_VISIBLE_DEVICES, install a CUDA build of torch, or set model.device=cpu."
            )
        if self.backend == "triton":
            problem = triton_problem()
            if problem is not None:
                raise PlacementError(f"model.backend=triton cannot run: {problem}.")
            if self.device == "cpu" and not interpreting():
                raise PlacementError(
                    "model.backend=triton computes on GPUs; got model.device=cpu. Set model.device=cuda, or model.backend=torch."
                )

    def place(self, model: CausalLM) -> CausalLM:
        """Move a float32 network here and round its weights to the type once; what is no weight (rotary table, selection bias) stays float32.

        Raises PlacementError.
        """
        self.require()
        if not self.batch_invariant:
            model.let_rows_depend_on_their_batch()
        if (self.device, self.dtype) == ("cpu", "float32"):
            return model
        model.to(self.torch_device)
        if self.dtype != "float32":
            for parameter in model.parameters():
                parameter.data = parameter.data.to(TYPES[self.dtype])
        return model


ON_CPU = Placement()
"""The CPU in float32: the default, and the definition that everything else is compared with."""
