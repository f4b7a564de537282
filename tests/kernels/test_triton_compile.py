"""Every Triton and Gluon kernel compiles for Hopper with the installed Triton, though this machine may have no GPU.

The interpreter cannot run Gluon, and says nothing of shared memory or of what the compiler for GPUs refuses.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import samepath.kernels
from tests.kernels.triton_here import require_triton

require_triton()

KERNELS = Path(samepath.kernels.__file__ or next(iter(samepath.kernels.__path__)))
SCRIPT = Path(__file__).with_name("compile_for_hopper.py")
INTERPRETER_ONLY = {"triton_selection.py"}
"""Twins of kernels in other languages, which no GPU runs."""


def launched_kernels() -> set[str]:
    """Names of all kernels that a file defines and this or another one launches."""
    defined: set[str] = set()
    launched: set[str] = set()
    for file in KERNELS.rglob("*.py"):
        source = file.read_text()
        if file.name not in INTERPRETER_ONLY:
            defined |= set(re.findall(r"@(?:triton|gluon)\.jit[^\n]*(?:\n[ )][^\n]*)*\ndef (\w+)", source))
            launched |= set(re.findall(r"\b(\w+)\[(?:\(|grid\]\()", source))
    return defined & launched


@pytest.mark.slow
def test_all_kernels_compile_for_hopper():
    # A process of its own: Triton chooses between interpreter and compiler when a kernel is defined.
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    result = subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    compiled = {line.split()[0] for line in result.stdout.splitlines()}
    assert not launched_kernels() - compiled
