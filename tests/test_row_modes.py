"""Rows stand alone whatever code the libraries take here: this processor's own, that of one without AVX-512, and MKL's for Intel."""

import os
import subprocess
import sys

import pytest
import torch

from samepath.kernels.mkl_mode import ROW_EXACT, VARIABLE, mkl_mode
from samepath.kernels.rows.row_product import ONEDNN, processor_maker

LIBRARIES = "onednn,mkl" if ONEDNN else "mkl"
"""oneDNN's rows depend on their number on Intel's processors, and nothing multiplies with it there."""
AVX2 = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
MODES = {
    "own": ((LIBRARIES,), {}),
    "avx2": ((LIBRARIES, "engines"), AVX2),
    "intel": (("mkl", "intel"), {}),
    "intel avx2": (("mkl", "intel", "engines"), AVX2),
}
"""Arguments and variables of `tests/row_modes.py`."""

pytestmark = pytest.mark.skipif(mkl_mode() is None, reason="torch multiplies with another library than MKL here")


def row_modes(name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    arguments, changes = MODES[name]
    threads = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        [sys.executable, "-m", "tests.row_modes", *arguments],
        env={**inherited, **threads, **changes, **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )


# MKL's code for Intel's processors is taken once here, with AVX2; that for this processor's widest instructions is slow.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "intel" else name for name in MODES]
)
def test_rows_stand_alone_in_every_mode_of_the_libraries(name: str) -> None:
    if "intel" in name and processor_maker() == "GenuineIntel":
        pytest.skip("what MKL keeps for Intel's processors is this one's own")
    done = row_modes(name)
    assert done.returncode == 0, done.stdout + done.stderr
    capability = "AVX2" if "avx2" in name else torch.backends.cpu.get_cpu_capability()
    assert done.stdout.splitlines()[0] == f"MKL {ROW_EXACT}, torch {capability}"


def test_rows_depend_on_their_batch_in_another_mode_of_mkl_and_the_check_sees_it() -> None:
    """Without this the tests above could pass for a reason of their own."""
    done = row_modes("avx2" if processor_maker() == "GenuineIntel" else "intel avx2", **{VARIABLE: ""})
    assert done.returncode == 1, done.stderr
    assert "MKL off," in done.stdout
    for what in ("a product of width", "engine and learner of"):
        assert what in done.stdout
