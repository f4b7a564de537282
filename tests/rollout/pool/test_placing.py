"""What a recipe may reserve, and where without reserving anything."""

import pytest
from pydantic import ValidationError

pytest.importorskip("ray")

from samepath.rl.recipe.cluster import RaySettings
from samepath.rollout.pool.ray_bundles import RayBundles
from samepath.rollout.pool.settings import RolloutSettings


def test_bundles_anywhere_reserve_no_cpus_and_ask_nothing_of_ray() -> None:
    room = RayBundles("workers", 2, {"CPU": 1.0, "GPU": 0.5}, "any", 1.0)
    assert room.options(1) == {"num_cpus": 0, "num_gpus": 0.5, "max_restarts": 0}
    room.close()


def test_cpus_that_nothing_reserves_are_refused() -> None:
    with pytest.raises(ValidationError, match="got placing=any, which reserves none"):
        RolloutSettings(cpus=2)
    with pytest.raises(ValidationError, match=r"ray.learner_cpus=2 is reserved with ray.learner_placing"):
        RaySettings(learner_cpus=2)
    assert (
        RolloutSettings(cpus=2, placing="pack").cpus
        == RaySettings(learner_cpus=2, learner_placing="spread").learner_cpus
    )
