"""Keep Routing: checking recorded expert routes before the learner follows them (arXiv:2512.02556 §3.1).

Axes: T rows of one segment, L mixture-of-experts layers, X experts chosen.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samepath.model.shape import ModelShape
from samepath.rollout.types import MISSING_ROUTE


class RouteError(ValueError):
    """Recorded routes that cannot belong to this model or these tokens."""


def checked_routes(
    parts: Sequence[NDArray[np.int16]], shape: ModelShape, names: Sequence[str]
) -> tuple[NDArray[np.int16], int]:
    """(routes of all segments end to end, missing entries); `parts` are the rows that will be run of each. Raises RouteError as `check_routes`.

    All are looked at together; only if something may be wrong each is looked at alone.
    """
    expected = (len(shape.moe_layers), shape.num_experts_per_tok)
    if all(part.shape[1:] == expected for part in parts):
        routes_RLX = np.concatenate(parts)
        if all(map(len, parts)) and routes_RLX.size:
            missing_RL = routes_RLX[..., 0] == MISSING_ROUTE
            ordered_RLX = np.sort(routes_RLX, axis=-1)
            repeated_RL = (ordered_RLX[..., 1:] == ordered_RLX[..., :-1]).any(-1) & ~missing_RL
            partly = ordered_RLX[..., 0][~missing_RL].min(initial=0) < 0 or ordered_RLX[missing_RL].max(initial=-1) >= 0
            highest_R = ordered_RLX[..., -1].max(1)
            starts_S = np.cumsum([0, *map(len, parts[:-1])])
            unset = (np.maximum.reduceat(highest_R, starts_S) == 0).any()
            outside = ordered_RLX.min() < MISSING_ROUTE or highest_R.max() >= shape.n_routed_experts
            if not (outside or partly or unset or repeated_RL.any()):
                return routes_RLX, int(missing_RL.sum())
    missing = sum(check_routes(part, len(part), shape, name) for part, name in zip(parts, names, strict=True))
    return np.concatenate(parts), missing


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
