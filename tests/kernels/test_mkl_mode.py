"""MKL's mode: set by the import of any kernel, left to the user, and asked of MKL itself."""

import os
import subprocess
import sys

import pytest

from samepath.kernels.mkl_mode import ROW_EXACT, VARIABLE, mkl_mode, row_mode_problem

pytestmark = pytest.mark.skipif(mkl_mode() is None, reason="torch multiplies with another library than MKL here")
PRODUCT = "import torch; torch.ones(64, 64) @ torch.ones(64, 64); "
ASK = "from samepath.kernels.mkl_mode import mkl_mode, row_mode_problem; print(mkl_mode(), row_mode_problem(), flush=True)"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PRODUCT + ASK!r}], check=True)"
FORKED = {
    "row_product": f"import samepath.kernels.rows.row_product; {PRODUCT}{ASK}",
    "dense_attention": f"import samepath.kernels.dense_attention.dense_attention; {PRODUCT}{ASK}",
    "child": f"import samepath.kernels.backend; {CHILD}",
    "product first": f"{PRODUCT}{ASK}",
}
"""What is run in processes forked from one that has imported torch and multiplied nothing: MKL chooses its mode at the first product."""
FORKS = """
import os, sys, torch
for program in sys.argv[1:]:
    if not (child := os.fork()):
        exec(program)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def asked(program: str, *arguments: str, **variables: str) -> str:
    """What a fresh process prints."""
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What each of the forked processes prints."""
    return dict(zip(FORKED, asked(FORKS, *FORKED.values()).splitlines(), strict=True))


def test_this_process_has_the_mode_that_makes_rows_stand_alone() -> None:
    assert mkl_mode() == ROW_EXACT
    assert row_mode_problem() is None


@pytest.mark.parametrize("module", ["row_product", "dense_attention"])
def test_importing_a_kernel_before_the_first_product_sets_the_mode_even_after_torch(
    module: str, said: dict[str, str]
) -> None:
    assert said[module] == f"{ROW_EXACT} None"


def test_children_inherit_the_mode(said: dict[str, str]) -> None:
    assert said["child"] == f"{ROW_EXACT} None"


def test_a_product_before_the_import_is_told(said: dict[str, str]) -> None:
    assert said["product first"].startswith("off MKL multiplies in mode off")
    assert "something multiplied before samepath.kernels was imported" in said["product first"]


def test_the_mode_that_the_user_set_stays_and_is_told() -> None:
    said = asked(f"import samepath.kernels.backend; {PRODUCT}{ASK}", **{VARIABLE: "COMPATIBLE"})
    assert said.startswith("COMPATIBLE MKL multiplies in mode COMPATIBLE")
    assert "MKL_CBWR is 'COMPATIBLE'; unset it, or start with MKL_CBWR=AUTO,STRICT" in said
