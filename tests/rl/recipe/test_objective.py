import pytest
from pydantic import ValidationError

from samepath.rl.recipe.objective import (
    AggregationSettings,
    ImportanceSettings,
    KlSettings,
    ObjectiveSettings,
    SequenceMaskSettings,
)


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


def test_importance_settings_band_without_width_is_refused() -> None:
    with pytest.raises(ValidationError, match="band_low must be below band_high"):
        ImportanceSettings(mode="banded", band_low=1.0, band_high=1.0)


@pytest.mark.parametrize("values", [{"cap": 0.5}, {"band_low": 1.1}, {"band_high": 0.9}, {"ceiling": 2.0}])
def test_importance_settings_out_of_range_or_unknown_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ImportanceSettings(mode="truncated", **values)


def test_kl_settings_need_a_reference_exactly_when_some_beta_is_positive() -> None:
    assert KlSettings(beta=0.1).needs_reference
    assert KlSettings(beta=0.0, beta_by_dataset={"chat": 0.1}).needs_reference
    assert not KlSettings(beta=0.0, beta_by_dataset={"chat": 0.0}).needs_reference


@pytest.mark.parametrize(
    "values", [{"beta": -0.1}, {"beta_by_dataset": {"chat": -1.0}}, {"estimator": "k4"}, {"coef": 1}]
)
def test_kl_settings_out_of_range_or_unknown_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KlSettings.model_validate(values)


@pytest.mark.parametrize("values", [{"delta": 0.0}, {"delta": -1.0}, {"threshold": 0.1}])
def test_sequence_mask_settings_out_of_range_or_unknown_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SequenceMaskSettings.model_validate(values)


def test_aggregation_settings_constant_without_length_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"fixed_length must be at least 1 with mode `constant`.*max_new_tokens"):
        AggregationSettings(mode="constant")


@pytest.mark.parametrize("mode", ["sequence_mean", "token_mean"])
def test_aggregation_settings_length_without_effect_is_refused(mode: str) -> None:
    with pytest.raises(ValidationError, match=f"must be 0 with mode `{mode}`"):
        AggregationSettings(mode=mode, fixed_length=128)
