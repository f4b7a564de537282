"""The one place that imports the Triton kernels, and says why they cannot run where they cannot."""

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

_LOADED: dict[str, ModuleType] = {}
"""Modules of Triton kernels by operation, filled by `triton_kernels`."""


def triton_problem() -> str | None:
    """Why the `triton` backend cannot run here and what to do about it; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed: pip install triton (Linux), or set model.backend to torch"
    if torch.cuda.is_available() or interpreting():
        return None
    return "no CUDA device is visible: run on an NVIDIA GPU, or set model.backend to torch (tests: TRITON_INTERPRET=1)"


def interpreting() -> bool:
    """True if Triton's kernels run in its CPU interpreter (TRITON_INTERPRET=1)."""
    return bool(importlib.import_module("triton").knobs.runtime.interpret)


def triton_kernels(operation: str, *tensors: Tensor) -> ModuleType:
    """The module of an operation's Triton kernels; the only import of them, because an installation for CPUs has no Triton.

    Raises RuntimeError where Triton or a GPU is missing, ValueError if a tensor is on the wrong device.
    """
    # Asked once an operation: the questions cost more time than most kernels.
    if operation not in _LOADED:
        problem = triton_problem()
        if problem is not None:
            raise RuntimeError(f"backend triton cannot run {operation}: {problem}.")
        _LOADED[operation] = importlib.import_module(f"samepath.kernels.{operation}")
    wanted = "cpu" if interpreting() else "cuda"
    wrong = [str(tensor.device) for tensor in tensors if tensor.device.type != wanted]
    if wrong:
        raise ValueError(
            f"backend triton needs all tensors of {operation} on {wanted}; got one on {wrong[0]}. Move them there."
        )
    return _LOADED[operation]
