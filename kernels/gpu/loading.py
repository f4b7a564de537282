"""The one place that loads a backend's own kernels, and says why they cannot run where they cannot."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from samepath.kernels.backend import CAPABILITIES, Backend

if TYPE_CHECKING:
    # An installation for CPUs has no Triton: `_import` does it, when the kernels are first asked for.
    from samepath.kernels.triton_backend import TritonKernels

FusedKernels: TypeAlias = "TritonKernels"
"""Kernels of any fused backend."""

_LOADED: dict[Backend, FusedKernels] = {}
"""Kernels by backend, filled by `fused_kernels`."""


def fused_kernels(backend: Backend, operation: str, *tensors: Tensor) -> "FusedKernels | None":
    """The backend's own kernels, for an operation on these tensors; None if it computes with torch's operations.

    `operation` is the name in messages. Raises RuntimeError where the backend cannot run, ValueError if a tensor is on the wrong device.
    """
    if not CAPABILITIES[backend].fused:
        return None
    # Asked once a process: the questions cost more time than most kernels.
    if backend not in _LOADED:
        problem = backend_problem(backend)
        if problem is not None:
            raise RuntimeError(f"backend {backend} cannot run {operation}: {problem}.")
        _LOADED[backend] = _import()
    wanted = "cpu" if interpreting() else "cuda"
    wrong = [str(tensor.device) for tensor in tensors if tensor.device.type != wanted]
    if wrong:
        raise ValueError(
            f"backend {backend} needs all tensors of {operation} on {wanted}; got one on {wrong[0]}. Move them there."
        )
    return _LOADED[backend]


def _import() -> FusedKernels:
    """The kernels of `triton`, so far the only ones."""
    # An installation for CPUs has no Triton.
    from samepath.kernels.triton_backend import TritonKernels

    return TritonKernels()


def backend_problem(backend: Backend) -> str | None:
    """Why the backend cannot run here and what to do about it; None where it can."""
    if not CAPABILITIES[backend].fused:
        return None
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed: pip install triton (Linux), or set model.backend to torch"
    if torch.cuda.is_available() or interpreting():
        return None
    return "no CUDA device is visible: run on an NVIDIA GPU, or set model.backend to torch (tests: TRITON_INTERPRET=1)"


def interpreting() -> bool:
    """True if Triton's kernels run in its CPU interpreter (TRITON_INTERPRET=1)."""
    return bool(importlib.import_module("triton").knobs.runtime.interpret)
