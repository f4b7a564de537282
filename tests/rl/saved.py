"""A learner's checkpoint, once it is whole."""

from pathlib import Path

from samepath.rl.learner.learner import Learner


def saved(learner: Learner, step: int) -> Path:
    """Save and wait."""
    folder = learner.save(step)
    assert learner.saved(step, wait=True)
    return folder
