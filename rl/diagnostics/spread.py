"""Rollouts that stand in several passes, as one.

Axes: B rollouts, J what the off-policy mask decides on, M trained tokens; in what comes from the passes, as often as a pass holds a part of one.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from samepath.rl.objective.loss_inputs import LossInputs


def once_each(inputs: LossInputs, rollouts: Sequence[int], units: Sequence[int]) -> tuple[LossInputs, Tensor]:
    """The passes' joined record (see `joined`) with each rollout once, in the order of the batch, and where each of J stood first.

    `rollouts` and `units` are the places in the batch of each entry by rollout, and of each by what the mask decides on. What the passes know
    of one rollout is the same in all of them, so the first one's is taken.
    """
    _, first_B, number_B = np.unique(rollouts, return_index=True, return_inverse=True)
    _, first_J, number_J = np.unique(units, return_index=True, return_inverse=True)
    new_B, new_J = torch.from_numpy(number_B), torch.from_numpy(number_J)
    once_B, once_J = torch.from_numpy(first_B), torch.from_numpy(first_J)
    once = replace(
        inputs,
        advantages_B=inputs.advantages_B[once_B],
        beta_B=inputs.beta_B[once_B],
        rollout_M=new_B[inputs.rollout_M],
        unit_M=new_J[inputs.unit_M],
        rollout_J=new_B[inputs.rollout_J[once_J]],
    )
    return once, once_J
