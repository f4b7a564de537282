import pytest
from pydantic import ValidationError

from samepath.rl.objective.importance_ratio import ImportanceSettings
from samepath.rl.objective.objective import ObjectiveSettings


def test_objective_settings_importance_weight_with_two_policies_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"importance\.mode must be `none` with `old_policy: sampler`"):
        ObjectiveSettings(importance=ImportanceSettings(mode="truncated"))


@pytest.mark.parametrize("surrogate", ["grpo", "gspo"])
def test_objective_settings_clip_low_of_one_is_refused_but_for_cispo(surrogate: str) -> None:
    with pytest.raises(ValidationError, match="clip_low must be below 1"):
        ObjectiveSettings(surrogate=surrogate, clip_low=1.0)
    assert ObjectiveSettings(surrogate="cispo", clip_low=1.0).clip_low == 1.0


@pytest.mark.parametrize("values", [{"clip_low": 1.5}, {"clip_high": 0.0}, {"surrogate": "ppo"}, {"beta": 0.1}])
def test_objective_settings_out_of_range_or_unknown_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ObjectiveSettings.model_validate(values)
