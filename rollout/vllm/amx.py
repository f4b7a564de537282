"""Intel's matrix tiles (AMX), which a process must ask the system for before its first instruction uses them."""

import torch


def allow_matrix_tiles() -> bool:
    """Ask the system for AMX where the processor has it; True if it was granted. May be called again, and does nothing elsewhere.

    vLLM's bfloat16 kernels use the tiles as soon as the processor has them, without asking: the process would die of an illegal instruction.
    """
    # Both are torch's own and not public: a version without them cannot be asked.
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    allow = getattr(torch.cpu, "_init_amx", None)
    if supported is None or allow is None or not supported():
        return False
    return bool(allow())
