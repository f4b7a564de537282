from typing import Any

import pytest
from pydantic import ValidationError

from samepath.rl.recipe.task import FileTask, HubTask, ReasoningGymTask


@pytest.mark.parametrize("params", [{"seed": 1}, {"size": 1}])
def test_reasoning_gym_task_seed_and_size_are_not_params(params):
    with pytest.raises(ValidationError, match="params must not hold"):
        ReasoningGymTask(dataset="chain_sum", params=params)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"held_out_split": ""}, "give held_out_split, or held_out_fraction above 0"),
        ({"held_out_fraction": 0.1}, "give held_out_split, or held_out_fraction above 0"),
        ({"held_out_split": "train"}, "held_out_split must not be train_split"),
    ],
)
def test_hub_task_held_out_must_be_said_once(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HubTask.model_validate({"path": "openai/gsm8k", **more})


@pytest.mark.parametrize(
    "held_out",
    [{}, {"held_out_fraction": 0.1, "held_out_path": "x"}, {"held_out_fraction": 1.0}, {"held_out_fraction": -0.1}],
)
def test_file_task_needs_exactly_one_source_of_held_out_rows(held_out):
    with pytest.raises(ValidationError, match="held_out_fraction"):
        FileTask(path="x", **held_out)
