"""A module that calls kernels, and which ones."""

from torch import nn

from samepath.kernels.backend import Backend


class KernelModule(nn.Module):
    """Part of a network of this package."""

    backend: Backend
    """Kernels of the operations that mix rows."""
    row_backend: Backend
    """Kernels of linear maps, norms and products of each head: `backend`, or the library's (`torch`) where a row's bits may depend on its batch."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = self.row_backend = backend
