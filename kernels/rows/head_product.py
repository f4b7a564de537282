"""Products of every head's rows with the head's own matrix: the absorbed projections of latent attention.

Axes: N rows, H heads, K inner width, M outer width.
"""

from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels
from samepath.kernels.rows.pair_product import pair_product


def head_product(x_NHK: Tensor, weight_HKM: Tensor, backend: Backend) -> Tensor:
    """x[:, h] · weight[h] for every head, `[N, H, M]`, with gradients; inputs may be strided views.

    On CPU (`torch`) a row stands alone if N is a multiple of 16; on a GPU only `triton` promises it, for any N.
    """
    if x_NHK.shape[1:] != weight_HKM.shape[:2]:
        raise ValueError(
            f"head_product needs x [N, H, K] and weight [H, K, M]; got {tuple(x_NHK.shape)}, {tuple(weight_HKM.shape)}"
        )
    fused = fused_kernels(backend, "head_product", x_NHK, weight_HKM)
    if fused is not None:
        return fused.head_product(x_NHK, weight_HKM)
    return pair_product(x_NHK.transpose(0, 1), weight_HKM).transpose(0, 1)
