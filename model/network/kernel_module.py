"""A module that calls kernels, and which ones."""

from torch import nn

from samepath.kernels.backend import Backend


class KernelModule(nn.Module):
    """Part of a network of this package."""

    backend: Backend
    """Kernels."""
    batch_invariant: bool
    """Whether a row's bits must be the same in every batch."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend, self.batch_invariant = backend, True

    @property
    def row_backend(self) -> Backend:
        """Kernels of linear maps, norms and products of each head: the library's, which are faster, where rows may depend on their batch."""
        return self.backend if self.batch_invariant else "torch"
