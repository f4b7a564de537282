"""Keep Routing: checking recorded expert routes before the learner follows them (arXiv:2512.02556 §3.1).

Axes: T rows of one segment, L mixture-of-experts layers, X experts chosen.
"""

import numpy as np
from numpy.typing import NDArray

from samepath.model.shape import ModelShape
from samepath.rollout.types import MISSING_ROUTE


class RouteError(ValueError):
    """Recorded routes that cannot belong to this model or these tokens."""


def check_routes(routes_TLX: NDArray[np.int16], num_rows: int, shape: ModelShape, where: str) -> int:
    """Validate one segment's routes for the rows that will be run; returns the number of missing (row, layer) entries.

    Raises RouteError on a wrong shape, ids out of range, an expert twice in one row, a row that is missing in part, or routes that
    are zero throughout (an unset buffer).
    """
    expected = (num_rows, len(shape.moe_layers), shape.num_experts_per_tok)
    if routes_TLX.shape != expected:
        raise RouteError(
            f"{where}: routes must have shape [rows, layers, experts chosen] = {expected}; got {routes_TLX.shape}"
        )
    if not routes_TLX.size:
        return 0
    low, high = int(routes_TLX.min()), int(routes_TLX.max())
    if low < MISSING_ROUTE or high >= shape.n_routed_experts:
        raise RouteError(
            f"{where}: expert ids must lie in 0 … {shape.n_routed_experts - 1} (−1 = missing); got {low} … {high}"
        )
    missing_TL = routes_TLX[..., 0] == MISSING_ROUTE
    if bool(((routes_TLX == MISSING_ROUTE) != missing_TL[..., None]).any()):
        raise RouteError(f"{where}: a route is recorded whole or not at all; some rows have only part of their experts")
    ordered = np.sort(routes_TLX, axis=-1)
    repeated_TL = (ordered[..., 1:] == ordered[..., :-1]).any(-1) & ~missing_TL
    if bool(repeated_TL.any()):
        row, layer = np.argwhere(repeated_TL)[0]
        raise RouteError(
            f"{where}: an expert is chosen at most once a token; row {row}, layer slot {layer} has {routes_TLX[row, layer].tolist()}"
        )
    if high == 0 and shape.n_routed_experts > 1 and num_rows > 1 and not bool(missing_TL.all()):
        raise RouteError(f"{where}: all routes are expert 0, as in a buffer that was never filled")
    return int(missing_TL.sum())
