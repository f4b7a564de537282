"""The learner as a Ray actor: every wait has the recipe's bound."""

import threading
from pathlib import Path
from unittest.mock import MagicMock

import pytest

pytest.importorskip("ray")

from samepath.rl.learner import ray_learner
from samepath.rl.learner.ray_learner import LearnerLostError, RayLearner
from samepath.rollout.engine_errors import ClusterLostError
from samepath.rollout.pool import ray_calls


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A Ray whose calls answer at once."""
    fake = MagicMock()
    monkeypatch.setattr(ray_learner, "ray", fake)
    return fake


def test_ray_learner_waits_no_longer_than_the_recipe_says(tiny_recipe, tmp_path: Path, ray: MagicMock) -> None:
    ray.get.side_effect = ray_learner.GetTimeoutError("late")
    with pytest.raises(LearnerLostError, match="update_timeout_s=7 s for the learner: loading its model"):
        RayLearner(tiny_recipe("learner.update_timeout_s=7"), Path(), tmp_path, None)
    assert ray.get.call_args.kwargs == {"timeout": 7.0}


def test_lost_learner_is_waited_for_once(tiny_recipe, tmp_path: Path, ray: MagicMock) -> None:
    """The end of a run asks once more whether its checkpoint is whole."""
    learner = RayLearner(tiny_recipe("learner.update_timeout_s=7"), Path(), tmp_path, None)
    ray.get.side_effect = ray_learner.GetTimeoutError("late")
    with pytest.raises(LearnerLostError, match="counting an empty batch"):
        learner.advance()
    waited = ray.get.call_count
    with pytest.raises(LearnerLostError, match="counting an empty batch"):
        learner.saved(3, wait=True)
    assert ray.get.call_count == waited


@pytest.mark.parametrize("part", ["creation", "order", "answer"])
def test_ray_learner_on_a_ray_that_hangs_in_any_call_says_so(
    part: str, tiny_recipe, tmp_path: Path, ray: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(ray_calls, "GRACE_S", 0.1)
    recipe = tiny_recipe("learner.update_timeout_s=0.1")
    learner = RayLearner(recipe, Path(), tmp_path, None)
    actor_class = ray.remote.return_value.return_value
    calls = {"creation": actor_class.remote, "order": actor_class.remote.return_value.call.remote, "answer": ray.get}
    calls[part].side_effect = lambda *arguments, **options: hanging.wait()
    try:
        with pytest.raises(ClusterLostError, match="waited 0 s for .*, and Ray does not answer"):
            RayLearner(recipe, Path(), tmp_path, None) if part == "creation" else learner.save(1)
        orders = actor_class.remote.return_value.call.remote.call_count
        if part != "creation":
            with pytest.raises(ClusterLostError):
                learner.saved(1, wait=True)
        assert actor_class.remote.return_value.call.remote.call_count == orders, "a cluster that is lost is asked once"
    finally:
        hanging.set()


AWAY = LearnerLostError("learner rank 0 of 2 waited for gradients")
FAILED = ray_learner.RayTaskError("call", "Traceback: no room", MemoryError("no room"))
GONE = ray_learner.RayActorError(None, "rank 0 is gone")


@pytest.fixture
def learner(tiny_recipe, tmp_path: Path, ray: MagicMock, monkeypatch: pytest.MonkeyPatch) -> RayLearner:
    """Two ranks, which are there at first."""
    monkeypatch.setattr(ray_learner, "ray_state", MagicMock())
    monkeypatch.setattr(ray_learner, "ended_ranks", lambda records: [])
    ray.get.return_value = [None]
    return RayLearner(tiny_recipe("learner.ranks=2"), Path(), tmp_path, None)


LATE = ([], ["rank 1 ended"])
"""What the table says of the ranks when it is looked at first and later."""
BOTH = (["rank 1 ended", "rank 0 ended"],)


@pytest.mark.parametrize(("first", "looks"), [(AWAY, LATE), (GONE, LATE), (AWAY, BOTH), (GONE, BOTH), (FAILED, BOTH)])
def test_rank_that_ended_first_is_to_blame_whatever_ray_raises_first(
    first: Exception, looks: tuple[list[str], ...], learner: RayLearner, ray: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(looks)
    monkeypatch.setattr(ray_learner, "ended_ranks", lambda records: next(told) if len(records) == 2 else [])
    ray.get.side_effect = first
    said = f"^{', and after it '.join(looks[-1])}, during counting an empty batch. Go on from the last checkpoint"
    for _ in range(2):
        with pytest.raises(LearnerLostError, match=said):
            learner.advance()
    assert ray.wait.call_count == len(looks) - 1, "ranks are waited for only where none has ended"


def test_rank_that_failed_while_all_are_there_is_named_with_its_reason(learner: RayLearner, ray: MagicMock) -> None:
    """It parts from rank 0, which says so before it."""
    ray.get.side_effect = [AWAY, AWAY, FAILED]
    with pytest.raises(LearnerLostError, match="learner rank 1 failed during counting an empty batch: .*no room"):
        learner.advance()


def test_error_of_a_rank_is_raised_as_it_is_while_all_are_there(learner: RayLearner, ray: MagicMock) -> None:
    ray.get.side_effect = FAILED
    with pytest.raises(ray_learner.RayTaskError, match="no room"):
        learner.advance()


def test_ranks_that_miss_each_other_and_are_there_say_so(learner: RayLearner, ray: MagicMock) -> None:
    ray.get.side_effect = GONE
    with pytest.raises(
        LearnerLostError,
        match=r"lost each other during counting .* all of their processes are there\. Go on .*rank 0 is gone",
    ):
        learner.advance()
