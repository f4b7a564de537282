"""Where the Triton tests run: on a GPU if there is one, else in Triton's CPU interpreter, else nowhere.

A test module calls `require_triton()` before it imports kernels: Triton chooses its interpreter when a kernel is defined.
"""

import os
from functools import cache
from importlib.util import find_spec
from types import FunctionType

import pytest
import torch


def require_triton() -> torch.device:
    """The device of the tests; skips the calling module where Triton is not installed."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install -e '.[triton]'", allow_module_level=True)
    if torch.cuda.is_available():
        return torch.device("cuda")
    os.environ.setdefault("TRITON_INTERPRET", "1")
    prepare_the_language_once_a_launch()
    return torch.device("cpu")


@cache
def prepare_the_language_once_a_launch() -> None:
    """Spare the interpreter up to half of its time: it replaces all of `triton.language` anew at every call of one jitted function by another.

    What is replaced stays so until the launch ends, so that to do it once a launch for each module of the language gives the same. A version of
    Triton that does it in another way is left as it is.
    """
    # Late: Triton may be missing.
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope") or not hasattr(interpreter, "_patch_lang"):
        return
    replace = interpreter._patch_lang
    language = {id(module) for module in (interpreter.tl, interpreter.tl.core)}
    replaced: set[int] = set()

    @cache
    def used_by(function: FunctionType) -> set[int]:
        return language & {id(value) for value in function.__globals__.values()}

    class Launch(interpreter._LangPatchScope):
        """What one launch has replaced."""

        def restore(self) -> None:
            replaced.clear()
            super().restore()

    def replace_once(function: FunctionType) -> Launch | None:
        """Called for a kernel, whose launch restores, and for every function that it calls, where the result is not used."""
        used = used_by(function)
        if replaced and used <= replaced:
            return None
        replaced.update(used)
        return replace(function)

    interpreter._LangPatchScope, interpreter._patch_lang = Launch, replace_once
