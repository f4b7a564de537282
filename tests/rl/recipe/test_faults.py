"""A plan of faults says what it means, and is refused where the run has nothing to break."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from samepath.rl.recipe.faults import FAULTS, FaultSettings
from samepath.rl.recipe.file import dump_recipe
from samepath.rl.recipe.recipe import Recipe
from tests.rl.conftest import TINY


def recipe(faults: dict[str, Any], **changes: Any) -> Recipe:
    """The tiny recipe with this plan."""
    return Recipe.model_validate({**TINY, "faults": faults, **changes})


def test_recipe_without_a_plan_plans_nothing() -> None:
    assert not Recipe.model_validate(TINY).faults.planned
    assert FaultSettings().named == ()


def test_plan_of_a_resolved_recipe_is_read_again() -> None:
    from yaml import safe_load

    plan = {"at": [{"fault": "disk_full", "step": 1, "file": "run.json"}, {"fault": "nan_reward", "step": 2}]}
    made = recipe({**plan, "every_s": 60, "kinds": ["nan_logprob"], "seed": 3})
    again = Recipe.model_validate(safe_load(dump_recipe(made)))
    assert again.faults == made.faults
    assert again.faults.named == ("disk_full", "nan_reward", "nan_logprob")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"every_s": 60}, "every_s and kinds belong together"),
        ({"kinds": ["driver_killed"]}, "every_s and kinds belong together"),
        ({"seed": 1}, "seed draws the faults of every_s"),
        ({"at": [{"fault": "disk_full", "step": 1}]}, "disk_full needs file"),
        ({"at": [{"fault": "nan_reward", "step": 1, "file": "x"}]}, "file belongs to disk_full and driver_killed"),
        ({"at": [{"fault": "driver_killed", "step": 1, "file": "x", "during": "learning"}]}, "leave during out"),
        ({"at": [{"fault": "driver_killed", "step": 1, "for_s": 2}]}, "for_s belongs to store_gone"),
        ({"at": [{"fault": "driver_killed", "step": 0}]}, "greater than or equal to 1"),
        ({"at": [{"fault": "driver_killed", "step": 4}]}, "must come in one of the rl.steps=3 steps"),
        ({"at": [{"fault": "driver_killed", "step": 1, "during": "waiting"}]}, "during=waiting never comes"),
        ({"at": [{"fault": "worker_stopped", "step": 1}]}, "faults.worker_stopped needs a rollout worker beside"),
        ({"every_s": 60, "kinds": ["worker_killed"]}, "faults.worker_killed needs a rollout worker beside"),
        ({"every_s": 60, "kinds": ["rank_killed"]}, "faults.rank_killed needs a rank beside"),
        ({"every_s": 60, "kinds": ["store_gone"]}, "faults.store_gone needs tracking.kind: mlflow"),
        ({"every_s": 60, "kinds": ["fire"]}, "Input should be"),
        ({"rate": 1}, "Extra inputs are not permitted"),
    ],
)
def test_plan_that_means_nothing_is_refused(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        recipe(plan)


def test_plan_under_ray_may_hit_workers_and_ranks_but_not_what_other_processes_write_or_other_machines_run() -> None:
    drawn = {"every_s": 60, "kinds": [name for name in FAULTS if name != "store_gone"]}
    recipe(drawn, runtime="ray")
    with pytest.raises(ValidationError, match=re.escape("ray.address must be local; got auto")):
        recipe(drawn, runtime="ray", ray={"address": "auto"})
    for file in ("checkpoints/*", "reference/*", "*"):
        with pytest.raises(ValidationError, match="is written by the learner's process, which plans no faults"):
            recipe({"at": [{"fault": "disk_full", "step": 1, "file": file}]}, runtime="ray")
    recipe({"at": [{"fault": "disk_full", "step": 1, "file": "checkpoints/*"}]})


def test_plan_for_rewards_of_an_environment_has_no_reward_child() -> None:
    environment = {
        "kind": "environment",
        "environment": "samepath.rollout.environments.reasoning_gym:ReasoningGym",
    }
    model = {**TINY["model"], "tokenizer": {"vocab_size": 300}}
    del model["alphabet"]
    with pytest.raises(ValidationError, match=re.escape("faults.nan_reward needs a reward function in reward.parts")):
        recipe({"every_s": 9, "kinds": ["nan_reward"]}, task=environment, model=model, reward={})
