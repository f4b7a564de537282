import pytest
from pydantic import ValidationError

from samepath.rl.recipe.advantage import AdvantageSettings, TruncationSettings


@pytest.mark.parametrize("values", [{"scale": "std"}, {"baseline": "none"}, {"epsilon": 0.0}, {"eps": 1e-6}])
def test_advantage_settings_out_of_range_or_unknown_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AdvantageSettings.model_validate(values)


@pytest.mark.parametrize("values", [{"mode": "drop"}, {"penalty": -1.0}])
def test_truncation_settings_out_of_range_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TruncationSettings.model_validate(values)
