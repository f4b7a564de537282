"""What Gluon calls differently from one version of Triton to the next; the kernels import these names and no others."""

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy

block_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""All warps of the program, or of the role, wait for each other: `thread_barrier` up to Triton 3.6, `barrier` from 3.7 on."""
copy_to_shared = async_copy.async_load if hasattr(async_copy, "async_load") else async_copy.async_copy_global_to_shared
"""Start an asynchronous copy from pointers to shared memory: (target, pointers, mask=…)."""
