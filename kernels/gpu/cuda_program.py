"""CUDA C++ kernels that are compiled when they are first used (NVRTC, which comes with PyTorch) and launched through the driver."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

STATIC_SHARED, DYNAMIC_SHARED_LIMIT = 1, 8
"""CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES and …_MAX_DYNAMIC_SHARED_SIZE_BYTES."""


class CudaProgramError(RuntimeError):
    """A CUDA source did not compile, load or launch."""


@cache
def _nvrtc() -> ctypes.CDLL:
    """The runtime compiler of PyTorch's CUDA version.

    Raises CudaProgramError if it is not installed.
    """
    name = f"libnvrtc.so.{(torch.version.cuda or 'none').split('.')[0]}"
    bundled = sorted((Path(torch.__file__).parents[1] / "nvidia").glob(f"*/lib/{name}"))
    for place in [name, *map(str, bundled)]:
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise CudaProgramError(
        f"CUDA sources need {name} of the CUDA version of PyTorch ({torch.version.cuda}); found none. "
        "Install PyTorch for CUDA, which brings it along, or nvidia-cuda-nvrtc of that version."
    )


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: object) -> None:
    """Call a function of the driver and raise CudaProgramError unless it succeeds."""
    code = getattr(_driver(), name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise CudaProgramError(f"{name} failed with {code}: {(text.value or b'').decode()}")


def _enter_context(device: int) -> None:
    """Make the GPU's context, which PyTorch shares, this thread's own, where no operation of PyTorch has done so yet."""
    context = ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuCtxGetCurrent", ctypes.byref(context))
    if context.value is None:
        handle = ctypes.c_int()
        _call("cuDeviceGet", ctypes.byref(handle), device)
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        _call("cuCtxSetCurrent", context)


def most_shared_memory(device: int) -> int:
    """Bytes of shared memory that one block may have."""
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def compile_cuda(source: Path, architecture: str, macros: dict[str, int]) -> bytes:
    """Machine code of a source file, e.g. for `sm_90a`, with macros defined.

    Raises CudaProgramError with the compiler's log.
    """
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    text = source.read_bytes()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None)
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        "--device-as-default-execution-space",
        *(f"-D{name}={macros[name]}" for name in macros),
    ]
    values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    code = nvrtc.nvrtcCompileProgram(program, len(options), values)
    size = ctypes.c_size_t()
    if code:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise CudaProgramError(f"{source.name} does not compile for {architecture}: {log.value.decode()}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code_bytes = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code_bytes)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code_bytes.raw


class CudaKernel:
    """One kernel of a compiled source on one GPU; it may use all the shared memory there is."""

    def __init__(
        self, source: Path, name: str, argument_types: Sequence[type], device: int, macros: dict[str, int]
    ) -> None:
        major, minor = torch.cuda.get_device_capability(device)
        # The `a` admits what only this generation has.
        code = compile_cuda(source, f"sm_{major}{minor}{'a' if major >= 9 else ''}", macros)
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            _enter_context(device)
            _call("cuModuleLoadData", ctypes.byref(module), code)
        _call("cuModuleGetFunction", ctypes.byref(self._function), module, name.encode())
        static = ctypes.c_int()
        _call("cuFuncGetAttribute", ctypes.byref(static), STATIC_SHARED, self._function)
        spare = most_shared_memory(device) - static.value
        _call("cuFuncSetAttribute", self._function, DYNAMIC_SHARED_LIMIT, spare)
        self._types = argument_types

    def launch(self, grid: int, threads: int, shared_bytes: int, *arguments: int | float) -> None:
        """Launch on PyTorch's current stream of the current device; tensors are passed by `data_ptr()`."""
        values = [kind(value) for kind, value in zip(self._types, arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _call("cuLaunchKernel", self._function, grid, 1, 1, threads, 1, 1, shared_bytes, stream, pointers, None)
