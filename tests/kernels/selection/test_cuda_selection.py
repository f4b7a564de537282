"""The CUDA selection: its source, run on the CPU by fibers, equals the lexsort definition bit for bit; it compiles for GPUs where a compiler is present."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samepath.kernels.selection.cuda_selection import BLOCKS, MARGIN, SOURCE, THREADS
from samepath.kernels.selection.selection import select

POOL = 4096
MAIN = """
#include "cuda_on_cpu.h"
#include "selection.cu"
extern "C" int run(
    const float* logits, const int* starts, const int* ends, int* indices, int* counts, int rows, int keys, int selected, int pool, float margin
) {
    for (int row = 0; row < rows; row++) {
        auto work = [&] { select_rows(logits, starts, ends, indices, counts, keys, selected, pool, 2, margin); };
        if (!run_cluster(row * CLUSTER, work)) return 1;
    }
    return 0;
}
"""
Runner = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


@pytest.fixture(scope="module", params=[(128, 1, 1), (128, 4, 0)], ids=["one block per row", "four blocks per row"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """The kernel compiled for this CPU: (threads per block, blocks per row, aligned rows)."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    threads, cluster, aligned = request.param
    folder = tmp_path_factory.mktemp("selection")
    (folder / "main.cpp").write_text(MAIN)
    macros = [f"-DTHREADS={threads}", f"-DCLUSTER={cluster}", f"-DVECTOR={aligned}", "-DBLOCKS=1"]
    places = [f"-I{SOURCE.parent}", f"-I{Path(__file__).parents[1]}"]
    options = ["-O1", "-std=c++17", "-w", "-shared", "-fPIC", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"]
    subprocess.run(
        ["g++", *options, *macros, *places, folder / "main.cpp", "-o", folder / "main.so"], check=True, timeout=120
    )
    library = ctypes.CDLL(str(folder / "main.so"))

    def call(logits_NS: Tensor, starts_N: Tensor, ends_N: Tensor, num_selected: int) -> tuple[Tensor, Tensor]:
        num_rows, num_keys = logits_NS.shape
        # Poisoned: every element must be written.
        indices_NC = torch.full((num_rows, num_selected), -77, dtype=torch.int32)
        count_N = torch.full((num_rows,), -77, dtype=torch.int32)
        bounds = [bound_N.long().contiguous() for bound_N in (starts_N, ends_N)]
        tensors = [logits_NS.contiguous(), *bounds, indices_NC, count_N]
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        assert library.run(*pointers, num_rows, num_keys, num_selected, POOL, ctypes.c_float(MARGIN)) == 0, "deadlock"
        return indices_NC, count_N

    return call


def one_fp16_octave(num_keys: int) -> Tensor:
    """Values of [1, 2) on float16's 1024 steps: every value many times, all in one exponent bin."""
    return (torch.arange(num_keys) * 7919 % 1024).float() / 1024 + 1


def random_row(num_keys: int) -> Tensor:
    return torch.randn(num_keys, generator=torch.Generator().manual_seed(5))


def with_nan(row: Tensor) -> Tensor:
    row = row.clone()
    row[::7] = torch.nan
    row[::11] = -torch.inf
    return row


def unlucky(num_keys: int) -> Tensor:
    """Large values exactly where the row is sampled, and nowhere else."""
    place = torch.arange(4096)
    row = torch.full((num_keys,), -1.0)
    row[(place // 8) * (num_keys // 512) + place % 8] = torch.arange(4096.0)
    return row


SHORT = {
    "all equal": torch.full((700,), -3.5),
    "one octave": one_fp16_octave(700),
    "signed zeros and denormals": torch.tensor([-0.0, 0.0, -0.0, 0.0, 1e-45, -1e-45, 0.0] * 100),
    "nan and infinities": torch.tensor([torch.nan, 1.0, -torch.inf, torch.inf, 2.0] * 140),
    "all nan": torch.full((700,), torch.nan),
}
LONG = {
    "random": random_row(20000),
    "nan among numbers": with_nan(random_row(20000)),
    "half zero": random_row(20000).clamp(max=0.0),
    "all equal": torch.full((20000,), 0.25),
    "one octave": one_fp16_octave(20000),
    "ascending": torch.arange(20000.0),
    "descending": -torch.arange(20000.0),
    "unlucky sample": unlucky(20000),
}


def assert_selects(run: Runner, logits_NS: Tensor, bounds: list[tuple[int, int]], num_selected: int) -> None:
    starts_N, ends_N = torch.tensor(bounds).T
    wanted = select(logits_NS, starts_N, ends_N, num_selected, "reference")
    for got, truth in zip(run(logits_NS, starts_N, ends_N, num_selected), wanted, strict=True):
        assert torch.equal(got, truth)


@pytest.mark.parametrize("row", SHORT.values(), ids=SHORT.keys())
def test_select_rows_that_fit_the_pool_equal_the_definition(run: Runner, row: Tensor) -> None:
    bounds = [(0, 700), (17, 699), (140, 203), (5, 6), (9, 9), (690, 700)]
    assert_selects(run, row.repeat(len(bounds), 1), bounds, 64)


@pytest.mark.parametrize("row", LONG.values(), ids=LONG.keys())
def test_select_long_rows_equal_the_definition(run: Runner, row: Tensor) -> None:
    assert_selects(run, torch.stack([row, row.flip(0)]), [(0, 20000), (1001, 19990)], 300)


def test_select_more_keys_than_the_pool_holds_takes_the_sure_way(run: Runner) -> None:
    assert_selects(run, random_row(20000)[None], [(0, 20000)], POOL + 100)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(("architecture", "cluster"), [("90a", 1), ("90a", 4), ("80", 1)])
def test_source_compiles_and_spills_nothing_on_hopper(tmp_path: Path, architecture: str, cluster: int) -> None:
    options = [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-std=c++17", "-Xptxas", "-v"]
    macros = [f"-DTHREADS={THREADS}", f"-DBLOCKS={BLOCKS}", f"-DCLUSTER={cluster}", "-DVECTOR=1"]
    result = subprocess.run(
        ["nvcc", "-cubin", *options, *macros, SOURCE, "-o", tmp_path / "selection.cubin"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert architecture != "90a" or " 0 bytes spill stores" in result.stderr
