"""The learner as a Ray actor: every wait has the recipe's bound."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest

pytest.importorskip("ray")

from samepath.rl.learner import ray_learner
from samepath.rl.learner.ray_learner import LearnerLostError, RayLearner


def test_ray_learner_waits_no_longer_than_the_recipe_says(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = MagicMock()
    fake.get.side_effect = ray_learner.GetTimeoutError("late")
    monkeypatch.setattr(ray_learner, "ray", fake)
    with pytest.raises(LearnerLostError, match="update_timeout_s=7 s for the learner: loading its model"):
        RayLearner(tiny_recipe("learner.update_timeout_s=7"), Path(), tmp_path, None)
    assert fake.get.call_args.kwargs == {"timeout": 7.0}


def test_lost_learner_is_waited_for_once(tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a run asks once more whether its checkpoint is whole."""
    fake = MagicMock()
    monkeypatch.setattr(ray_learner, "ray", fake)
    learner = RayLearner(tiny_recipe("learner.update_timeout_s=7"), Path(), tmp_path, None)
    fake.get.side_effect = ray_learner.GetTimeoutError("late")
    with pytest.raises(LearnerLostError, match="counting an empty batch"):
        learner.advance()
    waited = fake.get.call_count
    with pytest.raises(LearnerLostError, match="counting an empty batch"):
        learner.saved(3, wait=True)
    assert fake.get.call_count == waited
