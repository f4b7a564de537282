"""A stand-in for a GPU on a machine without one: tensors that say they are on `cuda`, compute on the CPU, and refuse to mix with CPU ones.

It finds forgotten moves between devices, and nothing else: arithmetic, speed and memory are the CPU's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from samepath.rollout.builtin.builtin_engine import BuiltinEngine

GPU = torch.device("cuda", 0)
INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default}
"""Operations that take indices from the CPU for a tensor on a GPU."""
COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class OnGpu(Tensor):
    """Holds the CPU tensor that it computes with in `inner`."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnGpu":
        # On `meta` for torch itself, whose own code for GPUs is missing here.
        shape = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device="meta")
        return torch.Tensor._make_subclass(cls, shape, False, dispatch_device=True, device_for_backend_keys=GPU)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @property
    def device(self) -> torch.device:
        return GPU

    @property
    def data(self) -> Tensor:
        """The same memory."""
        return OnGpu(self.inner.data)

    @data.setter
    def data(self, other: "OnGpu") -> None:
        self.inner = other.inner

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *arguments: Any, **named: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(
        cls,
        operation: Any,
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        return run(operation, arguments, dict(named or {}))


class StandIn(TorchDispatchMode):
    """Catches what makes tensors on a device, and every operation on stand-ins."""

    # torch looks for a CUDA driver at the first mention of a GPU, except under a mode with this key.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        return run(operation, arguments, dict(named or {}))


def run(operation: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
    """Compute on the CPU; the result is where a GPU's would be."""
    if operation is torch.ops.prim.device.default:
        # What C++ code sees, which has no guard for GPUs here.
        return torch.device("meta")
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((arguments, named)) if isinstance(leaf, Tensor)]
    on_gpu = [leaf for leaf in tensors if isinstance(leaf, OnGpu)]
    device = named.get("device")
    if on_gpu and operation not in COPIES:
        checked = arguments[:1] if operation in INDEXED else (arguments, named)
        for leaf in torch.utils._pytree.tree_leaves(checked):
            if isinstance(leaf, Tensor) and not isinstance(leaf, OnGpu) and leaf.ndim:
                raise RuntimeError(f"{operation} mixes cuda:0 and cpu tensors: {[tuple(one.shape) for one in tensors]}")
        if operation in INDEXED and not isinstance(arguments[0], OnGpu):
            raise RuntimeError(f"{operation} indexes a cpu tensor with one on cuda:0")
    to_gpu = torch.device(device).type != "cpu" if device is not None else bool(on_gpu)
    if operation is torch.ops.aten.copy_.default:
        to_gpu = isinstance(arguments[0], OnGpu)
    if device is not None:
        named["device"] = torch.device("cpu")
    owners = {id(leaf.inner): leaf for leaf in on_gpu}
    plain_arguments, plain_named = tree_map(
        lambda leaf: leaf.inner if isinstance(leaf, OnGpu) else leaf, (arguments, named)
    )
    result = operation(*plain_arguments, **plain_named)

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not to_gpu:
            return leaf.clone() if isinstance(leaf, Tensor) and on_gpu and id(leaf) in owners else leaf
        # What an operation wrote into stays the same tensor.
        return owners[id(leaf)] if id(leaf) in owners else OnGpu(leaf)

    return tree_map(placed, result)


@contextmanager
def gpu_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every `cuda` device is the stand-in inside."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 1 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    made = torch.tensor

    def tensor(data: Any, *, device: torch.device | None = None, **named: Any) -> Tensor:
        """It fills a tensor from Python numbers without asking any mode."""
        return made(data, **named) if device is None else made(data, **named).to(device)

    monkeypatch.setattr(torch, "tensor", tensor)
    # Subclasses of tensors and inference mode do not go together.
    monkeypatch.setattr(BuiltinEngine, "step", torch.no_grad()(BuiltinEngine.step.__wrapped__))
    # Parameters are replaced: a CPU one cannot take a stand-in as its data.
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    with StandIn():
        yield
