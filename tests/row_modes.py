"""One processor, seen as another: row exactness in a process whose libraries take other code than they would choose.

`python -m tests.row_modes LIBRARY[,LIBRARY] [intel] [engines]`, with the instruction sets in the environment. `intel` lets MKL take the code
that it keeps for Intel's processors, so that an AMD machine can test it. Prints what depends on its batch, a line each; status 1 if
anything does.
"""

import ctypes
import sys
from pathlib import Path

import torch

from samepath.kernels.mkl_mode import mkl_mode
from samepath.kernels.rows import row_product
from samepath.rl.validate.row_exactness import COMMON, RowShapes, first_dependent_row

SHAPES = RowShapes(
    products=((48, 48), (128, 8000), (192, 96), (256, 256), (384, 16), (512, 512), (1536, 48), (2048, 200)),
    experts=((64, 32), (224, 96)),
    attention=((2, 2, 64, 64), (1, 8, 64, 64), (2, 2, 128, 128), (1, 16, 576, 512), (1, 2, 576, 512), (2, 4, 96, 96)),
    absorbed=((2, 192, 64), (4, 64, 16)),
    selected=((8, 576, 512, 64), (4, 40, 32, 8)),
    indexer=((1, 64), (8, 128)),
)
"""Beside the widths that `samepath doctor` looks at: more outer widths, few heads, a vocabulary."""
ENGINE_FAMILIES = ("smollm", "qwen3", "qwen3_moe", "deepseek_v32")
TRUE = b"\xb8\x01\x00\x00\x00\xc3"
"""`mov eax, 1; ret`."""
WRITABLE = 7
"""Read, write and run, to mprotect."""


def take_intel_code() -> None:
    """Let MKL's question for the maker of the processor be answered with Intel, before its first product."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for name in ("mkl_serv_intel_cpu", "mkl_serv_intel_cpu_true"):
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        assert address is not None
        assert protect(address & ~4095, 8192, WRITABLE) == 0
        ctypes.memmove(address, TRUE, len(TRUE))


def engine_problems() -> list[str]:
    """Families whose samples the learner does not repeat to the last bit."""
    # Late: these make weights, and MKL remembers the processor from its first random number on.
    from tests.engine_runs import SAMPLINGS, assert_learner_walks_the_same_path, make_engine, steps_until_done
    from tests.families import family_model
    from tests.tiny_runs import request

    wrong = []
    for name in ENGINE_FAMILIES:
        model = family_model(name)
        engine = make_engine(family_model(name), max_sequences=5, page_size=4)
        for number, length in enumerate((3, 30, 17)):
            prompt = [2 + (7 * number + place) % 16 for place in range(length)]
            assert engine.submit(request(f"g{number}", prompt, SAMPLINGS[0], range(3))) is None
        try:
            assert_learner_walks_the_same_path(steps_until_done(engine), 1.0, model)
        except AssertionError as error:
            wrong.append(f"engine and learner of {name} differ: {str(error).splitlines()[0] if str(error) else ''}")
    return wrong


def main(libraries: str, *wanted: str) -> int:
    if "intel" in wanted:
        take_intel_code()
    wrong = []
    for library in libraries.split(","):
        row_product.ONEDNN = library == "onednn"
        for shapes in (COMMON, SHAPES):
            different = first_dependent_row(shapes, (1, 2))
            wrong += [f"{library}: {different}"] if different else []
        torch.set_num_threads(1)
        wrong += [f"{library}: {problem}" for problem in (engine_problems() if "engines" in wanted else ())]
    print(f"MKL {mkl_mode()}, torch {torch.backends.cpu.get_cpu_capability()}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
