"""What is kept of each drawn token for people, small: four digits of a number, runs of equal versions, experts packed.

Axes: T drawn tokens of a rollout, L mixture-of-experts layers, X experts chosen.
"""

import base64
import zlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samepath.rl.tracking.tracked_rollout import TrackedRoutes
from samepath.rollout.types import Rollout

DIGITS = 4
"""Of a number of a token."""
CHOICES = 64
"""Experts of a token, over all layers, up to which they are kept: of a model with more they would be most of the file."""
ROLE_LETTERS = "omt"
"""Not in the loss, taken out of the surrogate by the off-policy mask, in the loss."""


def short(values_T: NDArray[Any]) -> tuple[float, ...]:
    """The numbers with `DIGITS` digits, from 10,000 whole; NaN and infinities as they are, and 0 below 10⁻²².

    Example:
        short(np.array([0.123456, -2.0, 0.0])) == (0.1235, -2.0, 0.0)
    """
    exact_T = np.asarray(values_T, np.float64)
    known_T = np.isfinite(exact_T) & (exact_T != 0)
    size_T = np.log10(np.abs(exact_T), out=np.zeros_like(exact_T), where=known_T)
    # Powers of ten up to the 22nd are exact, so the quotient is the float next to the short decimal.
    scale_T = 10.0 ** np.clip(DIGITS - 1 - np.floor(size_T), 0, 22)
    return tuple(np.where(known_T, np.round(np.where(known_T, exact_T, 0) * scale_T) / scale_T, exact_T).tolist())


def support_sizes(rollout: Rollout) -> tuple[int, ...]:
    """[T] candidates that each token was drawn from, 0 for the whole vocabulary; none where no segment was truncated."""
    if all(segment.support is None for segment in rollout.segments):
        return ()
    return tuple(
        size
        for segment in rollout.segments
        for size in ([0] * segment.num_trained if segment.support is None else segment.support.counts.tolist())
    )


def weight_versions(rollout: Rollout) -> tuple[tuple[int, int], ...]:
    """(version, how many tokens in a row it drew) over the drawn tokens."""
    versions = [int(one) for segment in rollout.segments for one in segment.weight_version[segment.trained]]
    return tuple((version, len(list(run))) for version, run in groupby(versions))


def routes(rollout: Rollout, layers: Sequence[int], flips: NDArray[np.int64]) -> TrackedRoutes | None:
    """The experts of the rows that predict the drawn tokens, and where the live router takes others.

    `layers` are the global numbers of the L layers; `flips` rows of [token, place of the layer, experts…]. None for a dense model, and where
    a token has more than `CHOICES`.
    """
    parts = [segment.routes[np.flatnonzero(segment.trained) - 1] for segment in rollout.segments]
    chosen_TLX = np.concatenate(parts) if parts else np.zeros((0, 0, 0), np.int16)
    if not chosen_TLX.size or chosen_TLX[0].size > CHOICES:
        return None
    packed = base64.b64encode(zlib.compress(chosen_TLX.astype("<i2").tobytes())).decode()
    return TrackedRoutes(
        layers=tuple(layers), experts=chosen_TLX.shape[2], chosen=packed, live=tuple(map(tuple, flips.tolist()))
    )


def unpacked(kept: TrackedRoutes) -> dict[str, Any]:
    """The routes as JSON data: `layers`, `chosen` [L][T][X], and `live`, of each layer the experts by token where they differ.

    Raises ValueError for what `routes` has not made.
    """
    try:
        chosen = np.frombuffer(zlib.decompress(base64.b64decode(kept.chosen, validate=True)), "<i2")
    except zlib.error as error:
        raise ValueError(f"routes cannot be unpacked: {error}") from error
    chosen_TLX = chosen.reshape(-1, len(kept.layers), kept.experts)
    if any(len(row) != 2 + kept.experts or not 0 <= row[1] < len(kept.layers) for row in kept.live):
        raise ValueError(f"live routes must be (token, layer, {kept.experts} experts); got {kept.live}")
    live: list[dict[int, list[int]]] = [{} for _ in kept.layers]
    for token, layer, *experts in kept.live:
        live[layer][token] = list(experts)
    return {"layers": list(kept.layers), "chosen": chosen_TLX.transpose(1, 0, 2).tolist(), "live": live}


def role_letters(roles_T: NDArray[np.int64]) -> str:
    """A letter of `ROLE_LETTERS` for each token's place in it."""
    return "".join(ROLE_LETTERS[role] for role in roles_T.tolist())
