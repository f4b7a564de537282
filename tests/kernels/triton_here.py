"""Where the Triton tests run: on a GPU if there is one, else in Triton's CPU interpreter, else nowhere.

A test module calls `require_triton()` before it imports kernels: Triton chooses its interpreter when a kernel is defined.
"""

import os
from importlib.util import find_spec

import pytest
import torch


def require_triton() -> torch.device:
    """The device of the tests; skips the calling module where Triton is not installed."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install -e '.[triton]'", allow_module_level=True)
    if torch.cuda.is_available():
        return torch.device("cuda")
    os.environ.setdefault("TRITON_INTERPRET", "1")
    return torch.device("cpu")
