"""The mode in which Intel's MKL multiplies on CPU: whether a row's bits depend on how many rows stand beside it.

Left alone, MKL cuts a product by its number of rows: at inner widths from 1024 on with two threads, in batched products of few rows, and
almost everywhere without AVX-512. `MKL_CBWR=AUTO,STRICT` gives every row one order of additions. MKL reads the variable with the first
product of a process, so it is set when this file is imported, and every kernel imports it. It is free of torch.
"""

import ctypes
import os
from pathlib import Path

VARIABLE = "MKL_CBWR"
ROW_EXACT = "AUTO,STRICT"
BRANCHES = {1: "off", 2: "AUTO", 3: "COMPATIBLE", 9: "AVX", 10: "AVX2", 12: "AVX512", 14: "AVX512_E1"}
"""Names of MKL's numbers for the code that it takes; `off` is its own choice for each product."""
STRICT_BIT = 1 << 16
"""Set beside the number of the code where a row has one order of additions."""
EVERYTHING = -1
"""What MKL is asked for: code and strictness together."""

# What the user set stays.
os.environ.setdefault(VARIABLE, ROW_EXACT)


def mkl_mode() -> str | None:
    """The mode in force in this process as MKL itself gives it, such as `AUTO,STRICT` or `off`; None if there is no MKL that answers.

    The answer is final: MKL does not read the variable again.
    """
    # Late: the variable must stand before anything that multiplies, and the command line asks nothing of torch.
    import torch

    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not has_mkl or not library.is_file():
        return None
    # torch has loaded it already: this gives the same library, MKL's part included.
    ask = getattr(ctypes.CDLL(str(library)), "mkl_serv_cbwr_get", None)
    if ask is None:
        return None
    answer = int(ask(EVERYTHING))
    branch = answer & (STRICT_BIT - 1)
    return BRANCHES.get(branch, f"code {branch}") + (",STRICT" if answer & STRICT_BIT else "")


def row_mode_problem() -> str | None:
    """Why rows of MKL's products may depend on their number in this process, and what to do; None if they do not, or there is no MKL."""
    mode, wanted = mkl_mode(), os.environ.get(VARIABLE, "")
    if mode is None or mode.endswith(",STRICT"):
        return None
    if mode == "off" and wanted.endswith(",STRICT"):
        cause = "something multiplied before samepath.kernels was imported; import it first"
    else:
        cause = f"{VARIABLE} is {wanted!r}; unset it"
    return f"MKL multiplies in mode {mode}, in which a row's bits may depend on the number of rows: {cause}, or start with {VARIABLE}={ROW_EXACT}"
