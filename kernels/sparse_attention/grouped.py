"""Attention of each query row over its own selected keys, with grouped key heads that all read the same selection.

A key row holds the value first and the key behind it, and a query that has zeros before it takes one product with the whole row: attention
over a latent, as `attend` computes it, once for each key head. The scores cost what twice their width costs. Axes: N query rows, S key rows,
G key heads, H query heads, K width of a head, W = 2K width of a row, C selected keys.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from samepath.kernels.backend import Backend
from samepath.kernels.sparse_attention.sparse_attention import DenseWindows, attend


def grouped_rows(rows_GNW: Tensor) -> Tensor:
    """Key rows `[G, N, W]` of rows that have the key first, as attention over all keys takes them."""
    return rows_GNW.roll(rows_GNW.shape[2] // 2, 2)


def grouped_queries(q_NHK: Tensor) -> Tensor:
    """Queries `[N, H, W]` for these rows."""
    return pad(q_NHK, (q_NHK.shape[2], 0))


def grouped_attend(
    q_NHK: Tensor,
    rows_GSW: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    *,
    scale: float,
    backend: Backend,
    dense: DenseWindows | None = None,
    with_mass: bool = True,
) -> tuple[Tensor, Tensor]:
    """Sparse attention with gradients for `q` and the rows.

    Args: as those of `attend`; head h reads `rows_GSW[h // (H / G)]`, made by `grouped_rows`.

    Returns:
        (out_NHK, mass_NC attention probability summed over all heads, without gradient, meaningless without `with_mass`).
        Raises ValueError on shapes that do not fit.
    """
    heads, groups, width = q_NHK.shape[1], len(rows_GSW), q_NHK.shape[2]
    if heads % groups or rows_GSW.shape[2] != 2 * width:
        raise ValueError(
            f"grouped_attend needs q [N,H,K] and rows [G,S,2K] with G dividing H; got {tuple(q_NHK.shape)}, {tuple(rows_GSW.shape)}"
        )
    outs, mass_NC = [], None
    for q_NXW, rows_SW in zip(torch.split(grouped_queries(q_NHK), heads // groups, 1), rows_GSW):
        out_NXK, _, part_NC = attend(
            q_NXW.contiguous(),
            rows_SW,
            indices_NC,
            count_N,
            scale=scale,
            value_width=width,
            backend=backend,
            dense=dense,
            with_mass=with_mass,
        )
        outs.append(out_NXK)
        mass_NC = part_NC if mass_NC is None else mass_NC + part_NC
    assert mass_NC is not None
    return torch.cat(outs, 1), mass_NC
