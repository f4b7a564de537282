"""What the driver hands the learner for one step, and what comes back.

Axes: B rollouts, S their segments.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samepath.rl.batch.pack import TrainSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """All rollouts of one batch that give loss or belong to a group that does.

    Example: two groups of two, of which the second rollout is a conversation of two segments:
        TrainBatch(sequences=(a, b0, b1, c, d), rollout_S=[0, 1, 1, 2, 3], names=("s3-g0/0", "s3-g0/1", "s3-g1/0", "s3-g1/1"),
                   advantages_B=[.5, -.5, 0, 0], group_B=[0, 0, 1, 1], datasets=("sums",) * 4, in_loss_B=[True] * 4)
    """

    sequences: tuple[TrainSequence, ...]
    """[S] their segments with something to train: whole rollouts in a row, whole groups in a row."""
    rollout_S: NDArray[np.int64]
    """[S] index of each segment's rollout, ascending."""
    names: tuple[str, ...]
    """[B] group and sample."""
    advantages_B: NDArray[np.float32]
    """[B] reward units."""
    group_B: NDArray[np.int64]
    """[B] group label, consecutive."""
    datasets: tuple[str, ...]
    """[B] task name, for the KL weight by domain."""
    in_loss_B: NDArray[np.bool_]
    """[B] False keeps a rollout in the denominators only (masked truncation)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReport:
    """What the update saw of each trained token of one rollout, in the order in which they were drawn.

    Axes: T trained tokens of the rollout, F flips, X experts chosen.
    """

    log_ratio_T: NDArray[np.float32]
    """[T] log π − log π_sampler at the token's update, nats; NaN outside the loss."""
    entropy_T: NDArray[np.float32]
    """[T] nats, over the full vocabulary."""
    role_T: NDArray[np.int64]
    """[T] 2 in the loss, 1 taken out of the surrogate by the off-policy mask, 0 neither."""
    flips: NDArray[np.int64]
    """[F, 2 + X] token, place of the layer and the live router's experts, wherever these are not the recorded ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What the updates on one rollout batch measured."""

    metrics: dict[str, float]
    """Step metrics, names grouped by their first part."""
    kl_B: NDArray[np.float32]
    """[B] mean KL estimate to the reference, nats per token."""
    off_policy_B: NDArray[np.float32]
    """[B] mean log(π_sampler/π), nats per token."""
    masked_B: NDArray[np.bool_]
    """[B] True where the off-policy mask took the rollout, or with `scope: segment` a segment of it, out of the surrogate."""
    route_flips_B: NDArray[np.float32]
    """[B] share of (row, layer) whose live route differs from the one followed."""
    weight_lag_B: NDArray[np.int64]
    """[B] largest lag of a token's weights behind the learner's at its update, in versions."""
    kl_tokens: tuple[NDArray[np.float32], ...]
    """[B] KL estimate of each trained token, nats."""
    tokens: tuple[TokenReport, ...] = ()
    """[B] what else was seen of them."""
    moe_layers: tuple[int, ...] = ()
    """Global numbers of the mixture-of-experts layers."""
