"""CUDA sources: what is said where they cannot be compiled, and what the compiler says of a wrong one."""

import ctypes
from pathlib import Path

import pytest
import torch

from samepath.kernels.gpu import cuda_program
from samepath.kernels.gpu.cuda_program import CudaKernel, CudaProgramError, compile_cuda


def test_compile_cuda_without_the_runtime_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    cuda_program._nvrtc.cache_clear()
    with pytest.raises(CudaProgramError, match=r"libnvrtc\.so\.99 .* Install PyTorch for CUDA"):
        compile_cuda(Path("none.cu"), "sm_90a", {})


@pytest.mark.gpu
def test_compile_cuda_of_a_wrong_source_shows_the_compilers_log(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void wrong() { undeclared = 1; }")
    with pytest.raises(CudaProgramError, match=r"wrong\.cu does not compile for sm_90a.*undeclared"):
        compile_cuda(source, "sm_90a", {})


@pytest.mark.gpu
def test_launch_runs_a_kernel_with_macros_and_all_shared_memory(tmp_path: Path) -> None:
    source = tmp_path / "scale.cu"
    source.write_text("""
    extern __shared__ float line[];
    extern "C" __global__ void scale(float* values, int count, float factor) {
        int last = 49999;
        line[last - threadIdx.x] = factor;
        __syncthreads();
        if (threadIdx.x < count) values[threadIdx.x] *= line[last - threadIdx.x] + EXTRA;
    }""")
    kernel = CudaKernel(source, "scale", [ctypes.c_void_p, ctypes.c_int, ctypes.c_float], 0, {"EXTRA": 2})
    values = torch.arange(64.0, device="cuda")
    kernel.launch(1, 64, 200_000, values.data_ptr(), 60, 0.5)
    wanted = torch.arange(64.0)
    wanted[:60] *= 2.5
    assert torch.equal(values.cpu(), wanted)
