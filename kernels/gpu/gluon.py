"""What Gluon calls differently from one version of Triton to the next; the kernels import these names and no others."""

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, tma

block_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""All warps of the program, or of the role, wait for each other: `thread_barrier` up to Triton 3.6, `barrier` from 3.7 on."""
copy_to_shared = async_copy.async_load if hasattr(async_copy, "async_load") else async_copy.async_copy_global_to_shared
"""Start an asynchronous copy from pointers to shared memory: (target, pointers, mask=…)."""
tile_to_shared = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
"""Start copying a tile of a tensor map to shared memory: (map, place, barrier, target)."""
tile_from_shared = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
"""Start copying a tile from shared memory to its place in a tensor map: (map, place, source)."""
_MEMORY = gl.shared_memory_descriptor
view_shared = _MEMORY.reinterpret if hasattr(_MEMORY, "reinterpret") else _MEMORY._reinterpret
"""Shared memory under another shape: (memory, type, shape, layout)."""
