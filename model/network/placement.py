"""Puts a network of this package where it computes and into its type: the one place that moves weights and refuses what cannot run."""

import warnings

import torch

from samepath.kernels.backend import CAPABILITIES
from samepath.kernels.gpu.loading import backend_problem, interpreting
from samepath.kernels.mkl_mode import row_mode_problem
from samepath.model.network.network import CausalLM
from samepath.model.placement import Placement, TypeName

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PlacementError(RuntimeError):
    """A device, type or backend that this process does not have; the message says what to do."""


def require(placement: Placement) -> None:
    """Raise PlacementError unless this process can compute so."""
    if placement.problem is not None:
        raise PlacementError(placement.problem)
    if placement.device == "cuda" and not torch.cuda.is_available():
        built = "" if torch.version.cuda else f"; torch {torch.__version__} was built without CUDA"
        raise PlacementError(
            f"model.device=cuda needs a visible NVIDIA GPU; this process sees none{built}. Run `nvidia-smi`, look at "
            "CUDA_VISIBLE_DEVICES, install a CUDA build of torch, or set model.device=cpu."
        )
    backend = placement.backend
    problem = backend_problem(backend)
    if problem is not None:
        raise PlacementError(f"model.backend={backend} cannot run: {problem}.")
    if CAPABILITIES[backend].fused and placement.device == "cpu" and not interpreting():
        raise PlacementError(
            f"model.backend={backend} computes on GPUs; got model.device=cpu. Set model.device=cuda, or model.backend=torch."
        )


def place(model: CausalLM, placement: Placement) -> CausalLM:
    """Move a float32 network and round its weights to the type once; what is no weight (rotary table, selection bias) stays float32.

    Warns where MKL's mode lets a row of the CPU's products depend on its batch. Raises PlacementError.
    """
    made_ready(model, placement)
    if (placement.device, placement.dtype) == ("cpu", "float32"):
        return model
    model.to(torch.device("cuda", 0) if placement.device == "cuda" else torch.device("cpu"))
    return rounded(model, placement.dtype)


def made_ready(model: CausalLM, placement: Placement) -> CausalLM:
    """What `place` does but for moving and rounding."""
    require(placement)
    if placement.device == "cpu" and (problem := row_mode_problem()):
        warnings.warn(f"Sampler and learner may differ in the last bits: {problem}.", RuntimeWarning, stacklevel=3)
    if not placement.batch_invariant:
        model.let_rows_depend_on_their_batch()
    return model


def rounded(model: CausalLM, dtype: TypeName) -> CausalLM:
    """Round the weights of a network to a type."""
    if dtype != "float32":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(TYPES[dtype])
    return model
