"""Products of pairs of matrices on CPU, `torch.bmm` with a row's bits independent of the number of pairs, rows and threads.

Several pairs go to MKL as one batch, in which a thread takes whole products. A pair alone would be cut among the threads, and on processors
of another maker than Intel the pieces are computed in another order, whatever MKL's mode (measured on an AMD EPYC: at 2 threads with fewer
than 16 rows and 16 columns, at 16 threads with up to 128 columns). So a pair alone goes as two. Axes: B pairs, M rows, K inner width, F columns.
"""

import torch
from torch import Tensor

# Sets the mode of MKL, which must stand before a process's first product.
import samepath.kernels.mkl_mode  # noqa: F401

MIN_ROWS = 4
"""With fewer rows in a product the library takes another code path, with other bits (measured)."""


def pair_product(left_BMK: Tensor, right_BKF: Tensor, out: Tensor | None = None) -> Tensor:
    """left · right of every pair, `[B, M, F]`, into `out` if that is given; M must be at least `MIN_ROWS`, or the same for all that is compared."""
    num_pairs, num_rows, width = left_BMK.shape
    if num_pairs > 1 or num_rows == 0 or left_BMK.device.type != "cpu" or torch.get_num_threads() == 1:
        return torch.bmm(left_BMK, right_BKF) if out is None else torch.bmm(left_BMK, right_BKF, out=out)
    two_BKF = right_BKF.expand(2, -1, -1)
    if num_rows % 2 == 0 and num_rows >= 2 * MIN_ROWS:
        result = torch.bmm(left_BMK.reshape(2, -1, width), two_BKF).view(1, num_rows, -1)
    else:
        result = torch.bmm(left_BMK.expand(2, -1, -1), two_BKF)[:1]
    return result if out is None else out.copy_(result)
