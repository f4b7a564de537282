"""The learning rate of each update: a linear rise, times a fall over all updates of the training that was planned."""

import numpy as np

from samepath.rl.recipe.optimizer import OptimizerSettings


def learning_rate(settings: OptimizerSettings, update: int, total_updates: int) -> float:
    """Learning rate of an update u, counted from 0, of U planned ones: lr · min(1, (u + 1)/warmup) · fall(u/U).

    fall is 1 (`constant`), 1 − (1 − m)·u/U (`linear`) or m + (1 − m)/2·(1 + cos(π·u/U)) (`cosine`), m being `min_lr_share`; past U it stays
    at m. U counts the rise in.
    """
    risen = settings.lr * min(1.0, (update + 1) / max(settings.warmup_updates, 1))
    least, total = settings.min_lr_share, max(total_updates, 1)
    done = min(update, total)
    match settings.schedule:
        case "constant":
            return risen
        case "linear":
            return risen * (1 - (1 - least) * (done / total))
        case "cosine":
            return float(risen * (least + (1 - least) / 2 * (1 + np.cos(np.pi * done / total))))
